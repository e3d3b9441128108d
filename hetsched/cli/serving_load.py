"""What a serving plan is to serve: the options that say so, and the requests that come of them."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hetsched.cli.options import Function, Positive

if TYPE_CHECKING:
    from hetsched.cost.serving.replica import ReplicaTimes
    from hetsched.model import ModelSpec
    from hetsched.plan import ServingPlan
    from hetsched.requests import Requests
    from hetsched.workload import ServingLoad, Slo, TraceUse

SAMPLED = 1000  # requests, where there is no trace that says how many
MOST_REQUESTS = 1_000_000  # of a simulation
PERCENTILE = 99.0
TOKENS = click.IntRange(1)
ARRIVALS = ("trace", "poisson")


@dataclass(frozen=True)
class Drawing:
    """How requests come of a load: how many (None: all of a trace, or SAMPLED), from which seed, arriving how."""

    count: int | None = None
    seed: int = 0
    arrivals: str = "trace"


def load_options(function: Function) -> Function:
    """The options that change a load; they arrive as `load`, a mapping for `load_of`."""
    options = (
        click.option("--rate", type=Positive(), metavar="R", help="Requests a second."),
        click.option(
            "--trace", metavar="FILE", help="Requests of a trace: a file, azure-2023-conv or azure-2023-code."
        ),
        click.option("--isl", type=TOKENS, metavar="N", help="Tokens of a prompt, on average."),
        click.option("--osl", type=TOKENS, metavar="N", help="Tokens of an output, on average."),
        click.option("--max-input-tokens", type=TOKENS, metavar="N", help="Leave longer prompts of the trace out."),
        click.option("--max-output-tokens", type=TOKENS, metavar="N", help="Leave longer outputs of the trace out."),
        click.option(
            "--class",
            "request_class",
            type=click.Choice(["HPHD", "HPLD", "LPHD", "LPLD"]),
            help="Of the trace: heavy (over 512 tokens) or light prefill, heavy (over 128) or light decode.",
        ),
        click.option("--start-s", type=click.FloatRange(0), metavar="S", help="Cut the trace: begin here."),
        click.option("--seconds", type=Positive(), metavar="S", help="Cut the trace: so many seconds."),
        click.option("--slo-ttft-ms", type=Positive(), metavar="MS", help="Limit on the time to the first token."),
        click.option("--slo-tpot-ms", type=Positive(), metavar="MS", help="Limit on the time per output token."),
        click.option("--slo-e2e-ms", type=Positive(), metavar="MS", help="Limit on a request's whole time."),
        click.option(
            "--slo-scale", type=Positive(), metavar="X", help="Limit on it over what it takes alone on A100-40GBs."
        ),
        click.option(
            "--slo-percentile", type=Positive(100), metavar="P", help="Of requests within the limits.  [default: 99]"
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


WINDOW_KEYS = ("max_input_tokens", "max_output_tokens", "request_class", "start_s", "seconds")
SLO_KEYS = ("slo_ttft_ms", "slo_tpot_ms", "slo_e2e_ms", "slo_scale", "slo_percentile")
LOAD_KEYS = ("rate", "trace", "isl", "osl", *WINDOW_KEYS, *SLO_KEYS)


def load_of(given: Mapping[str, Any], base: "ServingLoad") -> "ServingLoad":
    """A load with what was given on the command line (the keys of LOAD_KEYS) in the place of the base's.

    Lengths given make requests of these lengths, where the base has a trace too; a trace given comes at its own rate
    unless that is given too. Raises HetschedError for options of a trace without one.
    """
    from hetsched.errors import HetschedError

    lengths: dict[str, Any] = {key: float(given[key]) for key in ("isl", "osl") if given.get(key) is not None}
    lengths |= {f"{key}_sigma": 0.0 for key in lengths}
    trace = None if lengths and given.get("trace") is None else base.trace
    if given.get("trace") is not None:
        if lengths:
            raise HetschedError("--trace has lengths of its own", hint="leave out --isl and --osl, or --trace")
        trace = _trace(given["trace"])
    window = {key: given[key] for key in WINDOW_KEYS if given.get(key) is not None}
    if window:
        if trace is None:
            option = "--class" if "request_class" in window else "--" + next(iter(window)).replace("_", "-")
            raise HetschedError(f"{option} is for a trace, and there is none", hint="give --trace FILE")
        if "request_class" in window:
            window = _class_limits(window.pop("request_class"), window)
        trace = replace(trace, **window)
    rate = given["rate"] if given.get("rate") is not None or given.get("trace") is not None else base.rate_per_s
    return replace(base, **lengths, trace=trace, rate_per_s=rate, slo=_slo(given, base.slo))


def _class_limits(name: str, window: dict[str, Any]) -> dict[str, Any]:
    """The window with a class's limits on lengths; a tighter limit that was given stays."""
    from hetsched.requests import HEAVY_INPUT_TOKENS, HEAVY_OUTPUT_TOKENS

    found = dict(window)
    ends = (("input_tokens", name[0], HEAVY_INPUT_TOKENS), ("output_tokens", name[2], HEAVY_OUTPUT_TOKENS))
    for key, weight, most_light in ends:
        if weight == "H":
            found[f"min_{key}"] = most_light + 1
        else:
            found[f"max_{key}"] = min(most_light, window.get(f"max_{key}", most_light))
    return found


