"""Which part of each parameter a rank holds, and which ranks share exactly the same part.

Tensor parallelism as Megatron's (Shoeybi et al. 2019, arXiv 1909.08053): heads, FFN and vocabulary are cut into runs,
as equal as they can be, for each device of a stage. No weight is fused, so every part is one range of one dimension.
Degrees that differ between stages and pipelines cut one parameter at different places; its gradient is reduced slice by
slice between the cuts, each by the ranks whose parts contain it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from hetsched.model import ModelSpec

Ranks = tuple[int, ...]
Range = tuple[int, int]

# The dimension in which a parameter is cut, and by what; all other parameters stand whole on every device of a stage.
CUTS = {
    "attention.q": (0, "heads"),
    "attention.k": (0, "kv_heads"),
    "attention.v": (0, "kv_heads"),
    "attention.out.weight": (1, "heads"),
    "mlp.gate": (0, "ffn"),
    "mlp.up": (0, "ffn"),
    "mlp.down.weight": (1, "ffn"),
    "tokens": (0, "vocab"),
    "output": (0, "vocab"),
}
# Whole parameters of which each device finds the gradient through its own heads alone.
PARTIAL = ("attention.q_norm.weight", "attention.k_norm.weight")


@dataclass(frozen=True, slots=True)
class Share:
    """What one device of a tensor-parallel stage works on: half-open ranges of heads, FFN columns and tokens.

    Where a device's query heads end inside a group, its key-value heads stand on the next device too.
    """

    heads: Range
    kv_heads: Range
    ffn: Range
    vocab: Range


def share_of(spec: ModelSpec, degree: int, place: int) -> Share:
    """The share of device `place` of `degree`."""
    heads = cut(spec.num_heads, degree, place)
    group = spec.num_heads // spec.num_kv_heads
    kv_heads = heads[0] // group, -(-heads[1] // group)
    if degree <= spec.num_kv_heads:  # whole groups of heads
        kv_heads = cut(spec.num_kv_heads, degree, place)
        heads = kv_heads[0] * group, kv_heads[1] * group
    return Share(heads, kv_heads, cut(spec.ffn_size, degree, place), cut(spec.vocab_size, degree, place))


def cut(size: int, parts: int, place: int) -> Range:
    """The range of part `place` when `size` is cut into parts as equal as they can be."""
    return size * place // parts, size * (place + 1) // parts


@dataclass(frozen=True, slots=True)
class Piece:
    """The range `start` to `stop` of dimension `dim` of a parameter that has `whole` there."""

    dim: int
    start: int
    stop: int
    whole: int


def piece_of(spec: ModelSpec, name: str, degree: int, place: int) -> Piece | None:
    """What of the parameter `name` device `place` of `degree` holds; None where it holds all of it."""
    found = _cut_of(name)
    if found is None:
        return None
    dim, by = found
    start, stop = getattr(share_of(spec, degree, place), by)
    wide = spec.head_dim if by.endswith("heads") else 1
    whole = {
        "heads": spec.num_heads,
        "kv_heads": spec.num_kv_heads,
        "ffn": spec.ffn_size,
        "vocab": spec.vocab_size,
    }[by]
    return Piece(dim, start * wide, stop * wide, whole * wide)


def _cut_of(name: str) -> tuple[int, str] | None:
    for key, found in CUTS.items():
        if f".{key}." in f".{name}.":
            return found
    return None


@dataclass(frozen=True, slots=True)
class Slice:
    """A range of a parameter, in the whole model's coordinates; `stop` 0 is all of it."""

    name: str
    dim: int = 0
    start: int = 0
    stop: int = 0


@dataclass(frozen=True, slots=True)
class Sharing:
    """Slices that exactly these ranks hold, ascending, in the order in which they travel.

    counted: the ranks whose gradients add up. The others' are copies: a whole parameter has the same gradient on all
    devices of a stage, of which the first counts.
    """

    ranks: Ranks
    counted: Ranks
    slices: tuple[Slice, ...]

    @property
    def reduced(self) -> bool:
        """Whether gradients have to be added up at all."""
        return len(self.counted) > 1


def slices_of(spec: ModelSpec, names: Sequence[str], teams: Sequence[Ranks]) -> Iterator[tuple[Ranks, Ranks, Slice]]:
    """(ranks, counted, slice) of all slices of these parameters, held by these tensor-parallel teams."""
    everyone = tuple(sorted(rank for team in teams for rank in team))
    firsts = tuple(sorted(team[0] for team in teams))
    for name in names:
        held = [
            (rank, piece)
            for team in teams
            for place, rank in enumerate(team)
            if (piece := piece_of(spec, name, len(team), place)) is not None
        ]
        if not held:
            yield everyone, everyone if name.endswith(PARTIAL) else firsts, Slice(name)
            continue
        cuts = sorted({bound for _, piece in held for bound in (piece.start, piece.stop)})
        for start, stop in pairwise(cuts):
            ranks = tuple(sorted(rank for rank, piece in held if piece.start <= start and stop <= piece.stop))
            yield ranks, ranks, Slice(name, held[0][1].dim, start, stop)


def block_parameters(spec: ModelSpec, block: int) -> Iterator[str]:
    """The names of a block's parameters in the whole model."""
    norms = ["weight", "bias"] if spec.norm == "layernorm" else ["weight"]
    layers = [("attention_norm", norms), ("mlp_norm", norms)]
    layers += [(f"attention.{part}", _linear(spec.qkv_bias)) for part in "qkv"]
    layers += [("attention.out", _linear(spec.out_bias))]
    layers += [(f"attention.{part}_norm", ["weight"]) for part in "qk" if spec.qk_norm]
    layers += [(f"mlp.{part}", _linear(spec.mlp_bias)) for part in ("gate", "up", "down")]
    for layer, kinds in layers:
        if layer != "mlp.gate" or spec.gated_mlp:
            yield from (f"blocks.{block}.{layer}.{kind}" for kind in kinds)


def embedding_parameters(spec: ModelSpec) -> Iterator[str]:
    """The names of the embedding's parameters; not those of a tied one, which the head has too."""
    if not spec.tied_embeddings:
        yield "embedding.tokens.weight"
    if _projected(spec):
        yield "embedding.project.weight"
    if spec.positions == "learned":
        yield "embedding.positions.weight"


def head_parameters(spec: ModelSpec) -> Iterator[str]:
    """The names of the final norm's and the LM head's parameters, without a tied weight."""
    if spec.final_norm:
        yield "head.norm.weight"
        if spec.norm == "layernorm":
            yield "head.norm.bias"
    if _projected(spec):
        yield "head.project.weight"
    if not spec.tied_embeddings:
        yield "head.output.weight"


def _linear(bias: bool) -> list[str]:
    return ["weight", "bias"] if bias else ["weight"]


def _projected(spec: ModelSpec) -> bool:
    return (spec.embedding_size or spec.hidden_size) != spec.hidden_size
