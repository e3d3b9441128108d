"""Fewer bits on the wire: quantised activations, their changes (AQ-SGD), and gradients.

Quantisation is uniform and unbiased, with one scale a row: a value in [-s, s] is rounded at random to one of 2^bits
levels so that its mean is the value (Alistarh et al. 2017, arXiv 1610.02132). 2 to 8 bits, packed without gaps.

AQ-SGD (Wang et al. 2022, arXiv 2206.01299): both ends of a boundary keep, for every sample, the activation m that the
receiver last had. What travels is the quantised change Q(a - m), and both ends set m to m + Q(a - m). A sample that is
seen for the first time travels as it is. Activation gradients are quantised directly.
"""

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from hetsched.errors import HetschedError
from hetsched.executor.settings import RunSettings
from hetsched.plan import FULL_BITS, Compression
from hetsched.units import BYTES_PER_GIB

SCALE_BYTES = 4  # of a row
CACHED_VALUES = 2**15
Rows = tuple[int, int]  # rows, and values in each


def packed_bytes(rows: Rows, bits: int) -> int:
    """Bytes of a quantised message, scales included."""
    together, word = _packing(bits)
    return rows[0] * (-(-rows[1] // together) * word + SCALE_BYTES)


def _packing(bits: int) -> tuple[int, int]:
    """(values, bytes): so many values fill so many bytes."""
    return (8 // bits, 1) if 8 % bits == 0 else (8, bits)


def quantise(x: Tensor, bits: int, generator: torch.Generator) -> Tensor:
    """The message (`packed_bytes`,) uint8 of x (rows, values)."""
    parts = [_quantise(part.float(), bits, generator) for part in torch.split(x, _rows_at_once(x))]
    return torch.cat([packed for packed, _ in parts] + [scales.view(torch.uint8).reshape(-1) for _, scales in parts])


def dequantise(message: Tensor, rows: Rows, bits: int) -> Tensor:
    """What a message says: (rows, values) in fp32."""
    count, values = rows
    cut = len(message) - count * SCALE_BYTES
    packed, scales = message[:cut].view(count, -1), message[cut:].clone().view(torch.float32).view(count, 1)
    whole = scales.new_empty(rows)
    each = _rows_at_once(whole)
    for part, words, scale in zip(*(torch.split(tensor, each) for tensor in (whole, packed, scales)), strict=True):
        torch.mul(_levels(words, bits)[:, :values], 2 / (2**bits - 1), out=part)
        part.sub_(1).mul_(scale)
    return whole


def _rows_at_once(x: Tensor) -> int:
    """On a CPU, what stays in its cache: 1.5 to 2 times as fast as a million values at once."""
    return len(x) if x.device.type != "cpu" else max(1, CACHED_VALUES // x.shape[1])


def _quantise(x: Tensor, bits: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(packed values (bytes,), scales (rows, 1)) of x (rows, values) in fp32."""
    scales = x.abs().amax(dim=1, keepdim=True)
    steps = 2**bits - 1
    exact = (x / scales.clamp_min(torch.finfo(torch.float32).tiny) + 1) * (steps / 2)
    noise = torch.rand(x.shape, generator=generator, device=x.device)
    together, word = _packing(bits)
    whole = torch.uint8 if word == 1 else torch.int64
    levels = pad((exact + noise).floor().clamp(0, steps).to(whole), (0, -x.shape[1] % together))
    shifts = torch.arange(together, device=x.device, dtype=whole) * bits
    words = (levels.view(len(x), -1, together) << shifts).sum(dim=2, dtype=whole)
    return words.view(torch.uint8).view(*words.shape, -1)[:, :, :word].reshape(-1), scales


def _levels(packed: Tensor, bits: int) -> Tensor:
    """The values (rows, values and more) that are packed (rows, bytes), 0 to 2^bits - 1."""
    together, word = _packing(bits)
    whole = torch.uint8 if word == 1 else torch.int64
    words = pad(packed.view(len(packed), -1, word), (0, whole.itemsize - word)).contiguous().view(whole)
    shifts = torch.arange(together, device=packed.device, dtype=whole) * bits
    levels: Tensor = ((words >> shifts) & (2**bits - 1)).view(len(packed), -1).float()
    return levels


class Codec(Protocol):
    """What one end of a channel makes of a tensor (rows, values) before it travels, and after. key: of the samples."""

    def blank(self, key: int) -> Tensor:
        """An empty message of the size that the one for `key` will have."""

    def encode(self, x: Tensor, key: int) -> Tensor:
        """The message."""

    def decode(self, message: Tensor, key: int) -> Tensor:
        """The tensor that it stands for."""


class Plain:
    """The tensor itself. like: of its dtype, on its device."""

    def __init__(self, rows: Rows, like: Tensor) -> None:
        self._rows, self._dtype, self._device = rows, like.dtype, like.device

    def blank(self, key: int) -> Tensor:
        """See `Codec`."""
        return torch.empty(self._rows, dtype=self._dtype, device=self._device)

    def encode(self, x: Tensor, key: int) -> Tensor:
        """See `Codec`."""
        return x.contiguous()

    def decode(self, message: Tensor, key: int) -> Tensor:
        """See `Codec`."""
        return message


class Direct:
    """The tensor in `bits` a value."""

    def __init__(self, rows: Rows, like: Tensor, bits: int, seed: int) -> None:
        self._rows, self._bits, self._dtype = rows, bits, like.dtype
        self._generator = torch.Generator(like.device).manual_seed(seed)

    def blank(self, key: int) -> Tensor:
        """See `Codec`."""
        size = packed_bytes(self._rows, self._bits)
        return torch.empty(size, dtype=torch.uint8, device=self._generator.device)

    def encode(self, x: Tensor, key: int) -> Tensor:
        """See `Codec`."""
        return quantise(x, self._bits, self._generator)

    def decode(self, message: Tensor, key: int) -> Tensor:
        """See `Codec`."""
        return dequantise(message, self._rows, self._bits).to(self._dtype)


class Changes:
    """AQ-SGD's changes: the first time a key comes the tensor itself, then what changed, in `bits` a value.

    keys: how many there are. file: where the cache lies, memory-mapped; None is in memory.
    """

    def __init__(self, rows: Rows, like: Tensor, bits: int, seed: int, keys: int, file: Path | None) -> None:
        self._direct = Direct(rows, like.new_empty(0, dtype=torch.float32), bits, seed)
        self._plain = Plain(rows, like)
        self._seen = [False] * keys
        self._bits, self._shape = bits, (keys, *rows)
        if file is None:
            self._cache = torch.empty(self._shape, dtype=like.dtype)
        else:
            size = keys * rows[0] * rows[1]
            self._cache = torch.from_file(str(file), shared=True, size=size, dtype=like.dtype).view(self._shape)

    def blank(self, key: int) -> Tensor:
        """See `Codec`."""
        return (self._direct if self._seen[key] else self._plain).blank(key)

    def encode(self, x: Tensor, key: int) -> Tensor:
        """See `Codec`."""
        if not self._seen[key]:
            self._keep(x, key)
            return self._plain.encode(x, key)
        message = self._direct.encode(x.float() - self._last(x, key).float(), key)
        self.decode(message, key)
        return message

    def decode(self, message: Tensor, key: int) -> Tensor:
        """See `Codec`. Either end calls it once for every message."""
        if message.dtype != torch.uint8:
            self._keep(message, key)
            return message
        last = self._last(message, key)
        new = (last.float() + self._direct.decode(message, key)).to(last.dtype)
        self._keep(new, key)
        return new

    def _last(self, like: Tensor, key: int) -> Tensor:
        return self._cache[key].to(like.device)

    def _keep(self, x: Tensor, key: int) -> None:
        self._cache[key].copy_(x)
        self._seen[key] = True


class Codecs:
    """Makes the codecs of a rank's channels. keys: micro-batches of an epoch, 0 where samples do not repeat.

    Activations are quantised by their changes where samples repeat, unless `settings.quantise` is `direct`. Raises
    HetschedError where the caches would take more than `settings.cache_gib`.
    """

    def __init__(self, bits: Compression, settings: RunSettings, like: Tensor, keys: int, rank: int) -> None:
        self._bits, self._settings, self._like, self._rank = bits, settings, like, rank
        self._keys = keys if settings.quantise == "changes" else 0
        self._made = 0
        self._left_bytes = settings.cache_gib * BYTES_PER_GIB

    def of_activations(self, rows: Rows) -> Codec:
        """One end of a channel for activations."""
        bits, seed = self._bits.activation_bits, self._seed()
        if bits == FULL_BITS:
            return Plain(rows, self._like)
        if not self._keys:
            return Direct(rows, self._like, bits, seed)
        self._left_bytes -= self._keys * rows[0] * rows[1] * self._like.itemsize
        if self._left_bytes < 0:
            raise HetschedError(
                f"run: rank {self._rank} would keep more than {self._settings.cache_gib:g} GiB of activations, for "
                f"{self._keys} micro-batches an epoch",
                hint="allow more with cache_gib, give a cache_folder on a disk, or repeat fewer samples",
            )
        folder = self._settings.cache_folder
        file = None if folder is None else folder / f"activations-{self._rank}-{self._made}.cache"
        return Changes(rows, self._like, bits, seed, self._keys, file)

    def of_gradients(self, rows: Rows) -> Codec:
        """One end of a channel for their gradients."""
        bits, seed = self._bits.activation_grad_bits, self._seed()
        return Plain(rows, self._like) if bits == FULL_BITS else Direct(rows, self._like, bits, seed)

    def _seed(self) -> int:
        self._made += 1
        return (self._settings.seed * 65537 + self._rank) * 257 + self._made