def _trace(name: str) -> "TraceUse":
    from hetsched.workload import TraceUse

    return TraceUse(name)


def _slo(given: Mapping[str, Any], base: "Slo") -> "Slo":
    from hetsched.errors import HetschedError
    from hetsched.units import SECONDS_PER_MS
    from hetsched.workload import Limit

    percentile = given.get("slo_percentile")
    limits = dict(base.limits)
    if percentile is not None:
        limits = {name: replace(limit, percentile=percentile) for name, limit in limits.items()}
    for name in ("ttft", "tpot", "e2e", "scale"):
        value = given.get("slo_scale" if name == "scale" else f"slo_{name}_ms")
        if value is not None:
            unit = 1.0 if name == "scale" else SECONDS_PER_MS
            limits[name] = Limit(value * unit, PERCENTILE if percentile is None else percentile)
    if percentile is not None and not limits:
        raise HetschedError("--slo-percentile is of limits, and there are none", hint="give --slo-ttft-ms or another")
    return replace(base, **limits)


def requests_of(load: "ServingLoad", model: "ModelSpec", folder: Path, drawing: Drawing) -> "Requests":
    """The requests of a load: of its trace, cut and at its rate, or drawn.

    folder: where the trace's path may start, besides here. Those of a trace that are longer than the model's positions
    are left out, with a warning. Raises HetschedError where even mean lengths, or all requests, are longer.
    """
    import numpy as np

    from hetsched.errors import HetschedError, HetschedWarning
    from hetsched.readers import read_trace
    from hetsched.requests import sampled

    rng = np.random.default_rng(drawing.seed)
    positions = f"the {model.max_positions:,} positions of {model.name}"
    if load.trace is None:
        if load.isl + load.osl > model.max_positions:
            raise HetschedError(
                f"{load.isl:,.0f} tokens in and {load.osl:,.0f} out are more than {positions}",
                hint="a smaller --isl or --osl, or another model",
            )
        return sampled(load, drawing.count or SAMPLED, rng, model.max_positions)
    requests = read_trace(load.trace.trace, folder).used(load.trace)
    shortest = int((requests.input_tokens + requests.output_tokens).min())
    if shortest > model.max_positions:
        raise HetschedError(
            f"{requests.name}: its shortest request has {shortest:,} tokens, more than {positions}",
            hint="another trace, or another model",
        )
    fitting = requests.within(model.max_positions)
    if len(fitting) < len(requests):
        warnings.warn(
            f"{requests.name}: {len(requests) - len(fitting):,} of {len(requests):,} requests are longer than "
            f"{positions} and left out",
            HetschedWarning,
            stacklevel=2,
        )
    if drawing.arrivals == "poisson":
        return fitting.drawn(drawing.count or len(fitting), load.rate_per_s or fitting.rate_per_s, rng)
    if drawing.count is not None:
        fitting = fitting.first(drawing.count)
    return fitting if load.rate_per_s is None else fitting.at_rate(load.rate_per_s)


def reference_of(plan: "ServingPlan", slo: "Slo") -> "ReplicaTimes | None":
    """What an SLO scale refers to; None where the objectives have none."""
    if slo.scale is None:
        return None
    from hetsched.catalog import find_gpu
    from hetsched.cost.serving.reference import REFERENCE_GPU, reference_replica

    return reference_replica(find_gpu(REFERENCE_GPU, "SLO scale"), plan.model, plan.precision)
