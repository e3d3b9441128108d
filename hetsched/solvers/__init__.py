"""Solvers: each yields candidate plans for the driver in `hetsched.search`."""

from hetsched.solvers.annealing import Annealing
from hetsched.solvers.auto import Auto
from hetsched.solvers.base import Solver
from hetsched.solvers.evolutionary import Evolutionary
from hetsched.solvers.hierarchical import Hierarchical
from hetsched.solvers.local_search import LocalSearch
from hetsched.solvers.megatron import Megatron
from hetsched.solvers.pipeline_dp import PipelineDp
from hetsched.solvers.random_plans import RandomPlans

SOLVERS: dict[str, Solver] = {
    "auto": Auto(),
    "annealing": Annealing(),
    "evolutionary": Evolutionary(),
    "hierarchical": Hierarchical(),
    "local-search": LocalSearch(),
    "megatron": Megatron(),
    "pipeline-dp": PipelineDp(),
    "random": RandomPlans(),
}
