"""Typed access to a mapping that came from a file, with errors that name the place."""

import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from hetsched.errors import HetschedError, HetschedWarning

LARGEST = 1e12  # no figure in a file is larger in the unit the file uses


class Fields:
    """A mapping read from a file and where it stood, e.g. `Fields(node, "tokyo.yaml: nodes[2]")`.

    Each method takes a key, returns the value in the type asked for, and raises HetschedError that says what is
    wrong there. `finish` warns of the keys nobody asked for.
    """

    def __init__(self, data: object, where: str) -> None:
        if not isinstance(data, Mapping):
            raise HetschedError(f"{where}: expected a mapping of names to values, found {describe(data)}")
        for key in data:
            if not isinstance(key, str):
                raise HetschedError(
                    f"{where}: the key {key!r} is {describe(key)}, not text", hint=f'put it in quotes: "{key}"'
                )
        self.data: Mapping[str, Any] = data
        self.where = where
        self._asked: set[str] = set()

    def __contains__(self, key: str) -> bool:
        self._asked.add(key)
        return self.data.get(key) is not None

    def at(self, key: str) -> str:
        """Where `key` stands, for messages."""
        return f"{self.where}: {key}"

    def raw(self, key: str) -> Any:
        """The value as it stands; an error if it is missing or null."""
        if key not in self:
            near = get_close_matches(key, [str(k) for k in self.data], n=1)
            hint = f"`{near[0]}` is there: is it meant?" if near else f"add `{key}: ...`"
            if key in self.data:
                raise HetschedError(f"{self.at(key)} is empty, expected a value", hint="give one, or remove the key")
            raise HetschedError(f"{self.where}: `{key}` is missing", hint=hint)
        return self.data[key]

    def text(self, key: str, default: str | None = None) -> str:
        """A string; empty only where the default is."""
        if default is not None and key not in self:
            return default
        value = self.raw(key)
        if not isinstance(value, str) or not (value.strip() or default == ""):
            raise HetschedError(f"{self.at(key)} is {describe(value)}, expected text")
        return value

    def choice(self, key: str, options: Sequence[str], default: str | None = None) -> str:
        """One of `options`."""
        value = self.text(key, default)
        if value not in options:
            raise HetschedError(f"{self.at(key)} is {value!r}", hint=f"use one of: {', '.join(options)}")
        return value

    def flag(self, key: str, default: bool | None = None) -> bool:
        """true or false."""
        if default is not None and key not in self:
            return default
        value = self.raw(key)
        if not isinstance(value, bool):
            raise HetschedError(f"{self.at(key)} is {describe(value)}, expected true or false")
        return value

    def number(
        self,
        key: str,
        default: float | None = None,
        *,
        minimum: float = 0.0,
        above: float | None = None,
        maximum: float = LARGEST,
    ) -> float:
        """A finite number, at least `minimum`, or greater than `above` where that is given, and at most `maximum`."""
        if default is not None and key not in self:
            return default
        value = self.raw(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise HetschedError(f"{self.at(key)} is {describe(value)}, expected a number")
        if not abs(value) <= sys.float_info.max:  # nan is not either
            shown = value if isinstance(value, float) else describe(value)
            raise HetschedError(f"{self.at(key)} is {shown}, expected a finite number")
        if above is not None and value <= above:
            raise HetschedError(f"{self.at(key)} is {value}, expected a number greater than {above:g}")
        if above is None and value < minimum:
            raise HetschedError(f"{self.at(key)} is {value}, expected at least {minimum:g}")
        if value > maximum:
            raise HetschedError(
                f"{self.at(key)} is {describe(value)}, expected at most {maximum:g}", hint="is the unit right?"
            )
        return float(value)

    def integer(self, key: str, default: int | None = None, *, minimum: int = 1, maximum: int | None = None) -> int:
        """A whole number between `minimum` and `maximum`."""
        if default is not None and key not in self:
            return default
        value = self.raw(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise HetschedError(f"{self.at(key)} is {describe(value)}, expected a whole number")
        if value < minimum:
            raise HetschedError(f"{self.at(key)} is {value}, expected at least {minimum}")
        if maximum is not None and value > maximum:
            raise HetschedError(f"{self.at(key)} is {value}, expected at most {maximum}")
        return value

    def sequence(self, key: str, default: Sequence[Any] | None = None) -> Sequence[Any]:
        """A list."""
        if default is not None and key not in self:
            return default
        value = self.raw(key)
        if not isinstance(value, list | tuple):
            raise HetschedError(f"{self.at(key)} is {describe(value)}, expected a list")
        return value

    def child(self, key: str) -> "Fields":
        """The mapping under `key`."""
        return Fields(self.raw(key), self.at(key))

    def children(self, key: str, default: Sequence[Any] | None = None) -> Iterator["Fields"]:
        """The mappings of the list under `key`, one by one."""
        for position, item in enumerate(self.sequence(key, default)):
            yield Fields(item, f"{self.where}: {key}[{position}]")

    def skip(self, *keys: str) -> None:
        """Know these keys without reading them."""
        self._asked.update(keys)

    def finish(self) -> None:
        """Warn of each key that nothing asked for."""
        for key in self.data:
            if key not in self._asked:
                near = get_close_matches(key, sorted(self._asked), n=1)
                also = f"; `{near[0]}` may be meant" if near else ""
                warnings.warn(f"{self.where}: unknown key `{key}` is ignored{also}", HetschedWarning, stacklevel=2)


def describe(value: object) -> str:
    """A value as a person would name it in a message: `a list of 3`, `the text 'x'`."""
    match value:
        case None:
            return "empty"
        case bool():
            return "true" if value else "false"
        case str():
            return f"the text {value if len(value) <= 40 else value[:37] + '...'!r}"
        case int() | float():
            text = str(value) if isinstance(value, float) or value.bit_length() < 200 else "of too many digits"
            return f"the number {text}"
        case Mapping():
            return "a mapping"
        case list() | tuple():
            return f"a list of {len(value)}"
        case _:
            return f"a {type(value).__name__}"
