"""How gradients are added up over the ranks that share them.

What travels when, exactly (the cost model has a rank reduce one bucket after another): when a rank has ended its last
backward pass of the step it starts one sum all-reduce for each of its buckets (`groups.sharings`: last blocks first,
then the embedding, a tied embedding last), one message of all their gradients in the compute dtype, without waiting for
the one before. It updates its weights when all have ended. So all-reduces overlap with the passes of stages that end
later and with one another, and not with this rank's own passes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hetsched.executor.collectives import Exchange, Waits
from hetsched.executor.communication import present
from hetsched.executor.compression import dequantise, packed_bytes, quantise
from hetsched.executor.gradients import Bucket

ROW = 512  # gradients that share a scale where they are quantised


class PlainReduction:
    """All-reduces in the compute dtype."""

    def __init__(self, buckets: Sequence[Bucket]) -> None:
        self._shared = [bucket for bucket in buckets if bucket.collectives is not None]

    def expect(self) -> None:
        """A step begins."""
        for bucket in self._shared:
            present(bucket.collectives).expect()

    def __call__(self) -> int:
        """Add every bucket up over its group, all at once. A sharded one only in its own part.

        Returns the bytes of the messages.
        """
        started: list[tuple[Tensor, Tensor, Waits]] = []
        sent_bytes = 0
        for bucket in self._shared:
            if not bucket.counted:
                bucket.gradients.zero_()
            message = bucket.gradients.to(bucket.weights.dtype)  # the bucket itself in fp32
            if bucket.sharded:
                into = bucket.own_part(bucket.gradients)
                total = into.to(message.dtype)
                work = present(bucket.collectives).reduce_scatter(total, message)
            else:
                into, total = bucket.gradients, message
                work = present(bucket.collectives).all_reduce(message)
            started.append((into, total, work))
            sent_bytes += message.nbytes if bucket.counted else 0
        for into, total, work in started:
            work.wait()
            if total is not into:
                into.copy_(total)
        return sent_bytes


@dataclass(slots=True, eq=False)
class _Shared:
    """A bucket, its two exchanges, and what quantisation has left out so far: of this rank's gradients, of its sums."""

    bucket: Bucket
    parts: Exchange
    sums: Exchange
    sent: Tensor
    owned: Tensor

    @property
    def rows(self) -> tuple[int, int]:
        """Of a rank's part."""
        return len(self.owned) // ROW, ROW


class CompressedReduction:
    """Error-compensated quantised all-reduce (DoubleSqueeze, Tang et al. 2019, arXiv 1905.05957), as AQ-SGD has it.

    Every rank owns an equal part of a bucket. All send each owner their gradients for its part in `bits` a value; the
    owner adds them up, and sends the sum to all in as many. What rounding leaves out of a message is added to the next
    one. So as much travels as in an all-reduce of that many bits. A bucket that is sharded needs no second message.
    Buckets have `granule` ROW.
    """

    def __init__(self, buckets: Sequence[Bucket], bits: int, seed: int) -> None:
        self._bits, device = bits, buckets[0].gradients.device
        self._shared: list[_Shared] = []
        for bucket in buckets:
            if bucket.group is not None:
                each = len(bucket.gradients) // bucket.group.size()
                size = packed_bytes((each // ROW, ROW), bits)
                parts, sums = (Exchange(bucket.group, size, device, tag) for tag in bucket.tags[1:])
                left_out = torch.zeros_like(bucket.gradients), bucket.gradients.new_zeros(each)
                self._shared.append(_Shared(bucket, parts, sums, *left_out))
        self._generator = torch.Generator(device).manual_seed(seed)

    def expect(self) -> None:
        """A step begins."""
        for shared in self._shared:
            shared.parts.expect()
            if shared.bucket.sharded:
                present(shared.bucket.collectives).expect(sum_too=False)
            else:
                shared.sums.expect()

    def __call__(self) -> int:
        """Add every bucket up; returns the bytes of the messages, scales included."""
        under_way = [self._send_parts(shared) for shared in self._shared]
        totals, sent_bytes = [], 0
        for shared, finish in zip(self._shared, under_way, strict=True):
            message = finish()
            totals.append(
                shared.owned.view(shared.rows) + sum(dequantise(part, shared.rows, self._bits) for part in message)
            )
            sent_bytes += message.nbytes if shared.bucket.counted else 0
        spreading = []
        for shared, total in zip(self._shared, totals, strict=True):
            if shared.bucket.sharded:
                shared.bucket.own_part(shared.bucket.gradients).copy_(total.flatten())
            else:
                spreading.append((shared, self._send_sums(shared, total)))
        for shared, finish in spreading:
            whole = [dequantise(one, shared.rows, self._bits) for one in finish()]
            shared.bucket.gradients.copy_(torch.cat(whole).flatten())
        return sent_bytes

    def _send_parts(self, shared: _Shared) -> Callable[[], Tensor]:
        if not shared.bucket.counted:
            shared.bucket.gradients.zero_()
        shared.sent += shared.bucket.gradients
        parts = shared.sent.view(-1, *shared.rows)
        messages = [quantise(part, self._bits, self._generator) for part in parts]
        for part, message in zip(parts, messages, strict=True):
            part.sub_(dequantise(message, shared.rows, self._bits))
        return shared.parts.start(messages)

    def _send_sums(self, shared: _Shared, total: Tensor) -> Callable[[], Tensor]:
        message = quantise(total, self._bits, self._generator)
        shared.owned = (total - dequantise(message, shared.rows, self._bits)).flatten()
        return shared.sums.start([message] * present(shared.bucket.group).size())
