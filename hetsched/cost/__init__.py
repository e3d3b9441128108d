"""Cost models: pure functions of a cluster and a plan."""

from collections.abc import Callable

from hetsched.cost.base import CostModel
from hetsched.cost.published.dtfm import DtFm
from hetsched.cost.published.flashflex import FlashFlex
from hetsched.cost.training import Roofline

# Each takes the share of a device's memory that a plan may use; flashflex has its own, all of it.
COST_MODELS: dict[str, Callable[[float], CostModel]] = {
    "roofline": Roofline,
    "dtfm": DtFm,
    "flashflex": FlashFlex,
}
