"""Predicted against measured iterations over emulated wide-area networks: `python -m tests.benchmarks.bench_wan`.

Each case is a network, and plans for it. The network is emulated (`bench_wan_network`), each rank runs the executor in
its node's namespace on an emulated device (`bench_wan_rank`) whose speed is measured first as `hetsched probe
--compute` does. The median iteration is put beside what the cost model and the simulator say. Needs root; says why
where it can't run.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hetsched.cluster import Cluster
from hetsched.cost.training import Roofline
from hetsched.executor import RunReport, RunSettings, run_plan
from hetsched.model import ModelSpec
from hetsched.plan import Compression, Options, Pipeline, Plan, Stage
from hetsched.readers import read_cluster
from hetsched.simulate.training import simulate_iteration
from hetsched.workload import TrainingJob
from tests.benchmarks.bench_wan_network import DEVICE, emulated, missing
from tests.benchmarks.bench_wan_rank import PROBE

MODEL = ModelSpec.from_json(
    {
        "name": "small",
        "num_layers": 8,
        "hidden_size": 64,
        "num_heads": 4,
        "num_kv_heads": 2,
        "ffn_size": 128,
        "vocab_size": 256,
        "max_positions": 64,
    }
)
JOB = TrainingJob(global_batch=64, seq_len=64, micro_batch=8, dtype="fp32")
KIND = "core"  # of the emulated devices, in the cluster file
PAYLOAD = 8948 / 9000  # what a packet of the emulated networks carries, and so a measurement of bandwidth finds
RANK = (sys.executable, "-m", "tests.benchmarks.bench_wan_rank")
EPOCH, WARM, COUNTED = 2, 3, 9  # steps: of an epoch, left out, and counted


@dataclass(frozen=True, slots=True)
class Network:
    """Nodes of one device each, with their cities, and gbps and ms inside a city and between two."""

    cities: tuple[str, ...]
    inside: tuple[float, float]
    between: dict[tuple[str, str], tuple[float, float]]

    def link(self, i: int, j: int) -> tuple[float, float]:
        """(gbps, ms) from node i to node j."""
        a, b = self.cities[i], self.cities[j]
        if a == b:
            return self.inside
        return self.between[a, b] if (a, b) in self.between else self.between[b, a]

    def matrix(self, which: int, scale: float) -> list[list[float]]:
        """Bandwidths (0) or latencies (1) between all nodes; 1 Gbit/s and nothing to a node itself, never used."""
        size = range(len(self.cities))
        return [[(self.link(i, j) if i != j else (1.0, 0.0))[which] * scale for j in size] for i in size]


@dataclass(frozen=True, slots=True)
class Case:
    """A plan on a network; cases of one `group` are ranked against one another. plain: the same, not compressed."""

    group: str
    name: str
    network: Network
    pipelines: tuple[tuple[tuple[tuple[int, int], int], ...], ...]  # of each stage: layers, node
    micro_batches: tuple[int, ...]
    options: Options = Options()
    plain: str | None = None


TWO_CITIES = Network(("a", "a", "b", "b"), (0.2, 2), {("a", "b"): (0.02, 20)})
THREE_CITIES = Network(
    ("a", "b", "c"), (0.4, 2), {("a", "b"): (0.03, 10), ("b", "c"): (0.02, 30), ("a", "c"): (0.01, 40)}
)
ONE_LINK = Network(("a", "b"), (0.4, 2), {("a", "b"): (0.1, 5)})
SLOW_LINK = Network(("a", "b"), (0.4, 2), {("a", "b"): (0.015, 40)})
SMALL = Compression(4, 8, 16)

CASES = (
    Case(
        "two cities",
        "data parallel across",
        TWO_CITIES,
        ((((0, 4), 0), ((4, 8), 1)), (((0, 4), 2), ((4, 8), 3))),
        (4, 4),
    ),
    Case(
        "two cities", "pipelines across", TWO_CITIES, ((((0, 4), 0), ((4, 8), 2)), (((0, 4), 1), ((4, 8), 3))), (4, 4)
    ),
    Case("two cities", "one chain", TWO_CITIES, ((((0, 2), 0), ((2, 4), 1), ((4, 6), 2), ((6, 8), 3)),), (8,)),
    Case("three cities", "unequal stages", THREE_CITIES, ((((0, 1), 0), ((1, 6), 1), ((6, 8), 2)),), (8,)),
    Case("three cities", "unequal pipelines", THREE_CITIES, ((((0, 5), 0), ((5, 8), 1)), (((0, 8), 2),)), (6, 2)),
    Case(
        "three cities",
        "data parallel",
        THREE_CITIES,
        ((((0, 8), 0),), (((0, 8), 1),), (((0, 8), 2),)),
        (3, 3, 2),
    ),
    Case(
        "three cities",
        "data parallel, 4 bits",
        THREE_CITIES,
        ((((0, 8), 0),), (((0, 8), 1),), (((0, 8), 2),)),
        (3, 3, 2),
        Options(compression=Compression(16, 16, 4)),
        "data parallel",
    ),
    Case("one link", "full", ONE_LINK, ((((0, 1), 0), ((1, 2), 1)),), (8,)),
    Case("one link", "4 and 8 bits", ONE_LINK, ((((0, 1), 0), ((1, 2), 1)),), (8,), Options(compression=SMALL), "full"),
    Case("slow link", "pipeline", SLOW_LINK, ((((0, 4), 0), ((4, 8), 1)),), (8,), Options("gpipe")),
    Case(
        "slow link",
        "pipeline, 4 and 8 bits",
        SLOW_LINK,
        ((((0, 4), 0), ((4, 8), 1)),),
        (8,),
        Options("gpipe", compression=SMALL),
        "pipeline",
    ),
    Case("slow link", "data parallel", SLOW_LINK, ((((0, 8), 0),), (((0, 8), 1),)), (4, 4)),
    Case(
        "slow link",
        "data parallel, 4 bits",
        SLOW_LINK,
        ((((0, 8), 0),), (((0, 8), 1),)),
        (4, 4),
        Options(compression=Compression(16, 16, 4)),
        "data parallel",
    ),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Seconds of an iteration."""

    case: Case
    predicted_s: float
    simulated_s: float
    measured_s: float


