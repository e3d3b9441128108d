"""JSON from a person's file: errors with the line, finite numbers only."""

import json
import math
from typing import Any

from hetsched.errors import HetschedError

MAX_DIGITS = 18


def load_json(text: str, where: str) -> Any:
    """The value in a JSON text; `where` names the file in messages.

    Raises HetschedError with the line for wrong syntax, and for NaN, infinities, whole numbers of more than MAX_DIGITS
    digits, a key that an object has twice, and nesting beyond what Python can follow.
    """

    def fraction(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            raise HetschedError(f"{where}: the number {digits[:40]} is not finite", hint="leave the key out instead")
        return value

    def whole(digits: str) -> int:
        if len(digits.lstrip("-")) > MAX_DIGITS:
            raise HetschedError(
                f"{where}: the whole number {digits[:20]}... has more than {MAX_DIGITS} digits", hint="is it a mistake?"
            )
        return int(digits)

    try:
        return json.loads(
            text.removeprefix("\ufeff"),
            parse_float=fraction,
            parse_int=whole,
            parse_constant=fraction,
            object_pairs_hook=lambda pairs: unique(pairs, where),
        )
    except json.JSONDecodeError as error:
        raise HetschedError(
            f"{where} line {error.lineno} column {error.colno}: not valid JSON: {error.msg}",
            hint="look for a missing comma, quote or bracket there or just before",
        ) from None
    except RecursionError:
        raise HetschedError(f"{where}: nested too deeply", hint="is it the right file?") from None


def unique(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    """An object of these keys and values; HetschedError where a key is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for number, (key, _) in enumerate(pairs) if key in dict(pairs[:number]))
        raise HetschedError(f"{where}: the key `{twice[:40]}` stands twice in one object", hint="keep one of the two")
    return found
