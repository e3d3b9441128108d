"""Weights in the safetensors files of Hugging Face models of the Llama (also Mistral, Qwen) and GPT-2 families.

Each rank reads the slices it holds. GPT-2's files have q, k and v fused in one matrix and all matrices transposed; ours
have them apart, so that a tensor-parallel slice is a range.
"""

import json
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load

from hetsched.errors import HetschedError
from hetsched.executor.checkpoint import latest_checkpoint
from hetsched.executor.model import Transformer
from hetsched.executor.shards import block_parameters, embedding_parameters, head_parameters, piece_of
from hetsched.files import read_text, write_text
from hetsched.model import ModelSpec

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
LLAMA = {
    "attention_norm": "input_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "mlp_norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
LLAMA_ENDS = {
    "embedding.tokens": "model.embed_tokens",
    "head.norm": "model.norm",
    "head.output": "lm_head",
}
GPT2 = {
    "attention_norm": "ln_1",
    "attention.q": "attn.c_attn",
    "attention.k": "attn.c_attn",
    "attention.v": "attn.c_attn",
    "attention.out": "attn.c_proj",
    "mlp_norm": "ln_2",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}
GPT2_ENDS = {
    "embedding.tokens": "wte",
    "embedding.positions": "wpe",
    "head.norm": "ln_f",
    "head.output": "lm_head",
}
LLAMA_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a parameter stands in the files: tensor `name`, maybe transposed, third `part` of it where it is fused."""

    name: str
    transposed: bool = False
    part: int | None = None


def place_of(spec: ModelSpec, parameter: str) -> Place:
    """The place of a parameter; HetschedError for families whose files are not known here."""
    if spec.family != "gpt2" and spec.family not in LLAMA_FAMILIES:
        raise HetschedError(
            f"run: the safetensors files of {spec.family} models are not known here",
            hint=f"known are: {', '.join(LLAMA_FAMILIES)}, gpt2",
        )
    layer, _, kind = parameter.rpartition(".")
    within, ends = (GPT2, GPT2_ENDS) if spec.family == "gpt2" else (LLAMA, LLAMA_ENDS)
    if not layer.startswith("blocks."):
        return Place(f"{ends[layer]}.{kind}")
    _, block, inner = layer.split(".", 2)
    if spec.family != "gpt2":
        return Place(f"model.layers.{block}.{within[inner]}.{kind}")
    fused = "qkv".index(inner[-1]) if within[inner] == "attn.c_attn" else None
    return Place(f"h.{block}.{within[inner]}.{kind}", kind == "weight" and "norm" not in inner, fused)


def read_weights(path: Path, model: Transformer) -> None:
    """Set a rank's parameters to what the files at `path` have for them.

    path: a folder with model.safetensors or its index, or one file. HetschedError where a tensor is missing or has
    another shape.
    """
    spec, team = model.spec, model.team
    with ExitStack() as stack, torch.no_grad():
        tensors = _open(path, stack)
        for name, parameter in model.global_parameters().items():
            place = place_of(spec, name)
            tensor = _find(tensors, place.name, path)
            whole, piece = list(parameter.shape), piece_of(spec, name, team.degree, team.place)
            if piece is not None:
                whole[piece.dim] = piece.whole
            stored = list(reversed(whole)) if place.transposed else list(whole)
            first = 0
            if place.part is not None:
                first, stored[-1] = place.part * whole[0], 3 * whole[0]
            if list(tensor.get_shape()) != stored:
                raise HetschedError(
                    f"run: {path}: {place.name} has the shape {list(tensor.get_shape())}, expected {stored}",
                    hint="are these the weights of the plan's model?",
                )
            ranges = [slice(0, size) for size in whole]
            if piece is not None:
                ranges[piece.dim] = slice(piece.start, piece.stop)
            ranges[0] = slice(ranges[0].start + first, ranges[0].stop + first)
            found: Tensor = tensor[tuple(reversed(ranges))].T if place.transposed else tensor[tuple(ranges)]
            parameter.copy_(found)


def write_weights(checkpoints: Path, spec: ModelSpec, folder: Path) -> None:
    """Write the latest checkpoint's weights, in fp32, as the Hugging Face files of the model's family.

    One file for the embedding, each block and the head, with an index; a block at a time is in memory.
    """
    from safetensors.torch import save_file

    checkpoint, _ = latest_checkpoint(checkpoints)
    folder.mkdir(parents=True, exist_ok=True)
    units = [list(_ends(spec)), *(list(block_parameters(spec, block)) for block in range(spec.num_layers))]
    files: dict[str, str] = {}
    total = 0
    for number, names in enumerate(units):
        file = f"model-{number + 1:05d}-of-{len(units):05d}.safetensors"
        tensors = dict(_joined(spec, _load(checkpoint, names)))
        save_file(tensors, folder / file, metadata={"format": "pt"})
        files |= dict.fromkeys(tensors, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    write_text(folder / INDEX, json.dumps({"metadata": {"total_size": total}, "weight_map": files}, indent=2) + "\n")


def _ends(spec: ModelSpec) -> Iterator[str]:
    if spec.tied_embeddings:
        yield "embedding.tokens.weight"
    yield from embedding_parameters(spec)
    yield from head_parameters(spec)


def _load(checkpoint: Path, names: list[str]) -> dict[str, Tensor]:
    reader = FileSystemReader(checkpoint)
    stored: dict[str, Any] = dict(reader.read_metadata().state_dict_metadata)
    state: dict[str, Any] = {f"weight.{name}": torch.empty(stored[f"weight.{name}"].size) for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch says that one process loads: that is meant
        load(state, storage_reader=reader, no_dist=True)
    return {name: state[f"weight.{name}"] for name in names}


def _joined(spec: ModelSpec, found: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The tensors as the files have them."""
    fused: dict[str, list[Tensor]] = {}
    for name, parameter in found.items():
        place = place_of(spec, name)
        tensor = parameter.T if place.transposed else parameter
        if place.part is None:
            yield place.name, tensor.contiguous()
        else:
            fused.setdefault(place.name, []).append(tensor)  # q, k, v in turn
    for name, parts in fused.items():
        yield name, torch.cat(parts, dim=-1).contiguous()


def _open(path: Path, stack: ExitStack) -> dict[str, Any]:
    """{tensor: the open file that has it}."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise HetschedError("weights need safetensors", hint='pip install "hetsched[executor]"') from None
    if (path / INDEX).exists():
        files = [path / Path(file).name for file in _indexed(path / INDEX)]
    else:
        files = [path / SINGLE if path.is_dir() else path]
    found: dict[str, Any] = {}
    for file in files:
        if not file.is_file():
            raise HetschedError(f"run: {file} does not exist", hint="name a folder with model.safetensors, or a file")
        try:
            opened = stack.enter_context(safe_open(file, framework="pt"))
        except SafetensorError as error:
            raise HetschedError(f"run: {file} is no safetensors file: {error}") from None
        found |= dict.fromkeys(opened.keys(), opened)
    return found


def _indexed(index: Path) -> list[str]:
    """The files that an index names."""
    try:
        return list(dict.fromkeys(json.loads(read_text(index, "index of weights"))["weight_map"].values()))
    except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
        raise HetschedError(f"run: {index} is no index of weights: {error!r}") from None


def _find(tensors: dict[str, Any], name: str, path: Path) -> Any:
    for candidate in (name, f"transformer.{name}"):  # GPT-2's files have or have not the prefix
        if candidate in tensors:
            return tensors[candidate].get_slice(candidate)
    raise HetschedError(f"run: {path} has no tensor {name}", hint="are these the weights of the plan's model?")
