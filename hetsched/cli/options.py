"""Options that several commands have, and the types of their values."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from hetsched.plan import Compression

Function = TypeVar("Function", bound=Callable[..., Any])

MEMORY_FRACTION = 0.92
PATH = click.Path(path_type=Path)
DTYPES = click.Choice(["bf16", "fp16", "fp32"])
BITS = click.Choice(["16", "8", "4"])

plan_argument = click.argument("plan_path", metavar="PLAN", type=PATH)
model_option = click.option(
    "--model", required=True, metavar="M", help="A catalogue name, or a Hugging Face config.json."
)
write_plan_option = click.option("-o", "--output", type=PATH, metavar="PLAN", help="Write the plan there, as JSON.")


class OneOf(click.ParamType):  # type: ignore[type-arg]
    """A name of a registry, which is not imported before a value or the command's help is asked for."""

    name = "name"

    def __init__(self, load: Callable[[], Iterable[str]]) -> None:
        self.load = load

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name; a usage error that lists the names where it is none of them."""
        names = list(self.load())
        if value not in names:
            self.fail(f"{value!r} is not one of {', '.join(names)}.", param, ctx)
        return str(value)

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """The names, for the help."""
        return f"[{'|'.join(self.load())}]"


class Positive(click.FloatRange):
    """A finite number above 0, at most `max` where that is given."""

    def __init__(self, max: float | None = None) -> None:
        super().__init__(min=0, max=max, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number; a usage error where it is none, infinite or out of range."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class CompressionBits(click.ParamType):  # type: ignore[type-arg]
    """`8`, or three numbers `4,8,8`: bits of an activation, of its gradient, and of a weight's gradient."""

    name = "bits"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> "Compression":
        """The compression; a usage error where it is not one or three whole numbers from 2 to 8, or 16."""
        from hetsched.plan import WIRE_BITS, Compression

        if isinstance(value, Compression):
            return value
        words = [word.strip() for word in str(value).split(",")]
        bits = [int(word) for word in words if word.isascii() and word.isdecimal() and len(word) < 3]
        if len(bits) != len(words) or len(bits) not in (1, 3) or not WIRE_BITS.issuperset(bits):
            self.fail(f"{value!r} is not 2 to 8 bits, or 16 for none: one number, or three as in 4,8,8.", param, ctx)
        return Compression(*(bits * 3 if len(bits) == 1 else bits))


def solver_names() -> Iterable[str]:
    """What `--solver` takes."""
    from hetsched.solvers import SOLVERS

    return SOLVERS


def serving_solver_names() -> Iterable[str]:
    """What `--solver` takes of `plan-serve`."""
    from hetsched.solvers.serving import SERVING_SOLVERS

    return ["auto", *SERVING_SOLVERS]


def cost_model_names() -> Iterable[str]:
    """What `--cost-model` takes."""
    from hetsched.cost import COST_MODELS

    return COST_MODELS


def any_cost_model_names() -> Iterable[str]:
    """What `--cost-model` takes where plans may be of either kind."""
    from hetsched.cost import COST_MODELS, SERVING_COST_MODELS

    return dict.fromkeys([*COST_MODELS, *SERVING_COST_MODELS])


def exporter_names() -> Iterable[str]:
    """What `--to` takes."""
    from hetsched.exporters import EXPORTERS, SERVING_EXPORTERS

    return [*EXPORTERS, *SERVING_EXPORTERS]


def search_options(function: Function) -> Function:
    """The options of every command that searches for a training plan."""
    return _search_options(function, solver_names, "auto", "local-search or pipeline-dp")


def serving_search_options(function: Function) -> Function:
    """The options of every command that searches for a serving plan."""
    return _search_options(function, serving_solver_names, "auto", "genetic or maxflow")


def _search_options(function: Function, names: Callable[[], Iterable[str]], usual: str, example: str) -> Function:
    options = (
        click.option(
            "--solver",
            type=OneOf(names),
            metavar="NAME",
            default=usual,
            show_default=True,
            help=f"How to search, e.g. {example}; an unknown name lists them all.",
        ),
        click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Equal seeds, equal plans."),
        click.option("--max-seconds", type=Positive(), help="Stop after so many seconds."),
        click.option("--max-steps", type=click.IntRange(1), help="Stop after so many steps; repeatable."),
    )
    return _apply(function, options)


def output_options(function: Function) -> Function:
    """--json and --quiet."""
    options = (
        click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of the table."),
        click.option("-q", "--quiet", is_flag=True, help="Print no table and no progress."),
    )
    return _apply(function, options)


def precision_options(function: Function) -> Function:
    """In how many bits a model is served: --dtype, --weight-bits and --kv-bits."""
    options = (
        click.option("--dtype", type=DTYPES, default="bf16", show_default=True, help="Of activations."),
        click.option("--weight-bits", type=BITS, default="16", show_default=True, help="Of weights."),
        click.option("--kv-bits", type=BITS, default="16", show_default=True, help="Of the KV cache."),
    )
    return _apply(function, options)


def cluster_option(what: str, named: str = "the one the plan names") -> Callable[[Function], Function]:
    """--cluster, for commands that read plans."""
    return click.option(
        "--cluster", "cluster_path", type=PATH, metavar="CLUSTER", help=f"{what} on this cluster.  [default: {named}]"
    )


def memory_fraction_option(default: float | None = None, of: str = "a plan may use") -> Callable[[Function], Function]:
    """--memory-fraction; without a default it is that of the plan that a command reads."""
    made = "  [default: as the plan was made]" if default is None else ""
    return click.option(
        "--memory-fraction",
        type=Positive(1),
        default=default,
        show_default=default is not None,
        help=f"The share of a GPU's memory {of}.{made}",
    )


def _apply(function: Function, options: Iterable[Callable[[Function], Function]]) -> Function:
    for option in reversed(list(options)):
        function = option(function)
    return function
