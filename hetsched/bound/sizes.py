"""How many bytes the messages of one setting have on the wire at least: without the scales of what is quantised."""

from dataclasses import dataclass

from hetsched.cost.memory import hidden_bytes
from hetsched.cost.traffic import compressed_bytes
from hetsched.model import ModelSpec
from hetsched.plan import Compression
from hetsched.workload import TrainingJob


@dataclass(frozen=True, slots=True)
class MessageSizes:
    """hop: of one micro-batch's activations, and of their gradients; the rest of gradients of weights.

    block: of a block; whole: of all but a tied embedding; tied: of that.
    """

    hop: tuple[float, float]
    block: float
    whole: float
    tied: float

    @classmethod
    def of(cls, model: ModelSpec, job: TrainingJob, bits: Compression) -> "MessageSizes":
        """The sizes for a model, a job's micro-batches and a compression."""
        wide, hidden = job.dtype_bytes, hidden_bytes(model, job)
        there, back = (compressed_bytes(hidden, wide, n) for n in (bits.activation_bits, bits.activation_grad_bits))
        each = compressed_bytes(float(wide), wide, bits.grad_bits)
        whole = (model.parameters - model.tied_parameters) * each
        return cls((there, back), model.block_parameters * each, whole, model.tied_parameters * each)
