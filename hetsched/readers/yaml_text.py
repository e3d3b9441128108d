"""YAML from a person's file: the safe subset, with the line in every message and limits on what it may unfold to."""

import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import yaml

from hetsched.errors import HetschedError

MAX_DEPTH = 50
TOO_DEEP = f"nested more than {MAX_DEPTH} deep"
MAX_VALUES = 2_000_000

_BASE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_BASE):  # type: ignore[misc]
    """The safe loader, with numbers as YAML 1.2 writes them (1e9 is a number), and dates left as text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own name and type
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _whole_number(loader: Any, node: yaml.ScalarNode) -> int:
    value: int = loader.construct_yaml_int(node)
    if value.bit_length() > 63:
        raise yaml.MarkedYAMLError(problem="a whole number of more than 63 bits", problem_mark=node.start_mark)
    return value


_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)


@dataclass
class _Open:
    """A mapping or list whose end has not come yet."""

    is_mapping: bool
    anchor: str | None
    size: int = 1
    key_next: bool = True
    keys: set[Hashable] = field(default_factory=set)


def load_yaml(text: str, where: str) -> Any:
    """The value in a YAML text; `where` names the file in messages.

    Raises HetschedError with the line for wrong syntax, a key that stands twice, nesting deeper than MAX_DEPTH, an
    alias inside what it stands for, and aliases that unfold to more than MAX_VALUES values.
    """
    try:
        _check(text, where)
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - _Loader is the safe one
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}" if mark else ""
        if "nesting depth" in (
            error.problem or ""
        ):  # PyYAML 6.0.4 has a limit of its own, which a long flow meets first
            raise HetschedError(f"{where}{line}: {TOO_DEEP}", hint="no field here needs that") from None
        raise HetschedError(
            f"{where}{line}: not valid YAML: {error.problem or error.context}",
            hint="look for a missing quote, bracket or colon, or a tab, there or just above",
        ) from None
    except yaml.YAMLError as error:
        first = str(error).splitlines()[0]
        raise HetschedError(f"{where}: not valid YAML: {first}", hint="save it as plain UTF-8 text") from None
    except (ValueError, OverflowError) as error:
        raise HetschedError(f"{where}: a value can't be read: {error}", hint="put quotes around text") from None


def _check(text: str, where: str) -> None:
    """Read the events one by one, which needs no recursion, before anything is built from them."""
    stack: list[_Open] = []
    sizes: dict[str, int] = {}
    for event in yaml.parse(text, Loader=_BASE):
        at = f"{where} line {event.start_mark.line + 1}" if event.start_mark else where
        if isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            if len(stack) == MAX_DEPTH:
                raise HetschedError(f"{at}: {TOO_DEEP}", hint="no field here needs that")
            _enter(stack, None, at)
            stack.append(_Open(isinstance(event, yaml.MappingStartEvent), event.anchor))
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            done = stack.pop()
            if done.anchor:
                sizes[done.anchor] = done.size
            _grow(stack, done.size, at)
        elif isinstance(event, yaml.ScalarEvent):
            _enter(stack, event.value, at)
            if event.anchor:
                sizes[event.anchor] = 1
            _grow(stack, 1, at)
        elif isinstance(event, yaml.AliasEvent):
            if any(parent.anchor == event.anchor for parent in stack):
                raise HetschedError(f"{at}: *{event.anchor} stands inside itself", hint="write the value out")
            _enter(stack, None, at)
            _grow(stack, sizes.get(event.anchor or "", 1), at)


def _enter(stack: list[_Open], value: str | None, at: str) -> None:
    """A value begins: as a key (its text, or None for anything but text) or as what belongs to the key before."""
    if not stack or not stack[-1].is_mapping:
        return
    parent = stack[-1]
    if parent.key_next and value is not None and value != "<<":
        if value in parent.keys:
            raise HetschedError(f"{at}: `{value}` stands twice in the same mapping", hint="keep one of the two")
        parent.keys.add(value)
    parent.key_next = not parent.key_next


def _grow(stack: list[_Open], size: int, at: str) -> None:
    if stack:
        stack[-1].size += size
        if stack[-1].size > MAX_VALUES:
            raise HetschedError(
                f"{at}: the file unfolds to more than {MAX_VALUES} values", hint="write matrices as .csv or .npy files"
            )
