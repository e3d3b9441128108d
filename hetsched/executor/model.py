"""Transformer pieces by a ModelSpec: an embedding, blocks, a head. Activations are (micro-batch, sequence, hidden).

Parameters are named as in the whole model (`blocks.7.attention.q.weight`) on whichever rank they stand, and each is
initialised by its name and the seed alone, so that every layout starts from the same weights. In a tensor-parallel team
each device has its share of heads, FFN and vocabulary (`shards`).
"""

import hashlib

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from hetsched.executor.shards import Range, Share, piece_of, share_of
from hetsched.executor.tensor_parallel import ALONE, Team, embed, enter, leave
from hetsched.model import ModelSpec
from hetsched.plan import Layers

INITIAL_DEVIATION = 0.02
RESIDUAL_OUTPUTS = ("attention.out.weight", "mlp.down.weight")
Rotation = tuple[Tensor, Tensor]


class Linear(nn.Module):
    """y = x Wᵀ + b; weight: (outputs, inputs)."""

    def __init__(self, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        return functional.linear(x, self.weight, self.bias)


class Norm(nn.Module):
    """RMSNorm, or LayerNorm with its bias."""

    def __init__(self, size: int, kind: str, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.bias = nn.Parameter(torch.empty(size)) if kind == "layernorm" else None
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        if self.bias is None:
            return functional.rms_norm(x, self.weight.shape, self.weight, self.epsilon)
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)


class RowParallel(Linear):
    """A Linear of which each device has a range of inputs: what they find adds up, and the bias is added once."""

    def __init__(self, inputs: int, outputs: int, bias: bool, team: Team) -> None:
        super().__init__(inputs, outputs, bias)
        self.team = team

    def forward(self, x: Tensor) -> Tensor:
        """(..., this device's inputs) to (..., outputs)."""
        if self.team.group is None:
            return super().forward(x)
        y = leave(functional.linear(x, self.weight), self.team)
        return y if self.bias is None else y + self.bias


class Attention(nn.Module):
    """Causal self-attention with grouped key-value heads, rotary positions or none."""

    def __init__(self, spec: ModelSpec, share: Share, team: Team) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = _size(share.heads), _size(share.kv_heads), spec.head_dim
        self.q = Linear(spec.hidden_size, self.heads * self.head_dim, spec.qkv_bias)
        self.k = Linear(spec.hidden_size, self.kv_heads * self.head_dim, spec.qkv_bias)
        self.v = Linear(spec.hidden_size, self.kv_heads * self.head_dim, spec.qkv_bias)
        self.out = RowParallel(self.heads * self.head_dim, spec.hidden_size, spec.out_bias, team)
        self.q_norm = Norm(self.head_dim, "rmsnorm", spec.norm_epsilon) if spec.qk_norm else None
        self.k_norm = Norm(self.head_dim, "rmsnorm", spec.norm_epsilon) if spec.qk_norm else None
        group = spec.num_heads // spec.num_kv_heads
        self.kv_of = [head // group - share.kv_heads[0] for head in range(*share.heads)]

    def forward(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        """(micro-batch, sequence, hidden) to the same."""
        x = enter(x, self.out.team)
        batch, sequence, _ = x.shape
        q = self.q(x).view(batch, sequence, self.heads, self.head_dim)
        k = self.k(x).view(batch, sequence, self.kv_heads, self.head_dim)
        v = self.v(x).view(batch, sequence, self.kv_heads, self.head_dim)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        if self.kv_heads != self.heads:
            k, v = k[:, self.kv_of], v[:, self.kv_of]
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        merged: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, sequence, self.heads * self.head_dim))
        return merged


class Mlp(nn.Module):
    """down(act(gate(x)) · up(x)), or down(act(up(x))) where it is not gated."""

    def __init__(self, spec: ModelSpec, share: Share, team: Team) -> None:
        super().__init__()
        columns = _size(share.ffn)
        self.gate = Linear(spec.hidden_size, columns, spec.mlp_bias) if spec.gated_mlp else None
        self.up = Linear(spec.hidden_size, columns, spec.mlp_bias)
        self.down = RowParallel(columns, spec.hidden_size, spec.mlp_bias, team)
        self.activation = spec.activation

    def forward(self, x: Tensor) -> Tensor:
        """(..., hidden) to the same."""
        x = enter(x, self.down.team)
        if self.gate is None:
            inner = activate(self.up(x), self.activation)
        else:
            inner = activate(self.gate(x), self.activation) * self.up(x)
        lowered: Tensor = self.down(inner)
        return lowered


class Block(nn.Module):
    """One transformer block: norms before attention and MLP, or after them in a model without a final norm."""

    def __init__(self, spec: ModelSpec, share: Share, team: Team) -> None:
        super().__init__()
        self.attention_norm = Norm(spec.hidden_size, spec.norm, spec.norm_epsilon)
        self.attention = Attention(spec, share, team)
        self.mlp_norm = Norm(spec.hidden_size, spec.norm, spec.norm_epsilon)
        self.mlp = Mlp(spec, share, team)
        self.parallel, self.norms_first = spec.parallel_residual, spec.final_norm

    def forward(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        """(micro-batch, sequence, hidden) to the same."""
        after: Tensor
        if self.parallel:
            after = x + self.attention(self.attention_norm(x), rotation) + self.mlp(self.mlp_norm(x))
        elif self.norms_first:
            x = x + self.attention(self.attention_norm(x), rotation)
            after = x + self.mlp(self.mlp_norm(x))
        else:
            x = self.attention_norm(x + self.attention(x, rotation))
            after = self.mlp_norm(x + self.mlp(x))
        return after


class Embedding(nn.Module):
    """Tokens, and learned positions where the model has them. OPT's table has spare rows at its start."""

    def __init__(self, spec: ModelSpec, share: Share, team: Team) -> None:
        super().__init__()
        width = spec.embedding_size or spec.hidden_size
        self.rows, self.team = share.vocab, team
        self.tokens = Linear(width, _size(share.vocab), bias=False)
        self.project = Linear(width, spec.hidden_size, bias=False) if width != spec.hidden_size else None
        learned = spec.positions == "learned"
        self.positions = Linear(spec.hidden_size, spec.position_rows, bias=False) if learned else None
        self.first_row = spec.position_rows - spec.max_positions

    def forward(self, tokens: Tensor) -> Tensor:
        """(micro-batch, sequence) token ids to (micro-batch, sequence, hidden)."""
        x = embed(tokens, self.tokens.weight, self.rows, self.team)
        if self.project is not None:
            x = self.project(x)
        if self.positions is not None:
            x = x + self.positions.weight[self.first_row : self.first_row + tokens.shape[1]]
        return x


class Head(nn.Module):
    """The final norm and the LM head, which may be the token embedding's own weight."""

    def __init__(self, spec: ModelSpec, share: Share, team: Team, tied: Linear | None) -> None:
        super().__init__()
        width = spec.embedding_size or spec.hidden_size
        self.columns, self.team = share.vocab, team
        self.norm = Norm(spec.hidden_size, spec.norm, spec.norm_epsilon) if spec.final_norm else None
        self.project = Linear(spec.hidden_size, width, bias=False) if width != spec.hidden_size else None
        self.output = tied or Linear(width, _size(share.vocab), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(micro-batch, sequence, hidden) to logits (micro-batch, sequence, this device's columns)."""
        if self.norm is not None:
            x = self.norm(x)
        if self.project is not None:
            x = self.project(x)
        logits: Tensor = self.output(enter(x, self.team))
        return logits


class Transformer(nn.Module):
    """Blocks `layers` (half-open) of a model, with the embedding where block 0 is and the head where the last is."""

    def __init__(self, spec: ModelSpec, layers: Layers, *, recompute: bool = False, team: Team = ALONE) -> None:
        super().__init__()
        self.spec, self.recompute, self.team = spec, recompute, team
        first, last = layers
        share = share_of(spec, team.degree, team.place)
        self.embedding = Embedding(spec, share, team) if first == 0 else None
        self.blocks = nn.ModuleDict({str(number): Block(spec, share, team) for number in range(first, last)})
        own = self.embedding.tokens if self.embedding is not None and spec.tied_embeddings else None
        self.head = Head(spec, share, team, own) if last == spec.num_layers else None

    def forward(self, x: Tensor) -> Tensor:
        """Token ids, or the activations of the blocks before, to logits, or to activations for the blocks after."""
        if self.embedding is not None:
            x = self.embedding(x)
        rotation = None
        if self.spec.positions == "rotary":
            wide = next(self.parameters()).dtype
            rotation = rotations(self.spec, x.shape[1], x.device, torch.promote_types(wide, torch.float32))
        for block in self.blocks.values():
            if self.recompute and self.training:
                x = checkpoint(block, x, rotation, use_reentrant=False)
            else:
                x = block(x, rotation)
        return x if self.head is None else self.head(x)

    def global_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters by their names in the whole model; the copy of a tied embedding has the embedding's name."""
        tied = self.spec.tied_embeddings
        return {
            "embedding.tokens.weight" if tied and name == "head.output.weight" else name: parameter
            for name, parameter in self.named_parameters()
        }

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Set every parameter by `seed` and its name; drawn whole on the CPU in fp32, so equal in all layouts."""
        for name, parameter in self.global_parameters().items():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.dim() == 1:
                parameter.fill_(1.0)
            else:
                digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
                generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
                deviation = INITIAL_DEVIATION
                if name.endswith(RESIDUAL_OUTPUTS):
                    deviation /= (2 * self.spec.num_layers) ** 0.5
                shape, piece = list(parameter.shape), piece_of(self.spec, name, self.team.degree, self.team.place)
                if piece is not None:
                    shape[piece.dim] = piece.whole
                drawn = torch.randn(shape, generator=generator) * deviation
                if piece is not None:
                    drawn = drawn.narrow(piece.dim, piece.start, piece.stop - piece.start)
                parameter.copy_(drawn)


def _size(between: Range) -> int:
    return between[1] - between[0]


def activate(x: Tensor, kind: str) -> Tensor:
    """The MLP's activation function."""
    match kind:
        case "silu":
            return functional.silu(x)
        case "gelu":
            return functional.gelu(x)
        case "gelu_tanh":
            return functional.gelu(x, approximate="tanh")
        case _:
            return functional.relu(x)


def rotations(spec: ModelSpec, seq_len: int, device: torch.device, dtype: torch.dtype) -> Rotation:
    """Cosines and sines of the rotary angles: two (sequence, rotated / 2) tensors."""
    half = int(spec.head_dim * spec.rotary_fraction) // 2
    frequencies = spec.rope_theta ** -(torch.arange(half, device=device, dtype=dtype) / half)
    angles = torch.outer(torch.arange(seq_len, device=device, dtype=dtype), frequencies)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotary positions (arXiv 2104.09864), first half against second; x: (micro-batch, heads, sequence, head_dim)."""
    cosines, sines = rotation
    half = cosines.shape[-1]
    a, b, rest = x[..., :half].to(cosines.dtype), x[..., half : 2 * half].to(cosines.dtype), x[..., 2 * half :]
    turned = torch.cat((a * cosines - b * sines, b * cosines + a * sines), dim=-1)
    return torch.cat((turned.to(x.dtype), rest), dim=-1)
