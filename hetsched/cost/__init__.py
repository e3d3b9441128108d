"""Cost models: pure functions of a cluster and a plan."""

from collections.abc import Callable

from hetsched.cost.base import CostModel
from hetsched.cost.published.dtfm import DtFm
from hetsched.cost.published.flashflex import FlashFlex
from hetsched.cost.published.hexgen import HexGen
from hetsched.cost.serving.plan_cost import ServingRoofline
from hetsched.cost.training import Roofline

# Each takes the share of a device's memory that a plan may use; flashflex has its own, all of it.
COST_MODELS: dict[str, Callable[[float], CostModel]] = {
    "roofline": Roofline,
    "dtfm": DtFm,
    "flashflex": FlashFlex,
}

# The same of serving plans; hexgen's paper lets a plan fill a GPU's memory, as flashflex's does.
SERVING_COST_MODELS: dict[str, Callable[[float], ServingRoofline | HexGen]] = {
    "roofline": ServingRoofline,
    "hexgen": lambda _: HexGen(),
}