def plan_of(case: Case) -> Plan:
    """The case's plan, for as many layers as its stages have."""
    model = replace(MODEL, num_layers=case.pipelines[0][-1][0][1])
    pipelines = tuple(
        Pipeline(f"p{number}", tuple(Stage(layers, (f"n{node}/0",)) for layers, node in stages), count)
        for number, (stages, count) in enumerate(zip(case.pipelines, case.micro_batches, strict=True))
    )
    return Plan(model, JOB, pipelines, case.options)


def cluster_of(network: Network, folder: Path, profile: dict[str, Any]) -> Cluster:
    """The network as a person would describe it, by the cluster file."""
    (folder / "profile.json").write_text(json.dumps(profile), encoding="utf-8")
    names = [f"n{node}" for node in range(len(network.cities))]
    core = {"kind": KIND, "memory_gib": 8, "tflops": 0.1, "memory_gbytes_per_s": 10}
    spec = {
        "name": "emulated",
        "nodes": [
            {"name": name, "region": city, "gpu": core} for name, city in zip(names, network.cities, strict=True)
        ],
        "network": {
            "inside_node": {"bandwidth_gbps": 10, "latency_ms": 0.01},
            "bandwidth_matrix": {"names": names, "rows": network.matrix(0, PAYLOAD), "unit": "Gbit/s"},
            "latency_matrix": {"names": names, "rows": network.matrix(1, 1.0), "unit": "ms"},
        },
        "profiles": ["profile.json"],
    }
    (folder / "cluster.yaml").write_text(json.dumps(spec), encoding="utf-8")  # JSON is YAML
    return read_cluster(folder / "cluster.yaml")


