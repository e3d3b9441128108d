"""The roofline's stages and hops for a dynamic programme, each by itself: no other pipeline shares its links."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hetsched.cost.chains import Group
from hetsched.cost.pipeline_terms import PipelineTerms, gather_terms

if TYPE_CHECKING:
    from hetsched.cost.roofline_stages import RooflineStages


def roofline_terms(pricer: RooflineStages, groups: Sequence[Group], share: int, pipelines: int) -> PipelineTerms:
    """See `ChainPricer.terms`. Messages overlap with computing, so a hop holds up no stage; ZeRO 3's gathers, gradients
    and the optimiser step are not in it."""
    gpipe = pricer.options.schedule == "gpipe"
    depth = min(pricer.blocks, sum(len(pricer.members[member]) for member in {m for group in groups for m in group}))

    def stage_s(g: int, count: int, first: bool, last: bool) -> float:
        work = pricer.work(groups[g], count, first, last)
        return work.forward_s + work.backward_s

    def most(g: int, behind: int, first: bool, last: bool) -> int:
        flying = share if gpipe else min(behind + 1, share)
        # of the depth it only matters whether there is another stage
        return pricer.most_layers(groups[g], flying, 1 if first and last else flying + 1, first, last, pipelines)

    def hop_s(a: int, b: int) -> tuple[float, float, float, float] | None:
        both = groups[a] + groups[b]
        if any(both.count(member) > len(pricer.members[member]) for member in set(both)):
            return None
        hop = pricer.hop(groups[a], groups[b])
        through = hop.forward_occupied_s + hop.forward_latency_s + hop.backward_occupied_s + hop.backward_latency_s
        forward_s, backward_s = hop.forward_occupied_s, hop.backward_occupied_s
        if not gpipe:
            busy_s = max(forward_s, backward_s)  # both at once
            return through, 0.0, busy_s, busy_s
        # first all forwards, then all backwards, each at the pace of its slowest stage or hop
        work = pricer.work(groups[a], 1, pricer.blocks == 1, pricer.blocks < 3)
        share_of = work.forward_s / (work.forward_s + work.backward_s)
        return through, 0.0, forward_s + backward_s, max(forward_s / share_of, backward_s / (1 - share_of))

    trips = not gpipe and share > 2  # of two micro-batches neither waits for the other's
    return gather_terms(len(groups), pricer.blocks, depth, stage_s, most, hop_s, trips)
