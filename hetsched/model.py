"""A transformer language model by its shape: exact parameters, FLOPs and bytes per block."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from hetsched.errors import HetschedError
from hetsched.fields import Fields

NORMS = ("rmsnorm", "layernorm")
POSITIONS = ("rotary", "learned")
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A decoder-only transformer.

    Counts here are exact to the parameter. `max_positions` is the longest sequence; `position_rows` counts the rows of
    a learned position table (OPT keeps two more). `embedding_size` differs from `hidden_size` only where the
    embedding is projected (OPT-350M). `final_norm` is False for the post-norm OPT-350M.
    """

    name: str
    num_layers: int
    hidden_size: int
    num_heads: int
    ffn_size: int
    vocab_size: int
    max_positions: int
    num_kv_heads: int
    head_dim: int
    family: str = "llama"
    gated_mlp: bool = True
    activation: str = "silu"
    norm: str = "rmsnorm"
    norm_epsilon: float = 1e-5
    positions: str = "rotary"
    position_rows: int = 0
    rope_theta: float = 10000.0
    rotary_fraction: float = 1.0
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    parallel_residual: bool = False
    final_norm: bool = True
    tied_embeddings: bool = False
    embedding_size: int = 0
    num_experts: int = 0
    experts_per_token: int = 0

    def __post_init__(self) -> None:
        where = f"model {self.name}"
        for name in ("num_layers", "hidden_size", "num_heads", "num_kv_heads", "head_dim", "ffn_size", "vocab_size"):
            if getattr(self, name) < 1:
                raise HetschedError(f"{where}: {name} is {getattr(self, name)}, expected at least 1")
        if self.num_heads % self.num_kv_heads:
            raise HetschedError(
                f"{where}: {self.num_heads} attention heads cannot share {self.num_kv_heads} key-value heads evenly",
                hint="num_heads must be a multiple of num_kv_heads",
            )
        if self.num_experts and not 1 <= self.experts_per_token <= self.num_experts:
            raise HetschedError(
                f"{where}: {self.experts_per_token} experts a token of {self.num_experts}",
                hint="set experts_per_token between 1 and num_experts",
            )

    # ---- parameters

    @property
    def _norm_parameters(self) -> int:
        return self.hidden_size * (2 if self.norm == "layernorm" else 1)

    @property
    def attention_matrix_parameters(self) -> int:
        """Weights of the q, k, v and output projections, without biases."""
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return self.hidden_size * (2 * queries + 2 * keys)

    @property
    def mlp_matrix_parameters(self) -> int:
        """Weights of one MLP (one expert), without biases."""
        return (3 if self.gated_mlp else 2) * self.hidden_size * self.ffn_size

    @property
    def block_parameters(self) -> int:
        """Parameters of one transformer block, all experts included."""
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        total = self.attention_matrix_parameters + 2 * self._norm_parameters
        total += (queries + 2 * keys) * self.qkv_bias + self.hidden_size * self.out_bias
        total += 2 * self.head_dim * self.qk_norm
        mlp = self.mlp_matrix_parameters
        mlp += ((2 if self.gated_mlp else 1) * self.ffn_size + self.hidden_size) * self.mlp_bias
        if self.num_experts:
            return total + self.num_experts * mlp + self.hidden_size * self.num_experts
        return total + mlp

    @property
    def embedding_parameters(self) -> int:
        """Token and position embeddings, with the projection where there is one; they live with block 0."""
        width = self.embedding_size or self.hidden_size
        projection = width * self.hidden_size if width != self.hidden_size else 0
        learned = self.position_rows * self.hidden_size if self.positions == "learned" else 0
        return self.vocab_size * width + learned + projection

    @property
    def head_parameters(self) -> int:
        """Final norm and LM head, which live with the last block; a tied LM head has no parameters of its own."""
        width = self.embedding_size or self.hidden_size
        projection = width * self.hidden_size if width != self.hidden_size else 0
        head = 0 if self.tied_embeddings else self.vocab_size * width
        return self._norm_parameters * self.final_norm + projection + head

    @property
    def tied_parameters(self) -> int:
        """Parameters of the token embedding that the LM head shares; 0 where they are apart."""
        return self.vocab_size * (self.embedding_size or self.hidden_size) if self.tied_embeddings else 0

    @property
    def parameters(self) -> int:
        """All parameters, tied ones once."""
        return self.embedding_parameters + self.num_layers * self.block_parameters + self.head_parameters

    def stage_parameters(self, layers: tuple[int, int]) -> int:
        """Parameters that a stage with these blocks holds; a tied embedding stands on both ends of a pipeline."""
        first, last = layers
        total = (last - first) * self.block_parameters
        if first == 0:
            total += self.embedding_parameters
        if last == self.num_layers:
            total += self.head_parameters
            if first != 0:
                total += self.tied_parameters
        return total

    # ---- arithmetic

    def block_forward_flops(self, sequences: float, seq_len: int) -> float:
        """FLOPs of one block's forward pass over `sequences` of `seq_len` tokens: 2 a weight and token, and attention.

        Attention counts the full square, masked half included, as MFU is usually stated (PaLM, arXiv 2204.02311,
        appendix B). A mixture of experts counts the experts a token visits, and the router.
        """
        tokens = sequences * seq_len
        mlp = self.mlp_matrix_parameters
        if self.num_experts:
            mlp = self.experts_per_token * mlp + self.hidden_size * self.num_experts
        matrices = 2.0 * tokens * (self.attention_matrix_parameters + mlp)
        return matrices + 4.0 * tokens * seq_len * self.num_heads * self.head_dim

    def head_forward_flops(self, sequences: float, seq_len: int) -> float:
        """FLOPs of the LM head's forward pass."""
        width = self.embedding_size or self.hidden_size
        projection = width * self.hidden_size if width != self.hidden_size else 0
        return 2.0 * sequences * seq_len * (self.vocab_size * width + projection)

    def training_flops(self, sequences: float, seq_len: int) -> float:
        """FLOPs of one forward and backward pass through the whole model (backward counts twice), none recomputed."""
        forward = self.num_layers * self.block_forward_flops(sequences, seq_len)
        return 3.0 * (forward + self.head_forward_flops(sequences, seq_len))

    # ---- JSON

    def to_json(self) -> dict[str, Any]:
        """All fields, as a plan file holds them."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "model") -> "ModelSpec":
        """A model from our own field names; what is derivable may be left out (kv heads, head_dim, position rows).

        Raises HetschedError where a field is missing, of the wrong type, or out of range.
        """
        source = Fields(data, where)
        given: dict[str, Any] = {"name": source.text("name", "unnamed")}
        for key in ("num_layers", "hidden_size", "num_heads", "vocab_size"):
            given[key] = source.integer(key, maximum=10**7)
        hidden, heads = given["hidden_size"], given["num_heads"]
        given["ffn_size"] = source.integer("ffn_size", 4 * hidden)
        given["max_positions"] = source.integer("max_positions", source.integer("seq_len", 2048))
        given["num_kv_heads"] = source.integer("num_kv_heads", heads)
        if "head_dim" not in source and hidden % heads:
            raise HetschedError(
                f"{where}: hidden_size {hidden} is not a multiple of num_heads {heads}", hint="give head_dim"
            )
        given["head_dim"] = source.integer("head_dim", hidden // heads)
        given["norm"] = source.choice("norm", NORMS, "rmsnorm")
        given["positions"] = source.choice("positions", POSITIONS, "rotary")
        given["activation"] = source.choice("activation", ACTIVATIONS, "silu")
        learned = given["max_positions"] if given["positions"] == "learned" else 0
        given["position_rows"] = source.integer("position_rows", learned, minimum=0)
        for option in fields(cls):
            if option.name in given:
                continue
            if option.type is bool:
                given[option.name] = source.flag(option.name, bool(option.default))
            elif option.type is int:
                given[option.name] = source.integer(option.name, int(option.default), minimum=0)  # type: ignore[arg-type]
            elif option.type is float:
                given[option.name] = source.number(option.name, float(option.default), above=0.0)  # type: ignore[arg-type]
            else:
                given[option.name] = source.text(option.name, str(option.default))
        source.skip("dtype")
        source.finish()
        return cls(**given)
