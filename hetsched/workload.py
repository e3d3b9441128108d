"""What is asked of the cluster."""

from dataclasses import dataclass

from hetsched.errors import HetschedError
from hetsched.units import DTYPE_BYTES


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """One training iteration: `global_batch` sequences of `seq_len` tokens, `micro_batch` sequences at a time."""

    global_batch: int
    seq_len: int
    micro_batch: int = 1
    dtype: str = "bf16"

    def __post_init__(self) -> None:
        for name in ("global_batch", "seq_len", "micro_batch"):
            if getattr(self, name) < 1:
                raise HetschedError(f"workload: {name} is {getattr(self, name)}, expected at least 1")
        if self.dtype not in DTYPE_BYTES:
            raise HetschedError(f"workload: dtype is {self.dtype!r}", hint=f"use one of: {', '.join(DTYPE_BYTES)}")

    @property
    def dtype_bytes(self) -> int:
        """Bytes of one weight or activation on the wire and in the forward pass."""
        return DTYPE_BYTES[self.dtype]

    @property
    def tokens(self) -> int:
        """Tokens an iteration is credited for."""
        return self.global_batch * self.seq_len
