"""How gradients are added up over the ranks that share them.

What travels when, exactly (the cost model imitates this): when a rank has ended its last backward pass of the step it
starts one sum all-reduce for each of its buckets (`groups.sharings`: last blocks first, then the embedding, a tied
embedding last), one message of all their gradients in the compute dtype, without waiting for the one before. It updates
its weights when all have ended. So all-reduces overlap with the passes of stages that end later and with one another,
and not with this rank's own passes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from hetsched.executor.communication import present, reduce_scatter
from hetsched.executor.compression import dequantise, quantise
from hetsched.executor.gradients import Bucket

ROW = 512  # gradients that share a scale where they are quantised


def all_reduce(buckets: Sequence[Bucket], dtype: torch.dtype) -> int:
    """Add every bucket up over its group, all at once; `dtype` is what travels. A sharded one only in its own part.

    Returns the bytes of the messages.
    """
    started: list[tuple[Tensor, Tensor, dist.Work]] = []
    sent_bytes = 0
    for bucket in buckets:
        if bucket.group is None:
            continue
        if not bucket.counted:
            bucket.gradients.zero_()
        message = bucket.gradients.to(dtype)  # the bucket itself in fp32
        if bucket.sharded:
            into = bucket.own_part(bucket.gradients)
            total = into.to(dtype)
            work = reduce_scatter(total, message, bucket.group)
        else:
            into, total = bucket.gradients, message
            work = present(dist.all_reduce(message, group=bucket.group, async_op=True))
        started.append((into, total, work))
        sent_bytes += message.nbytes if bucket.counted else 0
    for into, total, work in started:
        work.wait()
        if total is not into:
            into.copy_(total)
    return sent_bytes


@dataclass(slots=True, eq=False)
class _Errors:
    """What quantisation has left out of a bucket so far: of this rank's gradients, and of the sums it owns."""

    sent: Tensor
    owned: Tensor


class CompressedReduction:
    """Error-compensated quantised all-reduce (DoubleSqueeze, Tang et al. 2019, arXiv 1905.05957), as AQ-SGD has it.

    Every rank owns an equal part of a bucket. All send each owner their gradients for its part in `bits` a value; the
    owner adds them up, and sends the sum to all in as many. What rounding leaves out of a message is added to the next
    one. So as much travels as in an all-reduce of that many bits. A bucket that is sharded needs no second message.
    Buckets have `granule` ROW.
    """

    def __init__(self, buckets: Sequence[Bucket], bits: int, seed: int) -> None:
        self._bits = bits
        self._errors = [
            _Errors(torch.zeros_like(bucket.gradients), bucket.gradients.new_zeros(_part(bucket))) for bucket in buckets
        ]
        self._generator = torch.Generator(buckets[0].gradients.device).manual_seed(seed)

    def __call__(self, buckets: Sequence[Bucket], dtype: torch.dtype) -> int:
        """Add every bucket up; returns the bytes of the messages, scales included."""
        shared = [pair for pair in zip(buckets, self._errors, strict=True) if pair[0].group is not None]
        received = [self._send_parts(bucket, errors.sent) for bucket, errors in shared]
        totals, sent_bytes = [], 0
        for (bucket, errors), (message, works) in zip(shared, received, strict=True):
            for work in works:
                work.wait()
            rows = _part(bucket) // ROW, ROW
            totals.append(errors.owned.view(rows) + sum(dequantise(part, rows, self._bits) for part in message))
            sent_bytes += message.nbytes if bucket.counted else 0
        for (bucket, errors), total in zip(shared, totals, strict=True):
            if bucket.sharded:
                bucket.own_part(bucket.gradients).copy_(total.flatten())
            else:
                self._spread(bucket, errors, total)
        return sent_bytes

    def _send_parts(self, bucket: Bucket, left_out: Tensor) -> tuple[Tensor, list[dist.Work]]:
        group = present(bucket.group)
        if not bucket.counted:
            bucket.gradients.zero_()
        left_out += bucket.gradients
        parts = left_out.view(group.size(), -1, ROW)
        messages = torch.stack([quantise(part, self._bits, self._generator) for part in parts])
        for part, message in zip(parts, messages, strict=True):
            part.sub_(dequantise(message, (len(part), ROW), self._bits))
        return _exchange(messages, group)

    def _spread(self, bucket: Bucket, errors: _Errors, total: Tensor) -> None:
        group, rows = present(bucket.group), (len(total), ROW)
        message = quantise(total, self._bits, self._generator)
        errors.owned = (total - dequantise(message, rows, self._bits)).flatten()
        gathered, works = _exchange(message.expand(group.size(), -1), group)
        for work in works:
            work.wait()
        whole = [dequantise(one, rows, self._bits) for one in gathered]
        bucket.gradients.copy_(torch.cat(whole).flatten())


def _exchange(messages: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, list[dist.Work]]:
    """Start to send message i (of `messages`, one a rank) to rank i of the group; what comes from each, and the work.

    Not torch's all-to-all: gloo's tells its peers that it can receive only behind what it sends, so they wait for that.
    """
    received, own = torch.empty_like(messages, memory_format=torch.contiguous_format), dist.get_rank(group)
    received[own] = messages[own]
    others = [rank for rank in range(group.size()) if rank != own]
    peers = {rank: dist.get_global_rank(group, rank) for rank in others}
    operations = [dist.P2POp(dist.irecv, received[rank], peers[rank], group) for rank in others]
    operations += [dist.P2POp(dist.isend, messages[rank].contiguous(), peers[rank], group) for rank in others]
    return received, dist.batch_isend_irecv(operations) if operations else []


def _part(bucket: Bucket) -> int:
    return 0 if bucket.group is None else len(bucket.gradients) // bucket.group.size()
