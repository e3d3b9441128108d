"""GPUs by name: what people and tools call them, and their data sheets."""

import re
from collections import Counter
from difflib import get_close_matches
from functools import cache

from hetsched.catalog.data import load
from hetsched.cluster import Gpu, Link, ServingEfficiency
from hetsched.errors import HetschedError
from hetsched.units import (
    BYTES_PER_GIB,
    BYTES_PER_S_PER_GBPS,
    BYTES_PER_S_PER_GBYTES,
    FLOPS_PER_TFLOPS,
    SECONDS_PER_MS,
)

SPELL_OUT = "{kind: NAME, memory_gib: ..., tflops: ..., memory_gbytes_per_s: ...}"

Tokens = tuple[str, ...]
_FILLER = re.compile(r"nvidia|amd|geforce|tesla|quadro|instinct|generation|gpu|hbm\de?")
_REWRITES = (
    (re.compile(r"pci-?e(xpress)?\b"), "pcie"),
    (re.compile(r"\bsxm\d"), "sxm"),
    (re.compile(r"(?<![a-z\d])(\d+)[\s-]*(gib|gb|g)\b"), r" \1gb "),
    (re.compile(r"\brtx(?=[a\d])"), "rtx "),
    (re.compile(r"(?<=\d)(ti|ada)\b"), r" \1"),
)
_MEMORY = re.compile(r"\d+gb")


def find_gpu(name: str, where: str) -> Gpu:
    """The GPU of that name; `where` names the place in messages.

    Case, separators, vendor words and the order of the words do not matter, nor does the memory size where it is not
    needed to tell two kinds apart: `NVIDIA A100-SXM4-80GB`, `h100_sxm`, `RTX 4090`. Raises HetschedError for an
    unknown or an ambiguous name, with the kinds that come close.
    """
    gpu = known_gpu(name)
    if gpu is not None:
        return gpu
    near = _near(name)
    hint = f"one of {', '.join(near)}? " if near else ""
    raise HetschedError(
        f"{where}: no GPU in the catalogue is named {name!r}",
        hint=f"{hint}Or spell it out in a cluster file: {SPELL_OUT}",
    )


def known_gpu(name: str) -> Gpu | None:
    """The GPU of that name, or None where the catalogue has none (or more than one) of that name."""
    kind = _spellings().get(_tokens(name))
    return None if kind is None else _gpus()[kind]


def gpu_kinds() -> tuple[str, ...]:
    """The kinds in the catalogue, by generation."""
    return tuple(_gpus())


def _near(name: str, limit: int = 8) -> list[str]:
    wanted = {word for word in _tokens(name) if not _MEMORY.fullmatch(word)} - {"rtx"}
    sharing = [kind for kind in _gpus() if wanted & set(_tokens(kind)) - {"sxm", "pcie"}]
    if sharing:
        return sharing[:limit]
    lower = {kind.lower(): kind for kind in _gpus()}
    return [lower[match] for match in get_close_matches(name.lower(), list(lower), n=limit, cutoff=0.35)]


def _tokens(name: str) -> Tokens:
    """The words of a name that tell kinds apart, sorted: `NVIDIA A100-SXM4-80GB` -> ("80gb", "a100", "sxm")."""
    text = name.lower().replace("_", " ")
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    words = {word for word in re.findall(r"[a-z0-9.]+", text) if not _FILLER.fullmatch(word)}
    return tuple(sorted(words))


@cache
def _spellings() -> dict[Tokens, str]:
    """{words: kind}: full names, names in the file, and names without the memory size where one kind alone has it."""
    entries = load("gpus.yaml")["gpus"]
    short = {entry["kind"]: _without_memory(entry["kind"]) for entry in entries}
    times = Counter(short.values())
    spellings = {words: kind for kind, words in short.items() if times[words] == 1}
    for entry in entries:
        for name in (entry["kind"], *entry.get("names", ())):
            spellings[_tokens(name)] = entry["kind"]
    return spellings


def _without_memory(kind: str) -> Tokens:
    return tuple(word for word in _tokens(kind) if not _MEMORY.fullmatch(word))


@cache
def _gpus() -> dict[str, Gpu]:
    data = load("gpus.yaml")
    links = {
        name: Link(
            row["bandwidth_gbps"] * BYTES_PER_S_PER_GBPS,
            row["latency_ms"] * SECONDS_PER_MS,
            row.get("whole_node_gain", 1.0),
        )
        for name, row in data["links"].items()
    }
    serving = {
        name: ServingEfficiency(
            **{key: row[key] for key in ("matmul", "attention", "memory", "kv")},
            decode_block_s=row["decode_block_ms"] * SECONDS_PER_MS,
            prefill_block_s=row["prefill_block_ms"] * SECONDS_PER_MS,
        )
        for name, row in data["serving"].items()
    }
    return {
        entry["kind"]: Gpu(
            kind=entry["kind"],
            memory_bytes=entry["memory_gib"] * BYTES_PER_GIB,
            half_flops_per_s=entry["tflops"] * FLOPS_PER_TFLOPS,
            single_flops_per_s=entry["tflops_fp32"] * FLOPS_PER_TFLOPS,
            memory_bytes_per_s=entry["memory_gbytes_per_s"] * BYTES_PER_S_PER_GBYTES,
            link=links[entry["link"]],
            efficiency=entry.get("efficiency"),
            serving=serving.get(entry.get("serving", "")),
        )
        for entry in data["gpus"]
    }
