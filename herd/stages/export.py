"""Write a model for others to run, and give it its name only when it was read back and matched its source.

model folder --tensor by tensor--> NAME.partial/ --reloaded, compared--> NAME/
"""

import fcntl
import json
import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from herd import __version__
from herd.base.errors import ConfigError, RunError
from herd.base.files import check_disk, write_atomic
from herd.base.progress import Progress
from herd.data.extras import available
from herd.model.config import ModelConfig
from herd.model.gguf import GGUFSource, stored_as, write_gguf
from herd.model.hf import hf_quantization, write_hf, written_as
from herd.model.meta import says_meta, write_meta
from herd.model.quant import QuantFormat, planned, stored_plan
from herd.model.quant_files import QuantisedSource
from herd.model.source import Source
from herd.model.weights import open_source, write_hf_configs
from herd.stages.models import ModelFolder
from herd.stages.verify import Reloaded, verify
from herd.stages.vocabulary import from_vocabulary, to_vocabulary
from herd.tokenizer.codec import DialogCodec
from herd.tokenizer.hf_files import load_tokenizer, read_chat_template, read_hf_tokenizer, write_hf_tokenizer
from herd.tokenizer.layout import LAYOUT_FILE, layout_to_json
from herd.tokenizer.template import chat_template

Format = Literal["hf", "meta", "gguf"]
FORMATS: dict[str, Format] = {name: name for name in get_args(Format)}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
REPORT = "export.json"
_BESIDE_WEIGHTS = 64_000_000  # tokenizer and configs of a 128k vocabulary, from above


@dataclass(frozen=True)
class Plan:
    """What to write: format, model-parallel ranks (Meta only), number format (None: as stored); verified or not.

    quant: quantise the layers; everything else is then bfloat16. Only for `hf`.
    """

    format: Format = "hf"
    mp: int = 1
    dtype: torch.dtype | None = None
    verified: bool = True
    quant: QuantFormat | None = None

    def __post_init__(self) -> None:
        if self.quant and self.format != "hf":
            own = (
                "llama.cpp quantises it itself: llama-quantize" if self.format == "gguf" else "there is no such format"
            )
            raise ConfigError(f"--quant {self.quant} is for --format hf only; for {self.format} {own}")
        if self.quant and self.dtype not in (None, torch.bfloat16):
            raise ConfigError(f"--quant {self.quant} writes all other weights as bf16; leave out --dtype")


def export(model: ModelFolder, target: Path, plan: Plan, progress: Progress) -> Mapping[str, Any]:
    """Write the folder `target` and return the report that lies in it. Raises RunError; then `target` isn't there."""
    if target.exists():
        raise RunError(f"{target}: is there already; remove it or choose another --to")
    source = _source(model, plan)
    dtype = torch.bfloat16 if plan.quant else plan.dtype or source.dtype(source.names()[0])
    need = _BESIDE_WEIGHTS + sum(
        torch.Size(source.shape(name)).numel() * written_as(source, name, dtype).itemsize for name in source.names()
    )
    check_disk(target, need, remedy="free some or choose another --to")
    written: list[str] = []

    def advance(name: str) -> None:
        written.append(name)
        progress.advance(len(written), len(source.names()))

    with _partial(target) as folder:
        progress.stage("write", "running", f"{need / 1e9:.2f} GB")
        files = _WRITERS[plan.format](model, folder, plan, dtype, advance)
        progress.stage("write", "done", f"{need / 1e9:.2f} GB")
        report: dict[str, Any] = {
            "herd_version": __version__,
            "source": str(model.path),
            "format": plan.format,
            "dtype": str(dtype).removeprefix("torch."),
            "verified": False,
        } | ({"quant": plan.quant} if plan.quant else {})
        if plan.format == "meta":
            report["model_parallel"] = plan.mp
            if not says_meta(model.config):
                report["note"] = "Meta's own code reads no other RoPE scaling than 3.1's and would turn by other angles"
        if plan.verified:
            progress.stage("verify", "running", "reading it back")
            report["verified"] = files.verify(source, model, dtype)
            progress.stage("verify", "done", "matches its source")
        write_atomic(folder / REPORT, json.dumps(report, indent=2) + "\n")
        folder.rename(target)
    return report


def _source(model: ModelFolder, plan: Plan) -> Source:
    """Return the weights as they will be written, but for the format of floats. Raises RunError on quantised ones."""
    source = open_source(model.path)
    if stored_plan(source):
        raise RunError(f"{model.path}: its weights are quantised already; copy the folder, or export the original")
    return QuantisedSource(source, planned(model.config, plan.quant, head=False)) if plan.quant else source


