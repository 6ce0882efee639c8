"""The published Llama 3 shapes, and recognising them (arXiv:2407.21783, table 3; cards of 3.1, 3.2, 3.3)."""

from dataclasses import dataclass

from herd.base.errors import ConfigError
from herd.model.config import ModelConfig, RopeScaling

CONTEXT = 131_072
_VOCAB = 128_256


@dataclass(frozen=True)
class Published:
    """A published shape, who has it, and how Meta's params.json spells its SwiGLU width."""

    config: ModelConfig
    models: tuple[str, ...]
    multiple_of: int
    ffn_dim_multiplier: float


def _entry(
    dim: int,
    n_layers: int,
    n_heads: int,
    ffn_hidden: int,
    *,
    ffn: tuple[int, float],
    models: tuple[str, ...],
    factor: float | None = 8.0,
    tied: bool = False,
) -> Published:
    config = ModelConfig(
        dim=dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=8,
        ffn_hidden=ffn_hidden,
        vocab_size=_VOCAB,
        rope_scaling=RopeScaling(factor=factor) if factor else None,
        max_positions=CONTEXT if factor else 8192,
        tie_embeddings=tied,
    )
    return Published(config, models, *ffn)


PUBLISHED: dict[str, Published] = {
    "llama3-8b": _entry(4096, 32, 32, 14336, ffn=(1024, 1.3), models=("Llama 3 8B",), factor=None),
    "llama3-70b": _entry(8192, 80, 64, 28672, ffn=(4096, 1.3), models=("Llama 3 70B",), factor=None),
    "llama3.1-8b": _entry(4096, 32, 32, 14336, ffn=(1024, 1.3), models=("Llama 3.1 8B", "Llama Guard 3 8B")),
    "llama3.1-70b": _entry(8192, 80, 64, 28672, ffn=(4096, 1.3), models=("Llama 3.1 70B", "Llama 3.3 70B")),
    "llama3.1-405b": _entry(16384, 126, 128, 53248, ffn=(4096, 1.2), models=("Llama 3.1 405B",)),
    "llama3.2-1b": _entry(
        2048, 16, 32, 8192, ffn=(256, 1.5), models=("Llama 3.2 1B", "Llama Guard 3 1B"), factor=32.0, tied=True
    ),
    "llama3.2-3b": _entry(3072, 28, 24, 8192, ffn=(256, 1.0), models=("Llama 3.2 3B",), factor=32.0, tied=True),
}
# models that share another's shape, under the names that people use
_ALIASES = {
    "llama3.3-70b": "llama3.1-70b",
    "llama-guard-3-8b": "llama3.1-8b",
    "llama-guard-3-1b": "llama3.2-1b",
}


def published(name: str) -> ModelConfig:
    """Return a published shape by name, such as 'llama3.1-8b'. Raises ConfigError."""
    found = PUBLISHED.get(_ALIASES.get(name, name))
    if found is None:
        raise ConfigError(f"no published shape {name!r}; there are {', '.join([*PUBLISHED, *_ALIASES])}")
    return found.config


def recognise(config: ModelConfig) -> tuple[str, ...]:
    """Return the names of the published models that compute as this config says; none for another shape.

    Models of one shape can't be told apart by it: the weights, the tokenizer's template or the folder's name can.
    """
    wanted = _mathematics(config)
    return next((entry.models for entry in PUBLISHED.values() if _mathematics(entry.config) == wanted), ())


def _mathematics(config: ModelConfig) -> ModelConfig:
    return config.model_copy(update={"max_positions": 0, "head_dim": config.head_size})
