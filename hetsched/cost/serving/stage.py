"""How long one stage of a serving replica works on a step: its blocks, the embedding and the LM head.

Tensor parallelism is Megatron's (Shoeybi et al. 2019, arXiv 1909.08053): two all-reduces of the hidden states a block.
All times are in seconds, and every argument that counts tokens, sequences or pairs may be a numpy array; arrays
broadcast.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from hetsched.cluster import Gpu, Link
from hetsched.cost.serving.operators import ROUNDING, Floats, Processor, all_reduce_s
from hetsched.model import ModelSpec
from hetsched.precision import Precision
from hetsched.profiles import ServingProfile

WORKSPACE_TOKENS, WORKSPACE_SEQUENCES = 8192, 256  # the largest step that room is kept for
FP32_BYTES = 4


def causal_pairs(tokens: ArrayLike, past: ArrayLike = 0.0) -> Floats:
    """Query-key pairs that `tokens` new tokens of one sequence attend to, `past` of its tokens being in the KV cache.

    Each new token attends to all before it and to itself. Pairs of several prompts add up.
    """
    new, old = np.asarray(tokens, dtype=float), np.asarray(past, dtype=float)
    return np.asarray(new * (old + (new + 1.0) / 2.0))


@dataclass(frozen=True)
class StageTimes:
    """Times of one stage: `blocks` transformer blocks on `degree` GPUs of a kind in tensor parallel.

    embeds, ends: whether it holds the embedding, and the final norm and LM head. link: from each of its GPUs to the
    next, used where the degree is above 1. measured: times of a block at this degree; they win over the roofline, which
    goes on from the last of them, and have the lengths of prompts and contexts in them that they were measured at.
    """

    gpu: Gpu
    degree: int
    link: Link | None
    model: ModelSpec
    precision: Precision
    blocks: int
    embeds: bool
    ends: bool
    measured: ServingProfile | None = None

    def prefill_s(self, tokens: ArrayLike, pairs: ArrayLike, prompts: ArrayLike = 1.0) -> Floats:
        """Seconds to prefill `prompts` prompts (or chunks of prompts) of `tokens` tokens in all.

        pairs: the sum of their `causal_pairs`. The LM head works on one token of each prompt.
        """
        return self.step_s(tokens, pairs, prompts, 0.0, 0.0)

    def decode_s(self, sequences: ArrayLike, context_tokens: ArrayLike) -> Floats:
        """Seconds of one decode step of `sequences` sequences whose contexts have `context_tokens` tokens together.

        For each number of sequences the time is a straight line in `context_tokens`.
        """
        return self.step_s(0.0, 0.0, 0.0, sequences, context_tokens)

    def step_s(
        self,
        tokens: ArrayLike,
        pairs: ArrayLike,
        prompts: ArrayLike,
        sequences: ArrayLike,
        context_tokens: ArrayLike,
    ) -> Floats:
        """Seconds of a step that prefills (see `prefill_s`) and decodes (see `decode_s`) at once: chunked prefill."""
        rows = np.asarray(tokens, dtype=float) + np.asarray(sequences, dtype=float)
        parts = self.step_parts_s(tokens, pairs, prompts, sequences, context_tokens)
        return np.asarray(np.where(rows > 0.0, sum(parts.values()), 0.0))

    def step_parts_s(
        self,
        tokens: ArrayLike,
        pairs: ArrayLike,
        prompts: ArrayLike,
        sequences: ArrayLike,
        context_tokens: ArrayLike,
    ) -> dict[str, Floats]:
        """What the seconds of a step go into, by cause; they add up to `step_s`. `blocks`: measured, causes unknown."""
        new, decoding = np.asarray(tokens, dtype=float), np.asarray(sequences, dtype=float)
        rows = new + decoding
        if self.measured is None:
            of_block = self._block_parts_s(
                new, np.asarray(pairs, dtype=float), decoding, np.asarray(context_tokens, dtype=float)
            )
        else:
            block = self._measured_s(self.measured.prefill_s, new, True)
            block = block + self._measured_s(self.measured.decode_s, decoding, False)
            shape = np.broadcast_shapes(np.shape(block), np.shape(pairs), np.shape(context_tokens))
            of_block = {"blocks": np.broadcast_to(block, shape)}  # neither is asked, but arrays of them give arrays
        parts = {cause: self.blocks * seconds for cause, seconds in of_block.items()}
        if self.ends:
            parts["head"] = self._head_s(np.asarray(prompts, dtype=float) + decoding)
        if self.embeds:
            parts["embedding_all_reduce"] = self.all_reduce_s(rows)
        return parts

    def computes(self, rows: float) -> bool:
        """Whether the arithmetic of the products of so many tokens with the weights takes longer than their traffic."""
        boundless = replace(self, gpu=replace(self.gpu, memory_bytes_per_s=1e30))
        alone_s = float(boundless._matrices_s(np.asarray(rows)))
        return bool(alone_s > 0.5 ** (1.0 / ROUNDING) * float(self._matrices_s(np.asarray(rows))))

    def all_reduce_s(self, tokens: ArrayLike) -> Floats:
        """Seconds of an all-reduce of the hidden states of `tokens` tokens among the stage's GPUs."""
        size_bytes = np.asarray(tokens, dtype=float) * self.model.hidden_size * self.precision.activation_bytes
        return np.zeros_like(size_bytes) if self.link is None else all_reduce_s(self.link, self.degree, size_bytes)

    @property
    def weight_bytes(self) -> float:
        """Bytes of weights on each of the stage's GPUs."""
        model, precision = self.model, self.precision
        shared = model.vocab_size * (model.embedding_size or model.hidden_size)
        whole = self.blocks * model.block_parameters * precision.weight_bytes
        if self.embeds:
            whole += model.embedding_parameters * precision.activation_bytes
        if self.ends:
            whole += model.head_parameters * precision.activation_bytes
            whole += shared * precision.activation_bytes if model.tied_embeddings and not self.embeds else 0.0
        return whole / self.degree

    @property
    def workspace_bytes(self) -> float:
        """Bytes of activations of the largest step on each GPU, and of logits where the LM head is."""
        model, size = self.model, self.precision.activation_bytes
        wide = (2 if model.gated_mlp else 1) * model.ffn_size * max(1, model.experts_per_token)
        queries = (model.num_heads + 2 * model.num_kv_heads) * model.head_dim
        values = WORKSPACE_TOKENS * (4 * model.hidden_size + (wide + queries) / self.degree)
        logits = WORKSPACE_SEQUENCES * model.vocab_size * FP32_BYTES / self.degree if self.ends else 0.0
        return values * size + logits

    @property
    def kv_bytes_per_token(self) -> float:
        """Bytes of KV cache that a token takes on each of the stage's GPUs; heads are copied beyond their number."""
        heads = -(-self.model.num_kv_heads // self.degree)
        return self.blocks * 2.0 * heads * self.model.head_dim * self.precision.kv_bytes

    @cached_property
    def _processor(self) -> Processor:
        return Processor.of(self.gpu, self.precision.dtype)

    def _block_s(self, new: Floats, pairs: Floats, decoding: Floats, context_tokens: Floats) -> Floats:
        return np.asarray(sum(self._block_parts_s(new, pairs, decoding, context_tokens).values()))

    def _block_parts_s(self, new: Floats, pairs: Floats, decoding: Floats, context_tokens: Floats) -> dict[str, Floats]:
        rows, processor = new + decoding, self._processor
        cache_bytes = context_tokens * self.kv_bytes_per_token / self.blocks
        launches = np.where(new > 0.0, processor.efficiency.prefill_block_s, processor.efficiency.decode_block_s)
        return {
            "matrices": self._matrices_s(rows),
            "elementwise": self._streams_s(rows),
            "attention": processor.attention_s(pairs, self.model.num_heads * self.model.head_dim / self.degree),
            "kv_read": processor.cache_read_s(cache_bytes),
            "all_reduce": 2.0 * self.all_reduce_s(rows),
            "launches": np.asarray(launches),
        }

    def _measured_s(self, table: Mapping[int, float], count: Floats, prompts: bool) -> Floats:
        """Between two points by a straight line; beyond the last one the roofline, scaled to meet it."""
        numbers, times = np.array(list(table), dtype=float), np.array(list(table.values()))
        inside = np.interp(count, numbers, times)
        none = np.zeros_like(count)
        far, last = np.maximum(count, numbers[-1]), np.full_like(count, numbers[-1])
        if prompts:
            growth = self._block_s(far, none, none, none) / self._block_s(last, none, none, none)
        else:
            growth = self._block_s(none, none, far, none) / self._block_s(none, none, last, none)
        return np.asarray(inside * growth)

    def _matrices_s(self, rows: Floats) -> Floats:
        """The products of one block with its weights: q, k and v; the output; and the MLP, or the experts visited."""
        model, degree = self.model, self.degree
        hidden, queries = model.hidden_size, model.num_heads * model.head_dim / degree
        keys = -(-model.num_kv_heads // degree) * model.head_dim
        wide = (2 if model.gated_mlp else 1) * model.ffn_size / degree
        total = self._product_s(rows, hidden, queries + 2 * keys) + self._product_s(rows, queries, hidden)
        visits, read = rows, np.ones_like(rows)
        if model.num_experts:
            share = model.experts_per_token / model.num_experts
            visits = rows * model.experts_per_token
            read = model.num_experts * (1.0 - (1.0 - share) ** rows)  # experts that some token visits, on average
            total = total + self._product_s(rows, hidden, model.num_experts)
        return (
            total
            + self._product_s(visits, hidden, wide, read)
            + self._product_s(visits, model.ffn_size / degree, hidden, read)
        )

    def _product_s(self, rows: Floats, inner: float, outer: float, copies: ArrayLike = 1.0) -> Floats:
        weight_bytes = inner * outer * self.precision.weight_bytes * np.asarray(copies)
        return self._processor.matmul_s(rows, inner, outer, weight_bytes, self.precision.activation_bytes)

    def _streams_s(self, rows: Floats) -> Floats:
        """Both norms with their residuals (read two, write two), the rotation, and the activation of the MLP."""
        model, degree = self.model, self.degree
        rotated = 2 * (model.num_heads + model.num_kv_heads * 2) * model.head_dim / degree
        active = (3 if model.gated_mlp else 2) * model.ffn_size / degree * max(1, model.experts_per_token)
        values = 8 * model.hidden_size + rotated + active
        return self._processor.elementwise_s(rows * values * self.precision.activation_bytes)

    def _head_s(self, rows: Floats) -> Floats:
        width, outer = self.model.embedding_size or self.model.hidden_size, self.model.vocab_size / self.degree
        size = self.precision.activation_bytes
        return np.where(rows > 0.0, self._processor.matmul_s(rows, width, outer, width * outer * size, size), 0.0)
