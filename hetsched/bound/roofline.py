"""A lower bound under `roofline`: no plan that fits has a shorter iteration.

Plans are told apart by what they fix for all pipelines (micro-batch size, schedule, recompute, ZeRO), by the class of
their slowest team (`speed_levels`), and by D, how many pipelines they have. For each such cell, `Cell.possible` says
whether what follows leaves room for a plan that ends by T. The bound is the largest T found, by bisection, at which it
leaves none in any cell: every plan is in a cell, so none ends by T.

A pipeline has S stages and does m micro-batches. Stage s holds l_s blocks (L in all), and works f_s + b_s = w_s a
micro-batch; a message takes u_s to the next stage, and d_s back. C = sum w_s + H, H = sum (u_s + d_s). E_s is when the
stage ends its last backward; after it come all-reduces and the optimiser's step, q_s in all, so T >= E_s + q_s.
V_s >= w is the team's best speed in blocks a second, w the class's slowest, so V_s w_s >= l_s, and summed over a
pipeline sum V_s w_s >= L' = L + what embedding and head count as blocks.

1. E_s >= m w_s: all its work.
2. In 1F1B stage 0 begins forward i + S after backward i, and from forward i until backward i at least C goes by. Take
   i = 0, S, 2 S, ...: k = ceil(m / S) such rounds follow one another. After the last, stage s still has
   r = (m - 1) mod S backwards to do: E_s >= k C - sum_{j < s} (b_j + d_j) + r b_s.
3. Add up (V_s - w) times 1 and w times 2, over s. k S = m + S - 1 - r, and (S - 1 - r) sum w_s >= (S - 1 - r) sum b_s
   outweighs what of the b_j is taken away (at most S - 1 of each, r + S - 1 - r are added). Each d_j keeps a factor of
   at least 1, so the least hops may stand for all:
       T V >= m (L' + w H) - w sum_j (S - 1 - j) d_j + w sum q_s,      V = sum V_s.
   In GPipe stage s ends all forwards, and the last micro-batch's goes to the end, before the first gradient returns:
   E_s >= m w_s + sum_j f_j - f_s + sum u_j + sum_{j >= s} d_j, so with weights V_s on m w_s and w on the rest
       T V >= m L' + w ((S - 1) sum f_j + S sum u_j + sum_j (j + 1) d_j) + w sum q_s,
   and a link carries m messages there before any back: T >= m (busy there + busy back). In 1F1B it carries them both
   ways at once: T >= C + (m - 1) (busy there + busy back) / 2.
4. All-reduces. A stage of B bytes of gradients, in groups of one block or more, takes at least a + c B: the least time
   is concave in the bytes, so it is above the chord from one block to all. So sum q_s >= S a + c (all bytes), and a
   tied embedding counts on the first and the last stage. ZeRO 3's gathers are half such times, or more, before each
   forward and each backward.
5. A tied embedding comes last, and stage 0 ends its backwards last, E_0 >= m w_s for all s and E_0 >= (m / S) C: so
   (T - its all-reduce - that of one block) V >= m (L' + w H), and T less these is C or more in both schedules. `rounds`
   has more such paths, with the time that a schedule takes to fill and to drain.
6. Parts (nodes; regions; groups of regions). Call a block's group local where all its members stand in one part, and
   let K parts have local blocks. K = 0: all are reduced across parts. Else z is the share of blocks that are not local,
   each part among the K has D seats or more, and every pipeline visits them all: at least K - 1 of its hops go across.
   By 1 on the seats of local blocks, T V_K >= (1 - z) (M L + w D c (bytes of all blocks)), V_K of the K fastest parts,
   M micro-batches in all; which says how small z can be.
   K = 1: a pipeline has all its seats in the part, or leaves it, going across.
   Let o be the stages outside the K parts of the pipeline that has most of them there. Each of these is in a group of
   its own that is not local, with a block or more: z >= o / L; where o = 0 the K parts do all, as if z were 0. Every
   pipeline has a seat in each of these groups: of all it takes whatever its bytes are, sum q_s has o times. And as none
   has more than o stages outside, the K parts have V less o times the fastest team's speed of it, or more, of what they
   have: V_K.
   Of nested divisions all this holds at once. What is local in a finer one is so in a coarser one: there z and o are
   not more, and K is 1 or more if it is so in the finer one. Where K = 1 in some, pipelines keep to the smallest part,
   or to a larger one around it, or leave that over the links of its division. A group takes a + c (its bytes) or more,
   with any group's a and c, and those of each division where it is not local. So each block takes the dearest c of
   these; and a group that is not local in one takes, besides, the least a of this and coarser ones less any group's,
   unless a finer one's c is dearer: then less the difference, for all bytes at most.
   However that be, S stages in parts of at most n devices go across ceil(S / n) - 1 times.
   The tied embedding's group has the first and the last seat of every pipeline, so those of the first and the last
   block's groups. It goes across; or these two are local, in one part: so K >= 1, and what leaves this part comes back,
   K hops across where K >= 2, and 2 where K = 1.
7. Together: 3, 5 and `rounds` say how many micro-batches m <= g(S, V) a pipeline does, g the least of some lines in V
   and of what does not depend on it, with V between w S and the fastest team's speed times S. The pipelines' V add up
   to at most that of all devices, so for any price x >= 0
       M <= x V_all + D max over S and V of (g(S, V) - x V).
   So do prices for what they have in the K parts of each division besides. Some are tried, or the best are found
   (`capacity`, `duality`); a cell where this fails has no plan. K and o are told apart in ever smaller ranges.
   A team wastes what its devices could add to other teams. Of a pipeline whose fastest team is of a class of speeds
   one team wastes at least what one of this class or a faster one does; w and the rest are those of its own teams.
   Lean pipelines waste nothing: their teams have few GPUs. Where there is one, each block's ring has a lean team, so
   one of its steps from node to node has no more flows than such a team, or than the smaller of two around it in one
   node. Else all pipelines waste. If of one of several stages the first or the last team does not, a tied embedding's
   ring has this. Else both do in all of them.
8. What all that stands in a node sends over its network: `nodes`; of few nodes, each by itself: `few_nodes`.
"""

