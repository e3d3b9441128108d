"""In how many bits a model is served: its weights and its KV cache may be quantised, activations are not."""

from dataclasses import dataclass

from hetsched.errors import HetschedError
from hetsched.units import DTYPE_BYTES

BITS_PER_BYTE = 8
QUANTISED_BITS = (16, 8, 4)
GROUP = 128  # weights (or elements of the KV cache) that share a scale when quantised to 4 bits
SCALE_BITS = 16


@dataclass(frozen=True, slots=True)
class Precision:
    """Bits of a weight and of an element of the KV cache; 16 means the activations' own type `dtype`.

    8 and 4 bits: weights are read quantised and multiplied in `dtype` (weight-only quantisation); at 4 bits each group
    of 128 has a scale of 16 bits besides.
    """

    dtype: str = "bf16"
    weight_bits: int = 16
    kv_bits: int = 16

    def __post_init__(self) -> None:
        if self.dtype not in DTYPE_BYTES:
            raise HetschedError(f"serving: dtype is {self.dtype!r}", hint=f"use one of: {', '.join(DTYPE_BYTES)}")
        for name in ("weight_bits", "kv_bits"):
            if getattr(self, name) not in QUANTISED_BITS:
                raise HetschedError(f"serving: {name} is {getattr(self, name)}", hint="use 16, 8 or 4")

    @property
    def activation_bytes(self) -> float:
        """Bytes of one activation."""
        return float(DTYPE_BYTES[self.dtype])

    @property
    def weight_bytes(self) -> float:
        """Bytes of one weight of a block's matrices; embeddings and the LM head are never quantised."""
        return self._bytes(self.weight_bits)

    @property
    def kv_bytes(self) -> float:
        """Bytes of one element of the KV cache."""
        return self._bytes(self.kv_bits)

    def _bytes(self, bits: int) -> float:
        if bits == QUANTISED_BITS[0]:
            return self.activation_bytes
        return (bits + (SCALE_BITS / GROUP if bits < BITS_PER_BYTE else 0.0)) / BITS_PER_BYTE
