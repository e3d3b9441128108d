"""A serving workload as JSON: files speak milliseconds, all inside is seconds."""

from typing import Any

from hetsched.errors import HetschedError
from hetsched.fields import Fields
from hetsched.units import SECONDS_PER_MS
from hetsched.workload import DEFAULT_ISL, DEFAULT_OSL, WIDEST_SIGMA, Limit, ServingLoad, Slo, TraceUse

LONGEST = 10_000_000  # tokens of a request
PERCENTILE = 99.0
TIMES = ("ttft", "tpot", "e2e")


def read_load(source: Fields) -> ServingLoad:
    """A workload from its JSON. Raises HetschedError that names the place."""
    load = ServingLoad(
        isl=source.number("isl", DEFAULT_ISL, minimum=1.0, maximum=LONGEST),
        osl=source.number("osl", DEFAULT_OSL, minimum=1.0, maximum=LONGEST),
        rate_per_s=source.number("rate_per_s", above=0.0) if "rate_per_s" in source else None,
        isl_sigma=source.number("isl_sigma", 0.0, maximum=WIDEST_SIGMA),
        osl_sigma=source.number("osl_sigma", 0.0, maximum=WIDEST_SIGMA),
        trace=_trace(source) if "trace" in source else None,
        dtype=source.text("dtype", "bf16"),
        slo=_slo(source.child("slo")) if "slo" in source else Slo(),
    )
    source.finish()
    return load


def load_json(load: ServingLoad) -> dict[str, Any]:
    """A workload as plain numbers, strings and dicts; what `read_load` reads."""
    trace = load.trace
    return {
        "rate_per_s": load.rate_per_s,
        "isl": load.isl,
        "osl": load.osl,
        "isl_sigma": load.isl_sigma,
        "osl_sigma": load.osl_sigma,
        "trace": None
        if trace is None
        else {
            "name": trace.trace,
            "min_input_tokens": trace.min_input_tokens,
            "max_input_tokens": trace.max_input_tokens,
            "min_output_tokens": trace.min_output_tokens,
            "max_output_tokens": trace.max_output_tokens,
            "start_s": trace.start_s,
            "seconds": trace.seconds,
        },
        "dtype": load.dtype,
        "slo": _slo_json(load.slo),
    }


def _trace(source: Fields) -> TraceUse:
    if isinstance(source.raw("trace"), str):
        return TraceUse(source.text("trace"))
    trace = source.child("trace")
    use = TraceUse(
        trace=trace.text("name"),
        min_input_tokens=trace.integer("min_input_tokens", 1, maximum=LONGEST),
        max_input_tokens=trace.integer("max_input_tokens", maximum=LONGEST) if "max_input_tokens" in trace else None,
        min_output_tokens=trace.integer("min_output_tokens", 1, maximum=LONGEST),
        max_output_tokens=trace.integer("max_output_tokens", maximum=LONGEST) if "max_output_tokens" in trace else None,
        start_s=trace.number("start_s", 0.0),
        seconds=trace.number("seconds", above=0.0) if "seconds" in trace else None,
    )
    trace.finish()
    return use


def _slo(source: Fields) -> Slo:
    percentile = _percentile(source, "percentile", PERCENTILE)
    limits = {
        name: Limit(
            source.number(key, above=0.0) * unit,
            _percentile(source, f"{name}_percentile", percentile),
        )
        for name, key, unit in [*((name, f"{name}_ms", SECONDS_PER_MS) for name in TIMES), ("scale", "scale", 1.0)]
        if key in source
    }
    source.skip(*(f"{name}_percentile" for name in (*TIMES, "scale")))
    source.finish()
    return Slo(**limits)


def _percentile(source: Fields, key: str, default: float) -> float:
    value = source.number(key, default, above=0.0)
    if value > 100.0:
        raise HetschedError(f"{source.at(key)} is {value:g}", hint="a percentile is at most 100")
    return value


def _slo_json(slo: Slo) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, limit in slo.limits.items():
        found["scale" if name == "scale" else f"{name}_ms"] = limit.value / (1.0 if name == "scale" else SECONDS_PER_MS)
        found[f"{name}_percentile"] = limit.percentile
    return found
