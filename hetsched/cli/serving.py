"""Pricing and playing serving plans, for the commands that do."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hetsched.cli.output import ProgressLine, heading, say, say_json
from hetsched.cli.serving_load import Drawing, reference_of, requests_of
from hetsched.cluster import Cluster
from hetsched.cost import SERVING_COST_MODELS
from hetsched.cost.serving.plan_cost import price_serving
from hetsched.cost.serving.steady import Traffic
from hetsched.errors import HetschedError
from hetsched.plan import ServingPlan
from hetsched.report.serving_rates import evaluated_rate
from hetsched.report.serving_table import serving_table
from hetsched.requests import Requests
from hetsched.simulate.serving.limits import highest_rate, saturated_per_s
from hetsched.simulate.serving.prediction import play, prediction
from hetsched.simulate.serving.result import ServingRun
from hetsched.simulate.serving.run import Settings
from hetsched.workload import LEAST_RATE, MOST_RATE, ServingLoad

EVALUATED = 2000  # requests that `evaluate` plays
HEALTHY = 0.8  # of the capacity: the rate whose latencies are told where none is asked for


@dataclass(frozen=True)
class Player:
    """Plays a serving plan for a command.

    folder: where the plan file is, and so perhaps its trace; drawing: how requests come of a load. Methods raise
    HetschedError as the parts do.
    """

    cluster: Cluster
    plan: ServingPlan
    folder: Path
    drawing: Drawing
    memory_fraction: float
    quiet: bool
    settings: Settings = Settings()

    def played(self, load: ServingLoad) -> tuple[ServingRun, dict[str, Any]]:
        """The plan's simulation under a load, and its `predicted` object."""
        plan, requests, record = replace(self.plan, workload=load), self._requests(load), self.settings.record
        if record is not None and record >= len(requests):
            raise HetschedError(
                f"there is no request {record}: there are {len(requests):,}", hint="they are counted from 0"
            )
        cost = price_serving(self.cluster, plan, self.memory_fraction, Traffic.of_requests(requests))
        with ProgressLine("simulate", self.quiet, "requests") as line:
            run = play(self.cluster, plan, requests, self.settings, self.memory_fraction, line.part)
        return run, prediction(self.cluster, cost, run, reference_of(plan, load.slo))

    def highest_rate(self, load: ServingLoad) -> float:
        """The highest rate at which the load's objectives hold and the plan keeps up; HetschedError without any."""
        if not load.slo.limits:
            raise HetschedError(
                "--find-rate needs limits that are to hold", hint="give --slo-ttft-ms, --slo-tpot-ms or another"
            )
        reference, lengths = reference_of(self.plan, load.slo), self._requests(load)
        cost = price_serving(self.cluster, self.plan, self.memory_fraction, Traffic.of_requests(lengths))
        with ProgressLine("find rate", self.quiet, "requests") as line:

            def run(requests: Requests) -> ServingRun:
                return play(self.cluster, self.plan, requests, self.settings, self.memory_fraction, line.part)

            most = MOST_RATE if load.slo.bounds_requests else saturated_per_s(run(lengths.at_once()))

            def holds(rate_per_s: float) -> bool:
                if not LEAST_RATE <= rate_per_s <= most:
                    return False
                return run(self._requests(replace(load, rate_per_s=rate_per_s))).keeps(load.slo, reference)

            return highest_rate(holds, min(cost.capacity_per_s or 1.0, most))

    def _requests(self, load: ServingLoad) -> Requests:
        return requests_of(load, self.plan.model, self.folder, self.drawing)


def evaluate_serving(
    cluster: Cluster,
    plan: ServingPlan,
    folder: Path,
    cost_model: str,
    memory_fraction: float,
    as_json: bool,
    quiet: bool,
) -> None:
    """Price a serving plan and print it."""
    predicted = evaluated(cluster, plan, folder, cost_model, memory_fraction, quiet)
    if as_json:
        say_json(predicted)
    elif not quiet:
        rate = evaluated_rate(plan, predicted)
        say(serving_table(replace(plan, predicted=predicted), cluster, emphasise=heading, rate=rate))


def evaluated(
    cluster: Cluster, plan: ServingPlan, folder: Path, cost_model: str, memory_fraction: float, quiet: bool
) -> dict[str, Any]:
    """A serving plan's `predicted` object: its steady state, and a simulation of EVALUATED requests.

    Where no rate is asked for, rates and money are those of the steady state at its capacity, and latencies are of
    HEALTHY of that.
    """
    if cost_model != next(iter(SERVING_COST_MODELS)):
        return SERVING_COST_MODELS[cost_model](memory_fraction).price(cluster, plan).predicted()
    load = plan.workload
    requests = requests_of(load, plan.model, folder, Drawing(EVALUATED))
    cost = price_serving(cluster, plan, memory_fraction, Traffic.of_requests(requests))
    rate = HEALTHY * cost.capacity_per_s
    unasked = load.rate_per_s is None and load.trace is None and rate > 0.0
    if unasked:
        requests = requests_of(replace(load, rate_per_s=rate), plan.model, folder, Drawing(EVALUATED))
    with ProgressLine("evaluate", quiet, "requests") as line:
        run = play(cluster, plan, requests, memory_fraction=memory_fraction, watch=line.part)
    predicted = prediction(cluster, cost, run, reference_of(plan, load.slo))
    if unasked:
        steady = cost.predicted()
        predicted |= {key: steady[key] for key in ("requests_per_s", "output_tokens_per_s", "usd_per_million_tokens")}
        note = f"no rate is asked for: latencies are at {rate:.3g} requests/s, {HEALTHY:.0%} of what it could serve"
        predicted["notes"] = [note, *predicted["notes"]]
    return predicted