def probe(folder: Path) -> dict[str, Any]:
    """A profile of the emulated device."""
    path = folder / "probed.json"
    subprocess.run([*RANK, PROBE, str(path)], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    profile: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return profile


def measure(case: Case) -> float:
    """Median seconds of an iteration on the emulated network, of the slowest rank."""
    plan = plan_of(case)
    os.environ["WAN_NODES"] = ",".join(node[1:] for node in plan.devices_by_node)
    os.environ["GLOO_SOCKET_IFNAME"] = DEVICE
    repeats = plan.options.compression != Compression()
    settings = RunSettings(
        steps=WARM + COUNTED, device="cpu", dtype="fp32", timeout_s=240, epoch_steps=EPOCH if repeats else None
    )
    with emulated(case.network.matrix(0, 1e9 / 8), case.network.matrix(1, 1e-3)):
        report: RunReport = run_plan(plan, settings, program=RANK)
    return max(statistics.median(step.iteration_s for step in steps[WARM:]) for steps in report.ranks)


def outcomes(cases: Sequence[Case], repeats: int) -> list[Outcome]:
    """Every case, predicted and measured; progress on stderr."""
    found = []
    with tempfile.TemporaryDirectory() as name:
        profile = probe(Path(name))
        for part, times in profile["profiles"][0].items():
            if part.endswith("_s"):
                sys.stderr.write(f"{part}: {', '.join(f'{seconds * 1e3:.2f} ms' for seconds in times)}\n")
        for case in cases:
            cluster, plan = cluster_of(case.network, Path(name), profile), plan_of(case)
            predicted = Roofline().price(cluster, plan).iteration_s
            simulated = simulate_iteration(cluster, plan).iteration_s
            measured = statistics.median(measure(case) for _ in range(repeats))
            found.append(Outcome(case, predicted, simulated, measured))
            sys.stderr.write(f"{case.group}, {case.name}: {predicted:.3f} {simulated:.3f} {measured:.3f}\n")
    return found


def report_on(found: Sequence[Outcome]) -> str:
    """The table, the errors, and whether the fastest of each group is the one predicted."""
    lines = [
        f"{'network':<13} {'plan':<24} {'predicted':>10} {'simulated':>10} {'measured':>10} {'error':>7} {'sim.':>7}"
    ]
    errors, apart = [], []
    for one in found:
        error, off = one.predicted_s / one.measured_s - 1, one.simulated_s / one.measured_s - 1
        errors.append(abs(error))
        apart.append(abs(off))
        lines.append(
            f"{one.case.group:<13} {one.case.name:<24} {one.predicted_s:8.3f} s {one.simulated_s:8.3f} s "
            f"{one.measured_s:8.3f} s {error:+7.1%} {off:+7.1%}"
        )
    lines.append(f"predicted: {statistics.fmean(errors):.1%} off on average, {max(errors):.1%} at worst")
    lines.append(f"simulated: {statistics.fmean(apart):.1%} off on average, {max(apart):.1%} at worst")
    for group in dict.fromkeys(one.case.group for one in found):
        same = [one for one in found if one.case.group == group]
        if len(same) > 1:
            best = min(same, key=lambda one: one.predicted_s)
            right = best is min(same, key=lambda one: one.measured_s)
            lines.append(
                f"{group}: the plan predicted fastest ({best.case.name}) is {'' if right else 'NOT '}the fastest"
            )
    known = {(one.case.group, one.case.name): one for one in found}
    for one in found:
        plain = known.get((one.case.group, one.case.plain or ""))
        if plain is not None:
            promised, kept = plain.predicted_s / one.predicted_s, plain.measured_s / one.measured_s
            lines.append(
                f"{one.case.group}, {one.case.name}: {kept:.2f} times as fast as {plain.case.name}, "
                f"predicted {promised:.2f} ({promised / kept - 1:+.1%})"
            )
    return "\n".join(lines)


def main() -> int:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", metavar="GROUP", help="the cases of one network")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each plan, of which the median counts")
    given = parser.parse_args()
    why = missing()
    if why:
        sys.stdout.write(f"skipped: {why}\n")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # no namespace is left behind
    cases = [case for case in CASES if given.only in (None, case.group)]
    sys.stdout.write(report_on(outcomes(cases, given.repeats)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
