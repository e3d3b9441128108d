"""A simulated iteration for a person at a terminal of 80 columns."""

from collections.abc import Callable

from hetsched.report.text import bar, bullet, columns, cut, joined_ranges, seconds
from hetsched.simulate.stages import StageTimes
from hetsched.simulate.training import Simulation

SHOWN_STAGES = 40
LONGEST_NAME, LONGEST_DEVICE, BAR = 12, 14, 8
EQUAL = 5e-4  # relative: below, two times are the same to a reader


def simulation_table(
    simulation: Simulation, model_s: float, apart_s: float | None, emphasise: Callable[[str], str] = str
) -> str:
    """The iteration as simulated, beside what the cost model says, and what each stage did.

    model_s: the cost model's iteration; apart_s: the simulated one with kinds of traffic kept apart, where it is known.
    """
    plan = simulation.placement.plan
    head = f"{plan.model.name} on {simulation.placement.cluster.name}: "
    lines = [
        emphasise(f"{head}{seconds(simulation.iteration_s)} an iteration, played event by event"),
        f"  the cost model says {seconds(model_s)}: {_difference(simulation.iteration_s, model_s)}",
        bullet(_why(simulation, model_s, apart_s), "  "),
        f"  {simulation.happened:,} events",
    ]
    return "\n\n".join(
        ["\n".join(lines), f"{emphasise('What each stage does, in shares of the iteration')}\n{_stages(simulation)}"]
    )


def _difference(simulated_s: float, model_s: float) -> str:
    change = simulated_s / model_s - 1 if model_s else 0.0
    if abs(change) < EQUAL:
        return "the same"
    return f"the simulation is {abs(change):.1%} {'longer' if change > 0 else 'shorter'}"


def _why(simulation: Simulation, model_s: float, apart_s: float | None) -> str:
    if simulation.exact:
        return "exact: true (no network of a node ever carries more than one transfer at once)"
    text = "exact: false (networks of nodes carry several transfers at once; the model gives each a fixed share)"
    if apart_s is not None:
        text += (
            f"; activations, their gradients and weights' gradients meet in one network: kept apart, the simulation "
            f"takes {seconds(apart_s)}"
        )
    return text


def _stages(simulation: Simulation) -> str:
    """Shares by stage; pipelines that read alike stand once."""
    plan, total = simulation.placement.plan, simulation.iteration_s or 1.0
    alike: dict[tuple[tuple[str, str, str], ...], list[int]] = {}
    for p, line in enumerate(simulation.stages):
        alike.setdefault(tuple(_shares(times, total) for times in line), []).append(p)
    rows = []
    for cells, numbers in alike.items():
        names = joined_ranges([plan.pipelines[p].name for p in numbers])
        label = names if len(names) <= LONGEST_NAME else f"{len(numbers)} pipelines"
        first = plan.pipelines[numbers[0]].stages
        for s, shares in enumerate(cells):
            device = first[s].devices[0] + (f" ×{len(first[s].devices)}" if len(first[s].devices) > 1 else "")
            busy = simulation.stages[numbers[0]][s].busy_s / total
            rows.append(
                [
                    f"  {label if s == 0 else ''}",
                    s,
                    cut(device, LONGEST_DEVICE),
                    *(share.rjust(6) for share in shares),
                    bar(busy, BAR),
                ]
            )
    hidden = len(rows) - SHOWN_STAGES
    heads = ["  pipeline", "stage", "first GPU", "computes", "communicates", "waits", ""]
    table = columns(heads, rows[:SHOWN_STAGES])
    return table if hidden <= 0 else f"{table}\n  and {hidden} more stages, in --json"


def _shares(times: StageTimes, total_s: float) -> tuple[str, str, str]:
    busy, talking = times.busy_s / total_s, times.communicating_s / total_s
    return f"{busy:.1%}", f"{talking:.1%}", f"{max(0.0, 1.0 - busy - talking):.1%}"
