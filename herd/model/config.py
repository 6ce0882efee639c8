"""The shape of a model, in the field's names, to and from Hugging Face's `config.json`."""

from typing import Any

from pydantic import model_validator

from herd.base.config import Section, validate
from herd.base.errors import ConfigError

_WIDEST, _DEEPEST = 1 << 20, 1 << 14


class RopeScaling(Section):
    """Llama 3.1's frequency scaling: wavelengths beyond the original context are stretched by `factor`."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    @model_validator(mode="after")
    def _check(self) -> "RopeScaling":
        # worded so that NaN is refused too
        if not (0 < self.low_freq_factor < self.high_freq_factor and self.factor > 0):
            raise ValueError("factor and low_freq_factor must be above 0, and high_freq_factor above low_freq_factor")
        if self.original_max_position_embeddings < 1:
            raise ValueError("original_max_position_embeddings must be at least 1")
        return self


class Shape(Section):
    """Widths and depths, the part of a shape that a recipe chooses. `ffn_hidden` is the SwiGLU width."""

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    ffn_hidden: int
    head_dim: int | None = None
    rope_theta: float = 500_000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = False

    @model_validator(mode="after")
    def _check(self) -> "Shape":
        sizes = (self.dim, self.n_layers, self.n_heads, self.n_kv_heads, self.ffn_hidden, self.head_dim or 1)
        if min(sizes) < 1:
            raise ValueError("every width and depth must be at least 1")
        if max(sizes) > _WIDEST or self.n_layers > _DEEPEST:  # a file's slip must not list tensors for hours
            raise ValueError(f"a width above {_WIDEST:,} or more n_layers than {_DEEPEST:,} is no model that herd runs")
        if not (self.rope_theta > 0 and self.norm_eps >= 0):
            raise ValueError(f"rope_theta {self.rope_theta} must be above 0, and norm_eps {self.norm_eps} not below")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads {self.n_heads} must be a multiple of n_kv_heads {self.n_kv_heads}")
        if self.head_dim is None and self.dim % self.n_heads:
            raise ValueError(f"dim {self.dim} must be a multiple of n_heads {self.n_heads}, or head_dim be given")
        if self.head_size % 2:
            raise ValueError(f"the size of a head, {self.head_size}, must be even: RoPE turns pairs")
        return self

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.head_dim or self.dim // self.n_heads


class ModelConfig(Shape):
    """One transformer. `max_positions` is the longest row it is meant for."""

    vocab_size: int
    rope_scaling: RopeScaling | None = None
    max_positions: int = 8192

    def parameters(self) -> int:
        """Return the number of parameters, counted in closed form (a test compares it with the built model)."""
        attention = self.dim * self.head_size * (2 * self.n_heads + 2 * self.n_kv_heads)
        block = attention + 3 * self.dim * self.ffn_hidden + 2 * self.dim
        embeddings = self.vocab_size * self.dim * (1 if self.tie_embeddings else 2)
        return self.n_layers * block + embeddings + self.dim

    def flops_per_token(self, context: int, *, causal: bool = True) -> float:
        """Return training FLOPs a token (forward and backward): 6(N - N_embedding) + 12·L·width·context, the
        attention term halved when only the causal triangle is counted."""
        embedding = self.vocab_size * self.dim if not self.tie_embeddings else 0
        attention = 12 * self.n_layers * self.n_heads * self.head_size * context
        return 6 * (self.parameters() - embedding) + attention / (2 if causal else 1)


def to_hf(config: ModelConfig, *, bos_id: int, eos_ids: list[int], dtype: str = "float32") -> dict[str, Any]:
    """Return the `config.json` of a Hugging Face Llama directory."""
    scaling = config.rope_scaling.model_dump() | {"rope_type": "llama3"} if config.rope_scaling else None
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_size": config.dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.ffn_hidden,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": bos_id,
        "eos_token_id": eos_ids,
        "torch_dtype": dtype,
    }


def from_hf(values: Any, *, where: str) -> ModelConfig:
    """Read a Hugging Face `config.json`. Raises ConfigError on mathematics that herd doesn't implement.

    A key that herd doesn't know is refused unless it is off or empty: it may change what the model computes.
    """
    if not isinstance(values, dict) or values.get("model_type") != "llama":
        values = values if isinstance(values, dict) else {}
        raise ConfigError(f"{where}: model_type {values.get('model_type')!r} is not 'llama'")
    _check_mathematics(values, where)
    # what a file leaves out has the defaults of transformers' LlamaConfig, not herd's
    theta, scaling = _rope(values, where)
    shape = {
        "dim": values["hidden_size"],
        "n_layers": values["num_hidden_layers"],
        "n_heads": values["num_attention_heads"],
        "n_kv_heads": values.get("num_key_value_heads") or values["num_attention_heads"],
        "ffn_hidden": values["intermediate_size"],
        "vocab_size": values["vocab_size"],
        "head_dim": values.get("head_dim"),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "norm_eps": values.get("rms_norm_eps", 1e-6),
        "max_positions": values.get("max_position_embeddings", 2048),
        "tie_embeddings": bool(values.get("tie_word_embeddings", False)),
    }
    return validate(ModelConfig, shape, where=where)


def _check_mathematics(values: dict[str, Any], where: str) -> None:
    if values.get("hidden_act", "silu") != "silu" or values.get("attention_bias") or values.get("mlp_bias"):
        raise ConfigError(f"{where}: hidden_act must be 'silu' and biases off")
    if missing := [key for key in _NEEDED if key not in values]:
        raise ConfigError(f"{where}: key {', '.join(missing)} is missing")
    known = {*_NEEDED, *_READ, *_DESCRIBING}
    unknown = [key for key, value in values.items() if key not in known and not key.startswith("_") and value]
    if unknown:
        raise ConfigError(
            f"{where}: key {unknown[0]!r} ({values[unknown[0]]!r:.60}) is not known to herd and may change what the "
            "model computes; take it out if it only describes"
        )


def _rope(values: dict[str, Any], where: str) -> tuple[float, dict[str, Any] | None]:
    """Return theta and the scaling, from either of the two places where transformers has kept them."""
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise ConfigError(f"{where}: rope_scaling {rope!r:.60} is not a mapping")
    rope = dict(rope)
    kind = rope.pop("rope_type", rope.pop("type", "default"))
    rope.pop("type", None)
    theta = values.get("rope_theta") or rope.get("rope_theta") or 10_000.0
    rope.pop("rope_theta", None)
    if kind not in ("default", "llama3"):
        raise ConfigError(f"{where}: rope_scaling type {kind!r} is not known; herd reads 'llama3'")
    if kind == "default":
        return theta, None
    fields = set(RopeScaling.model_fields)
    if wrong := sorted((set(rope) - fields) | (fields - set(rope))):
        raise ConfigError(f"{where}: rope_scaling of type 'llama3' needs {sorted(fields)}; {wrong[0]!r} is amiss")
    return theta, rope


_NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
_READ = (
    "model_type",
    "hidden_act",
    "attention_bias",
    "mlp_bias",
    "num_key_value_heads",
    "head_dim",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "rms_norm_eps",
    "max_position_embeddings",
    "tie_word_embeddings",
    "quantization_config",  # by model/quant_files.py
)
# Keys that say nothing of what the forward pass computes: where the file came from, training, generation, labels.
_DESCRIBING = (
    "architectures",
    "attention_dropout",
    "auto_map",
    "begin_suppress_tokens",
    "bos_token_id",
    "cache_implementation",
    "chunk_size_feed_forward",
    "do_sample",
    "dtype",
    "eos_token_id",
    "hidden_dropout",
    "id2label",
    "initializer_range",
    "is_decoder",
    "is_llama_config",
    "label2id",
    "length_penalty",
    "max_length",
    "min_length",
    "model_max_length",
    "name_or_path",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "pretraining_tp",
    "prefix",
    "problem_type",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "task_specific_params",
    "temperature",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "typical_p",
    "transformers_version",
    "unsloth_fixed",
    "unsloth_version",
    "use_cache",
)