from collections.abc import Iterator
from functools import cache, partial
from itertools import product

import numpy as np

from hetsched.bound.capacity import SLACK
from hetsched.bound.cells import Cell, Flags
from hetsched.bound.few_nodes import MOST_NODES, FewNodes
from hetsched.bound.kin import Kin
from hetsched.bound.late import Late
from hetsched.bound.links import Links, divisions_of, reaches
from hetsched.bound.node_classes import forward_share, node_classes
from hetsched.bound.node_rows import Load
from hetsched.bound.nodes import NodeNetworks
from hetsched.bound.room import device_bytes
from hetsched.bound.seats import Seats
from hetsched.bound.sizes import MessageSizes
from hetsched.bound.speeds import SpeedLevel, speed_levels
from hetsched.cost.memory import hidden_bytes
from hetsched.plan import Options
from hetsched.problem import Problem
from hetsched.workload import TrainingJob

ACCURACY = 1e-3
ROUGHLY = 0.02  # with lines alone
GROWTH = 1.15
LONGEST_S = 1e12

Choice = tuple[Cell, Flags]  # a cell, and which of its numbers of pipelines


def cells_of(problem: Problem, memory_fraction: float) -> Iterator[Cell]:
    """The cells of all plans. ZeRO 2 takes no more time than 0 and 1, and less memory."""
    choices = problem.choices
    zeros = (2, 3) if choices.zero is None else (choices.zero,)
    recomputes = (False, True) if choices.recompute is None else (choices.recompute,)
    smallest = TrainingJob(problem.job.global_batch, problem.job.seq_len, min(problem.micro_batches), problem.job.dtype)
    divisions = divisions_of(problem.cluster, hidden_bytes(problem.model, smallest))
    divided = cache(partial(reaches, problem.cluster, divisions))
    most = max(len(node.gpus) for node in problem.cluster.nodes)
    for size, recompute in product(problem.micro_batches, recomputes):
        job = TrainingJob(problem.job.global_batch, problem.job.seq_len, size, problem.job.dtype)
        sizes = MessageSizes.of(problem.model, job, choices.compression)
        tight: dict[Options, FewNodes | None] = {}  # of all levels
        for level in speed_levels(problem.cluster, problem.model, job, recompute):
            for schedule in problem.schedules:
                links = divided(most)[0].links
                networks = _networks(problem, job, schedule, sizes, level, links)
                for zero in zeros:
                    options = Options(schedule, recompute, zero, choices.compression)
                    kin = Kin(problem, job, options, level, memory_fraction, sizes)
                    if options not in tight:
                        tight[options] = _few_nodes(kin, networks, links)
                    for case in level.cases:
                        cell = Cell(kin, case, divided, networks, tight[options])
                        if len(cell.replicas) and len(cell.stages):
                            yield cell


def _networks(
    problem: Problem, job: TrainingJob, schedule: str, sizes: MessageSizes, level: SpeedLevel, links: Links
) -> NodeNetworks | None:
    """What the networks of nodes allow; None where there is but one."""
    blocks = problem.model.num_layers
    if len(problem.cluster.nodes) < 2 or blocks < 2:
        return None
    load = Load(
        blocks,
        level.extra_blocks,
        problem.micro_batch_count(job.micro_batch),
        sizes.hop,
        sizes.block,
        forward_share(problem.cluster, level, sizes.hop),
        min(0.5, *(team.forward_share for team in level.teams)),
        schedule == "gpipe",
    )
    return NodeNetworks(node_classes(links, level, sizes.hop), load, level.slowest, (level.forward_s, 1 / level.team))


