"""The lower bound of a problem under a cost model.

The plan space: every plan for the problem's model, batch, sequence length and data type that keeps what the user fixed
(`problem.choices`) and fits the memory, on the problem's cluster. Any number of pipelines of any depths, layer splits
and batch shares; teams of GPUs of one kind in one node; idle devices; `problem.micro_batches` and `problem.schedules`;
recompute or not; ZeRO 0 to 3; stages that work while messages are under way. Under a budget the problem's cluster is
the part that is rented.
"""

from dataclasses import dataclass

from hetsched.bound.dtfm import dtfm_bound_s
from hetsched.bound.roofline import roofline_bound_s
from hetsched.cost.base import CostModel
from hetsched.problem import Problem


@dataclass(frozen=True, slots=True)
class Bound:
    """No plan of the plan space has an iteration shorter than `iteration_s`; `because`: what forbids it, in words.

    0 where no bound is known for the cost model.
    """

    iteration_s: float
    because: str


def lower_bound_s(problem: Problem, model: CostModel) -> Bound:
    """The bound on the iteration time of all plans of `problem` that `model` finds to fit the memory."""
    if model.name == "roofline":
        return Bound(*roofline_bound_s(problem, model.memory_fraction))
    if model.name == "dtfm":
        return Bound(*dtfm_bound_s(problem))
    return Bound(0.0, f"no bound is known under {model.name}")
