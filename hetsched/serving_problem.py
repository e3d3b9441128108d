"""What is to be planned for serving: a cluster, a model, requests and what they are to see."""

from dataclasses import dataclass

from hetsched.cluster import Cluster
from hetsched.errors import HetschedError
from hetsched.model import ModelSpec
from hetsched.plan import ServingOptions
from hetsched.precision import Precision
from hetsched.requests import Requests
from hetsched.workload import ServingLoad

OBJECTIVES = ("throughput", "attainment", "cost")
MODES = ("auto", "colocated", "disaggregated")
MOST_BATCH = 256  # sequences of a step, as engines have it by default; a pipeline has as many steps as stages


@dataclass(frozen=True, eq=False)
class ServingProblem:
    """A serving problem.

    requests: the load's lengths, and a trace's arrivals. objective: `throughput` is the highest rate that keeps the SLO
    (or can be served at all, without one); `attainment` the largest share of requests within it at the load's rate;
    `cost` the least money an hour that keeps it at that rate. usd_per_hour: the nodes in use may cost at most
    so much; `plan_renting` chooses them.
    mode: `colocated`, replicas prefill and decode; `disaggregated`, each does one of both; `auto`, whatever is best.
    Raises HetschedError where the objective lacks what it needs.
    """

    cluster: Cluster
    model: ModelSpec
    load: ServingLoad
    requests: Requests
    options: ServingOptions = ServingOptions()
    objective: str = "throughput"
    usd_per_hour: float | None = None
    most_batch: int = MOST_BATCH
    mode: str = "auto"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise HetschedError(f"the mode is {self.mode!r}", hint=f"one of: {', '.join(MODES)}")
        if self.objective not in OBJECTIVES:
            raise HetschedError(f"the objective is {self.objective!r}", hint=f"one of: {', '.join(OBJECTIVES)}")
        if self.objective != "throughput" and self.load.rate_per_s is None:
            raise HetschedError(f"objective {self.objective} needs a rate", hint="give --rate, in requests a second")
        if self.objective == "attainment" and not self.load.slo.limits:
            raise HetschedError("objective attainment needs an SLO", hint="give --slo-ttft-ms, --slo-tpot-ms, ...")
        longest = int((self.requests.input_tokens + self.requests.output_tokens).max())
        if longest > self.model.max_positions and self.model.positions == "learned":
            raise HetschedError(
                f"a request has {longest} tokens, but {self.model.name} has positions for {self.model.max_positions}",
                hint="cut the requests",
            )

    @property
    def precision(self) -> Precision:
        """In how many bits the model is served."""
        return Precision(self.load.dtype, self.options.weight_bits, self.options.kv_bits)
