"""Checkpoints that any plan can go on from, by torch.distributed.checkpoint.

A checkpoint holds weights, and AdamW's two moments, in fp32 by parameter name. Every rank writes the slices of which it
is the first holder; a rank of another plan reads the slices it needs from whatever they were written as. A folder is
written under another name, renamed when it is whole, and then named in `latest`; so what is half written is never the
latest. With several machines the folder is on a file system that all of them share.
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import LoadPlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from hetsched.errors import HetschedError
from hetsched.executor.communication import all_gather, present
from hetsched.executor.gradients import AdamW, Bucket, Home
from hetsched.files import read_text, write_text
from hetsched.plan import Plan

LATEST, FACTS = "latest", "run.json"
KINDS = ("weight", "mean", "square")


class Slices:
    """A parameter, or a moment of it, of which this rank has some slices: what torch's planners ask of a tensor.

    shape: of the whole; pieces: (first index in each dimension, slice).
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = torch.Size(shape)
        self.pieces: list[tuple[torch.Size, Tensor]] = []

    def __create_write_items__(self, fqn: str, object: Any) -> list[WriteItem]:
        return [
            WriteItem(
                index=MetadataIndex(fqn, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk, TensorProperties.create_from_tensor(tensor), self.shape),
            )
            for chunk, (_, tensor) in zip(self.chunks(), self.pieces, strict=True)
        ]

    def chunks(self) -> list[ChunkStorageMetadata]:
        """Where the slices stand."""
        return [ChunkStorageMetadata(offsets, tensor.shape) for offsets, tensor in self.pieces]

    def piece(self, index: MetadataIndex) -> Tensor:
        """The slice that an index names."""
        return next(tensor for offsets, tensor in self.pieces if offsets == index.offset)


class _Saving(DefaultSavePlanner):
    def lookup_object(self, index: MetadataIndex) -> Tensor:
        slices: Slices = self.state_dict[index.fqn]
        return slices.piece(index)


class _Loading(DefaultLoadPlanner):
    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        self.state_dict, self.metadata, self.is_coordinator = state_dict, metadata, is_coordinator

    def create_local_plan(self) -> LoadPlan:
        stored: dict[str, Any] = dict(present(self.metadata).state_dict_metadata)
        return LoadPlan(
            [
                item
                for name, slices in self.state_dict.items()
                for item in create_read_items_for_chunk_list(name, stored[name], slices.chunks())
            ]
        )

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        slices: Slices = self.state_dict[index.fqn]
        return slices.piece(index)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a checkpoint says of itself: steps done, and what another plan must agree on to go on from it."""

    step: int
    model: dict[str, Any]
    global_batch: int
    seq_len: int


def save_checkpoint(folder: Path, plan: Plan, buckets: Sequence[Bucket], optimizer: AdamW, step: int) -> None:
    """Write the state after `step` steps; all ranks call this together."""
    rank = dist.get_rank()
    name = f"step-{step:08d}"
    half = folder / f"{name}.half"
    if rank == 0:
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir(parents=True)
        facts = Facts(step, plan.model.to_json(), plan.workload.global_batch, plan.workload.seq_len)
        write_text(half / FACTS, json.dumps({name: getattr(facts, name) for name in Facts.__slots__}))
    dist.barrier()
    held = _state(buckets, [_whole(bucket, states) for bucket, states in _states(buckets, optimizer)], first=True)
    save(held, storage_writer=FileSystemWriter(half), planner=_Saving())
    dist.barrier()
    if rank == 0:
        whole = folder / name
        shutil.rmtree(whole, ignore_errors=True)
        os.replace(half, whole)
        write_text(folder / LATEST, name + "\n")
    dist.barrier()


def latest_checkpoint(folder: Path) -> tuple[Path, Facts]:
    """The latest checkpoint in a folder; HetschedError where there is none."""
    if not (folder / LATEST).exists():
        raise HetschedError(f"run: {folder} has no checkpoint", hint="name a folder that a run wrote checkpoints to")
    name = read_text(folder / LATEST, "name of the latest checkpoint").strip()
    if Path(name).name != name:
        raise HetschedError(f"run: {folder / LATEST} names {name!r}, which is no folder beside it")
    return folder / name, read_facts(folder / name)


def read_facts(checkpoint: Path) -> Facts:
    """What a checkpoint says of itself; HetschedError where it is none."""
    try:
        return Facts(**json.loads(read_text(checkpoint / FACTS, "checkpoint")))
    except (json.JSONDecodeError, TypeError) as error:
        raise HetschedError(f"run: {checkpoint / FACTS} is no checkpoint's: {error}") from None


def load_checkpoint(folder: Path, plan: Plan, buckets: Sequence[Bucket], optimizer: AdamW) -> int:
    """Set weights and moments to the latest checkpoint's, of whatever plan; returns how many steps it has done."""
    path, facts = latest_checkpoint(folder)
    job = plan.workload
    for what, here, there in (
        ("model", plan.model.to_json() | {"name": ""}, facts.model | {"name": ""}),
        ("global batch", job.global_batch, facts.global_batch),
        ("sequence length", job.seq_len, facts.seq_len),
    ):
        if here != there:
            raise HetschedError(
                f"run: the checkpoint {path} is of another {what}",
                hint=f"the plan may differ in its pipelines and stages, not in the {what}",
            )
    flats = [[torch.zeros_like(bucket.gradients) for _ in KINDS] for bucket in buckets]
    load(_state(buckets, flats, first=False), storage_reader=FileSystemReader(path), planner=_Loading())
    for (bucket, states), whole in zip(_states(buckets, optimizer), flats, strict=True):
        for state, flat in zip(states, whole, strict=True):
            state.copy_(bucket.own_part(flat))
        bucket.weights.copy_(whole[0])
    optimizer.resume(facts.step)
    return facts.step


def _states(buckets: Sequence[Bucket], optimizer: AdamW) -> list[tuple[Bucket, list[Tensor]]]:
    """Each bucket with what this rank keeps of weights and moments."""
    return [
        (bucket, [bucket.master, mean, square])
        for bucket, mean, square in zip(buckets, optimizer.means, optimizer.squares, strict=True)
    ]


def _whole(bucket: Bucket, states: list[Tensor]) -> list[Tensor]:
    """The bucket's whole flat tensors, where ranks keep a part each."""
    if not bucket.sharded:
        return states
    gathered = [torch.empty_like(bucket.gradients) for _ in states]
    for whole, own in zip(gathered, states, strict=True):
        all_gather(whole, own, present(bucket.group))
    return gathered


def _state(buckets: Sequence[Bucket], flats: Sequence[Sequence[Tensor]], *, first: bool) -> dict[str, Slices]:
    """{kind.parameter: slices} of flat tensors; first: only those that this rank is the first to hold."""
    found: dict[str, Slices] = {}
    for bucket, kinds in zip(buckets, flats, strict=True):
        if first and not bucket.first:
            continue
        for home in bucket.homes:
            for kind, flat in zip(KINDS, kinds, strict=True):
                slices = found.setdefault(f"{kind}.{home.slice.name}", Slices(home.whole_shape))
                slices.pieces.append((_offsets(home), home.within(flat)))
    return found


def _offsets(home: Home) -> torch.Size:
    return torch.Size(home.slice.start if dim == home.slice.dim else 0 for dim in range(len(home.shape)))
