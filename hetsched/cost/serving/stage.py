"""How long one stage of a serving replica works on a step: a roofline of its matrices, attention and all-reduces.

t = max(FLOPs / (peak · efficiency), bytes / (bandwidth · efficiency)) for each matrix (Williams et al. 2009,
doi:10.1145/1498765.1498785), plus what launching costs. All times are in seconds, and every argument that counts
tokens, sequences or pairs may be a numpy array; arrays broadcast.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hetsched.cluster import Gpu, Link
from hetsched.model import ModelSpec
from hetsched.precision import Precision

Floats = NDArray[np.float64]

GEMM_EFFICIENCY = 0.75
ATTENTION_EFFICIENCY = 0.45
MEMORY_EFFICIENCY = 0.8
BLOCK_OVERHEAD_S = 1e-5


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
    next, used where the degree is above 1.
    """

    gpu: Gpu
    degree: int
    link: Link | None
    model: ModelSpec
    precision: Precision
    blocks: int
    embeds: bool
    ends: bool

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
        new, decoding = np.asarray(tokens, dtype=float), np.asarray(sequences, dtype=float)
        rows = new + decoding
        block = self._matrices_s(rows) + self._attention_s(np.asarray(pairs), np.asarray(context_tokens))
        block = block + 2.0 * self.all_reduce_s(rows) + BLOCK_OVERHEAD_S
        total = self.blocks * block
        if self.ends:
            total = total + self._head_s(np.asarray(prompts) + decoding)
        if self.embeds:
            total = total + self.all_reduce_s(rows)
        return np.asarray(np.where(rows > 0.0, total, 0.0))

    def all_reduce_s(self, tokens: ArrayLike) -> Floats:
        """Seconds of an all-reduce of the hidden states of `tokens` tokens among the stage's GPUs."""
        rows = np.asarray(tokens, dtype=float)
        if self.degree < 2 or self.link is None:
            return np.zeros_like(rows)
        size_bytes = rows * self.model.hidden_size * self.precision.activation_bytes
        steps = 2 * (self.degree - 1)
        return np.asarray(steps * (self.link.latency_s + size_bytes / self.degree / self.link.bandwidth_bytes_per_s))

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
    def kv_bytes_per_token(self) -> float:
        """Bytes of KV cache that a token takes on each of the stage's GPUs; heads are copied beyond their number."""
        heads = -(-self.model.num_kv_heads // self.degree)
        return self.blocks * 2.0 * heads * self.model.head_dim * self.precision.kv_bytes

    def _matrices_s(self, rows: Floats) -> Floats:
        model = self.model
        flops = 2.0 * rows * (model.attention_matrix_parameters + self._visited(1.0) * model.mlp_matrix_parameters)
        weights = model.attention_matrix_parameters + self._read_experts(rows) * model.mlp_matrix_parameters
        return self._roofline_s(flops, weights * self.precision.weight_bytes, GEMM_EFFICIENCY)

    def _visited(self, tokens: float) -> float:
        return tokens * (self.model.experts_per_token if self.model.num_experts else 1)

    def _read_experts(self, rows: Floats) -> Floats:
        """How many experts' weights a step reads: those that at least one of its tokens visits, on average."""
        experts = self.model.num_experts
        if not experts:
            return np.ones_like(rows)
        return np.asarray(experts * (1.0 - (1.0 - self.model.experts_per_token / experts) ** rows))

    def _attention_s(self, pairs: Floats, context_tokens: Floats) -> Floats:
        model = self.model
        flops = 4.0 * pairs * model.num_heads * model.head_dim
        arithmetic = flops / self.degree / (self.gpu.flops_per_s(self.precision.dtype) * ATTENTION_EFFICIENCY)
        read_bytes = context_tokens * self.kv_bytes_per_token / self.blocks
        return np.asarray(arithmetic + read_bytes / (self.gpu.memory_bytes_per_s * MEMORY_EFFICIENCY))

    def _head_s(self, rows: Floats) -> Floats:
        weights = float(self.model.vocab_size * self.model.hidden_size)
        weight_bytes = weights * self.precision.activation_bytes
        return self._roofline_s(2.0 * rows * weights, np.where(rows > 0.0, weight_bytes, 0.0), GEMM_EFFICIENCY)

    def _roofline_s(self, flops: Floats, read_bytes: Floats, efficiency: float) -> Floats:
        peak = self.gpu.flops_per_s(self.precision.dtype) * efficiency * self.degree
        return np.maximum(flops / peak, read_bytes / self.degree / (self.gpu.memory_bytes_per_s * MEMORY_EFFICIENCY))