@contextmanager
def _partial(target: Path) -> Generator[Path]:
    """Yield an empty folder beside the target under a temporary name; what a killed attempt left goes first."""
    folder = target.with_name(f"{target.name}.partial")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"{target}: another process is writing it") from None
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            Path(lock.name).unlink(missing_ok=True)


@dataclass(frozen=True)
class Written:
    """How to read back what a writer wrote."""

    reload: Callable[[], Reloaded]
    stored_as: Callable[[str], torch.dtype]

    def verify(self, source: Any, model: ModelFolder, dtype: torch.dtype) -> Mapping[str, Any]:
        """Compare with the source."""
        return verify(source, self.reload(), model.codec, stored_as=self.stored_as, dtype=dtype)


Advance = Callable[[str], None]


def _write_hf(model: ModelFolder, folder: Path, plan: Plan, dtype: torch.dtype, advance: Advance) -> Written:
    source = _source(model, plan)
    write_hf(source, folder, dtype=dtype, advance=advance)
    chat = model.path.name != "base"
    quantization = hf_quantization(stored_plan(source), model.config) if plan.quant else None
    write_hf_files(folder, model.config, model.codec, dtype=dtype, chat=chat, quantization=quantization)
    if model.run is not None and (model.run / "MODEL_CARD.md").is_file():
        shutil.copyfile(model.run / "MODEL_CARD.md", folder / "README.md")

    def reload() -> Reloaded:
        return Reloaded(open_source(folder), _library_encoder(folder), read_chat_template(folder))

    return Written(reload, lambda name: written_as(source, name, dtype))


def write_hf_files(
    folder: Path,
    config: ModelConfig,
    codec: DialogCodec,
    *,
    dtype: torch.dtype,
    chat: bool,
    quantization: Mapping[str, Any] | None = None,
) -> None:
    """Write everything of a Hugging Face directory but the weights: configs, tokenizer and, for `chat`, the template.

    The dialog layout goes into `dialog.json` either way: fine-tuning a base model needs it.
    """
    tokenizer = codec.tokenizer
    stops = list(tokenizer.stop_ids)
    write_hf_configs(config, folder, bos_id=tokenizer.bos_id, eos_ids=stops, dtype=dtype, quantization=quantization)
    write_hf_tokenizer(
        tokenizer,
        folder,
        chat_template=chat_template(codec.layout) if chat else None,
        max_positions=config.max_positions,
        eos_id=tokenizer.eot_id if chat else None,
    )
    write_layout(folder, codec)


def write_layout(folder: Path, codec: DialogCodec) -> None:
    """Write the dialog layout, which no format of others has a place for."""
    write_atomic(folder / LAYOUT_FILE, json.dumps(layout_to_json(codec.layout), indent=2) + "\n")


def _write_meta(model: ModelFolder, folder: Path, plan: Plan, dtype: torch.dtype, advance: Advance) -> Written:
    write_meta(open_source(model.path), folder, mp=plan.mp, dtype=dtype, advance=advance)
    model.tokenizer.save(folder)
    write_layout(folder, model.codec)
    return Written(
        lambda: Reloaded(open_source(folder), load_tokenizer(folder).encode, None),
        lambda name: dtype,
    )


def _write_gguf(model: ModelFolder, folder: Path, plan: Plan, dtype: torch.dtype, advance: Advance) -> Written:
    template = chat_template(model.codec.layout) if model.path.name != "base" else None
    file = folder / f"{model.slug}-{str(dtype).removeprefix('torch.')}.gguf"
    eos_id = model.tokenizer.eot_id if template is not None else None
    vocabulary = to_vocabulary(model.tokenizer, chat_template=template, eos_id=eos_id)
    write_gguf(open_source(model.path), vocabulary, file, dtype=dtype, name=model.slug, advance=advance)
    write_layout(folder, model.codec)

    def reload() -> Reloaded:
        source = GGUFSource(file)
        return Reloaded(source, from_vocabulary(source.vocabulary).encode, source.vocabulary.chat_template)

    return Written(reload, lambda name: stored_as(name, dtype))


def _library_encoder(folder: Path) -> Callable[[str], list[int]]:
    """Return how others will encode text with a tokenizer.json: by the `tokenizers` library where it is installed."""
    if not available("tokenizers"):
        return read_hf_tokenizer(folder).encode
    from tokenizers import Tokenizer as Library

    library = Library.from_file(str(folder / "tokenizer.json"))
    library.encode_special_tokens = True  # names of control tokens in text stay text
    return lambda text: library.encode(text, add_special_tokens=False).ids


_WRITERS: dict[str, Callable[[ModelFolder, Path, Plan, torch.dtype, Advance], Written]] = {
    "hf": _write_hf,
    "meta": _write_meta,
    "gguf": _write_gguf,
}
