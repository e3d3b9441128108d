"""Plain text for terminals: aligned columns, bars, and numbers as a person reads them."""

from collections.abc import Sequence
from textwrap import wrap
from typing import Any

from hetsched.units import duration

WIDTH = 80

seconds = duration


def large(value: float) -> str:
    """`21,345`, `1.3 million`, `6.7 billion`."""
    for size, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{value / size:.3g} {word}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def gib(size_bytes: float) -> str:
    """`15.2`, in GiB."""
    return f"{size_bytes / 2**30:.1f}"


def bar(share: float, width: int = 24) -> str:
    """A bar for a share of 1; a share above nothing shows something."""
    filled = min(width, max(round(share * width), 1 if share > 0.001 else 0))
    return "█" * filled


def columns(heads: Sequence[str], rows: Sequence[Sequence[Any]], gap: str = "  ") -> str:
    """Rows under heads; numbers to the right, words to the left."""
    cells = [[_cell(value) for value in row] for row in rows]
    right = [all(isinstance(row[k], int | float) for row in rows) for k in range(len(heads))]
    widths = [max(len(head), *(len(row[k]) for row in cells), 0) for k, head in enumerate(heads)]
    lines = [heads, *cells]
    return "\n".join(
        gap.join(
            text.rjust(width) if to_right else text.ljust(width)
            for text, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


def bullet(text: str, mark: str = "  - ", width: int = WIDTH) -> str:
    """Text wrapped behind a mark; at a no-break space no line ends."""
    lines = wrap(text, width, initial_indent=mark, subsequent_indent=" " * len(mark), break_on_hyphens=False)
    return "\n".join(lines).replace("\xa0", " ")


def cut(name: str, longest: int) -> str:
    """The name, shortened where it is too long."""
    return name if len(name) <= longest else name[: longest - 1] + "…"


def joined_ranges(names: Sequence[str]) -> str:
    """`p0-p3, p7`: names that end in numbers, runs of them shortened."""
    parts: list[str] = []
    run: list[str] = []
    for name in [*names, None]:
        if name is not None and run and _follows(run[-1], name):
            run.append(name)
            continue
        if run:
            parts += [f"{run[0]}-{run[-1]}"] if len(run) > 2 else run
        run = [] if name is None else [name]
    return ", ".join(parts)


def _follows(before: str, name: str) -> bool:
    stem = before.rstrip("0123456789")
    number = before[len(stem) :]
    return bool(number) and name == f"{stem}{int(number) + 1}"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