def _few_nodes(kin: Kin, networks: NodeNetworks | None, links: Links) -> FewNodes | None:
    """What stages have room for, and what few nodes allow, in 1F1B; None where that is not known."""
    problem, level, sizes, fraction = kin.problem, kin.level, kin.sizes, kin.memory_fraction
    nodes, devices = problem.cluster.nodes, problem.cluster.devices
    if kin.options.schedule != "1f1b" or networks is None or len(nodes) > MOST_NODES:
        return None
    room = kin.room(np.arange(1.0, len(devices) + 1))
    free = {gpu: device_bytes(gpu, fraction) for node in nodes for gpu in node.gpus}
    teams = dict.fromkeys(team.gpu for team in level.teams)
    seats = Seats(level, room, {gpu: (free[gpu], sum(device.gpu == gpu for device in devices)) for gpu in teams})
    setting, held = networks.setting, [(len(node.gpus), sum(free[gpu] for gpu in node.gpus)) for node in nodes]
    most = [max(size for gpus, size in held if gpus == one.gpus) for one in setting.nodes]
    block_bytes = problem.model.block_parameters * kin.job.dtype_bytes
    gather_s = block_bytes / links.gathering if kin.options.zero == 3 else 0.0
    late = Late(seats, setting.load, np.array(most), sum(node.blocks_per_s for node in setting.nodes))
    return FewNodes(setting, sizes.whole - sizes.block * setting.load.blocks, gather_s, late)


def roofline_bound_s(problem: Problem, memory_fraction: float) -> tuple[float, str]:
    """Seconds, and what binds; infinity where no plan fits.

    First with lines alone, for all cells at once; then with rounds, cell by cell, the least first.
    """
    cells = [(cell, np.ones(len(cell.replicas), dtype=np.bool_)) for cell in cells_of(problem, memory_fraction)]
    if not cells:
        return np.inf, "no plan fits the memory"
    least = min(cell.least_s for cell, _ in cells) * (1 - SLACK)
    low, left = _least_s(cells, least, np.inf, rounds=False)
    if not left:
        return np.inf, "no plan of this shape fits"
    first = [cell for cell, _ in left]
    bound_s, binding = np.inf, left
    for cell, among in sorted(cells, key=lambda pair: (pair[0] not in first, *pair[0].promise)):
        at = [(cell, among)]
        if bound_s < np.inf:
            at = _possible(_possible(at, bound_s, rounds=False), bound_s, rounds=True)
            sooner = _possible(at, bound_s * (1 - ACCURACY), rounds=True)
            if at and not sooner:
                bound_s, binding = bound_s * (1 - ACCURACY), at
            at = sooner
        if at:
            found_s, left = _least_s(at, low, bound_s, rounds=True)
            if left and found_s < bound_s:
                bound_s, binding = found_s, left
    return bound_s, _because(binding, bound_s, least)


def _least_s(cells: list[Choice], low: float, most: float, rounds: bool) -> tuple[float, list[Choice]]:
    """Seconds, `low` or more, by which no plan of these cells ends, and the cells that may soon after; if any ever.

    most: they may by then, where it is finite.
    """
    accuracy, left, high = ACCURACY if rounds else ROUGHLY, cells, most
    if most == np.inf:
        step, high = GROWTH, low * GROWTH
        while not (left := _possible(cells, high, rounds)):
            step *= GROWTH
            low, high = high, high * step
            if high > LONGEST_S:
                return np.inf, []
    while high > low * (1 + accuracy):
        middle = (low + high) / 2
        if found := _possible(left, middle, rounds):
            left, high = found, middle
        else:
            low = middle
    return low, left


def _possible(cells: list[Choice], end_s: float, rounds: bool) -> list[Choice]:
    found = [(cell, cell.possible(end_s, among, rounds)) for cell, among in cells]
    return [(cell, among) for cell, among in found if among.any()]


def _because(left: list[Choice], bound_s: float, least_s: float) -> str:
    if least_s >= 0.9 * bound_s:
        return "all GPUs together compute that long"
    cell, among = left[0]
    number = int(cell.replicas[among][0])
    pipelines = f"{number} pipeline{'s' * (number > 1)} of micro-batches of {cell.job.micro_batch}"
    return f"computing takes {least_s:.3g} s on all GPUs; the rest is what {pipelines} send over the fastest links"
