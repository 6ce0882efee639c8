"""What a model folder is: format, shape, published name, tokenizer and dialogs, as lines for a person."""

from pathlib import Path

from herd.base.errors import HerdError
from herd.model.meta import MetaSource
from herd.model.published import recognise
from herd.model.quant import stored_plan
from herd.model.source import Source
from herd.model.weights import open_source
from herd.stages.models import ModelFolder, open_folder
from herd.tokenizer import specials
from herd.tokenizer.hf_files import read_chat_template
from herd.tokenizer.rendering import check_template, compare_template

_DTYPES = {"torch.bfloat16": "bfloat16", "torch.float16": "float16", "torch.float32": "float32"}


def report(path: Path) -> list[tuple[str, str]]:
    """Return what was found, as (name, text). Raises HerdError where a part is broken or doesn't fit the others."""
    model = open_folder(path)
    source = open_source(model.path)
    return [
        ("found", _format(model, source)),
        ("model", _name(model)),
        ("shape", _shape(model)),
        ("positions", _positions(model)),
        ("weights", _weights(source)),
        ("tokenizer", _tokenizer(model)),
        ("dialogs", _dialogs(model)),
    ]


def _format(model: ModelFolder, source: Source) -> str:
    if isinstance(source, MetaSource):
        return f"Meta's format in {model.path}, {source.model_parallel} model-parallel rank(s)"
    files = len(list(model.path.glob("*.safetensors")))
    kind = f"a model of the run {model.run}" if model.run else "a Hugging Face directory"
    return f"{kind}: {model.path}, {files} safetensors file(s)"


def _name(model: ModelFolder) -> str:
    names = recognise(model.config)
    if not names:
        return "a shape of its own, none of the published ones"
    return f"{names[0]}, or another of that shape ({', '.join(names[1:])})" if len(names) > 1 else names[0]


def _shape(model: ModelFolder) -> str:
    c = model.config
    return (
        f"{c.n_layers} layers, dim {c.dim}, {c.n_heads} heads of {c.head_size} over {c.n_kv_heads} key/value heads, "
        f"ffn {c.ffn_hidden}, vocabulary {c.vocab_size}{', tied embeddings' if c.tie_embeddings else ''}"
    )


def _positions(model: ModelFolder) -> str:
    c = model.config
    scaled = c.rope_scaling
    how = f"scaled by {scaled.factor:g} from {scaled.original_max_position_embeddings}" if scaled else "not scaled"
    return f"{c.max_positions}, RoPE theta {c.rope_theta:g}, {how}"


def _weights(source: Source) -> str:
    names = source.names()
    size = sum(_numel(source, name) * source.dtype(name).itemsize for name in names)
    packings = sorted({f"int{p.bits} in groups of {p.group}" for p in stored_plan(source).values()})
    floats = [name for name in names if name.endswith(".weight")]
    dtypes = sorted({_DTYPES.get(str(source.dtype(name)), str(source.dtype(name))) for name in floats})
    return f"{source.config.parameters():,} parameters, {'/'.join([*packings, *dtypes])}, {size / 1e9:.3g} GB"


def _numel(source: Source, name: str) -> int:
    count = 1
    for width in source.shape(name):
        count *= width
    return count


def _tokenizer(model: ModelFolder) -> str:
    t = model.tokenizer
    kind = "the official one of Llama 3" if t.fingerprint == specials.OFFICIAL_SHA256 else "a learned one"
    return f"{t.n_ranks:,} ranks and {t.n_vocab - t.n_ranks} special tokens, {kind}; fits the embedding"


def _dialogs(model: ModelFolder) -> str:
    template = read_chat_template(model.path)
    if template is None:
        return "no chat template: a base model, or Meta's format, which has none"
    try:
        check_template(template)
    except HerdError as error:
        raise type(error)(f"{model.path}: {error}") from None
    difference = compare_template(template, model.codec)
    return (
        "its chat template gives herd's own ids" if difference is None else f"its chat template differs; {difference}"
    )
