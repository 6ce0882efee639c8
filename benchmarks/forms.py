"""One model's weights in the form that each engine reads, made once and kept in a working folder.

    WORK/NAME/hf                 random weights in bfloat16, Hugging Face's files, a made-up tokenizer
              NAME.gguf          f32, f16, bf16: herd's own export; q8_0, q4_0: llama.cpp's quantisation of f16.
                                 llama.cpp stores a 4-bit file's output matrix in 6 bits; in q4_0-head8 it has 8
              openvino-int8      optimum-intel's export, compressed by NNCF: a scale a row
              openvino-int4      symmetric, a scale for 128 numbers; output matrix and embedding in 8 bits
              ctranslate2-int8   its own converter, likewise -bfloat16, -float32

Run `python benchmarks/forms.py S --work DIR` to make them all beforehand. OpenVINO's need `optimum-intel[nncf]`, which
holds transformers back: make those two with `--forms openvino-int8` in an environment of their own (with
`datasets<5` and without torchvision), and they are found.
"""

import argparse
import itertools
import shutil
import string
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from herd.model.config import ModelConfig
from herd.model.gguf import write_gguf
from herd.model.hf import write_hf
from herd.model.source import Shape, expected_shapes
from herd.model.weights import load_config, open_source
from herd.stages.export import write_hf_files
from herd.stages.models import ModelFolder, open_folder
from herd.stages.vocabulary import to_vocabulary
from herd.tokenizer.bpe import Tokenizer
from herd.tokenizer.codec import DialogCodec
from herd.tokenizer.layout import Layout
from herd.tokenizer.specials import SPECIAL_TOKENS
from herd.tokenizer.template import chat_template

SHAPES = {
    "S": ModelConfig(
        dim=2048,
        n_layers=16,
        n_heads=32,
        n_kv_heads=8,
        ffn_hidden=8192,
        vocab_size=128_256,
        tie_embeddings=True,
        max_positions=4096,
    ),
    "T": ModelConfig(
        dim=512, n_layers=8, n_heads=8, n_kv_heads=4, ffn_hidden=1536, vocab_size=32_000, max_positions=4096
    ),
}
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
PEER_FORMS = ("f32", "q8_0", "q4_0", "q4_0-head8", "openvino-int8", "openvino-int4", "ctranslate2-int8")


class Drawn:
    """Random weights, drawn when they are asked for."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.generator = torch.Generator().manual_seed(0)

    def names(self) -> list[str]:
        return list(expected_shapes(self.config))

    def shape(self, name: str) -> Shape:
        return expected_shapes(self.config)[name]

    def dtype(self, name: str) -> torch.dtype:
        return torch.bfloat16

    def read(self, name: str) -> Tensor:
        """Return ones for norms, else numbers that keep a signal's size from layer to layer."""
        shape = self.shape(name)
        if len(shape) < 2:
            return torch.ones(shape)
        return torch.randn(shape, generator=self.generator) * shape[1] ** -0.5


def made_up_tokenizer(size: int) -> Tokenizer:
    """Return a tokenizer of so many ids: all bytes, then pairs and triples of letters."""
    letters = [c.encode() for c in string.ascii_letters]
    longer = (b"".join(parts) for n in (2, 3) for parts in itertools.product(letters, repeat=n))
    tokens = itertools.chain((bytes([i]) for i in range(256)), longer)
    return Tokenizer({token: i for i, token in enumerate(itertools.islice(tokens, size - len(SPECIAL_TOKENS)))})


class Forms:
    """The forms of one model: a shape's name or any Hugging Face folder."""

    def __init__(self, model: str, work: Path) -> None:
        source = None if model in SHAPES else open_folder(Path(model))
        self.name = source.slug if source else model
        self.root = work / self.name
        self.root.mkdir(parents=True, exist_ok=True)
        self.hf = self.root / "hf"
        if not self.hf.exists():
            self._make(self.hf, lambda target: self._write_hf(source, target))

    @property
    def config(self) -> ModelConfig:
        """The model's shape."""
        return load_config(self.hf)

    def path(self, form: str) -> Path:
        """Return a form's file or folder, made if it isn't there yet."""
        engine, _, kind = form.partition("-")
        if engine not in ("openvino", "ctranslate2"):
            return self._gguf(form)
        target = self.root / form
        if not target.exists():
            convert = _to_openvino if engine == "openvino" else _to_ctranslate2
            self._make(target, lambda place: convert(self.hf, place, kind))
        return target

    def _make(self, target: Path, write: Callable[[Path], None]) -> None:
        print(f"making {target}", file=sys.stderr, flush=True)
        temporary = target.with_name(f"partial-{target.name}")
        shutil.rmtree(temporary, ignore_errors=True)  # a folder; the next line, a file
        temporary.unlink(missing_ok=True)
        write(temporary)
        temporary.replace(target)

    def _write_hf(self, model: ModelFolder | None, target: Path) -> None:
        source = open_source(model.path) if model else Drawn(SHAPES[self.name])
        codec = model.codec if model else DialogCodec(made_up_tokenizer(source.config.vocab_size), Layout())
        dtype = source.dtype(source.names()[0])
        write_hf(source, target, dtype=dtype)
        write_hf_files(target, source.config, codec, dtype=dtype, chat=True)

    def _gguf(self, form: str) -> Path:
        target = self.root / f"{form}.gguf"
        if target.exists():
            return target
        if form in DTYPES:
            codec = open_folder(self.hf).codec
            template = chat_template(codec.layout)
            vocabulary = to_vocabulary(codec.tokenizer, chat_template=template, eos_id=codec.tokenizer.eot_id)
            write_gguf(open_source(self.hf), vocabulary, target, dtype=DTYPES[form], name=self.name)
        else:
            exact = self._gguf("f16")
            self._make(target, lambda place: _quantise(exact, place, form))
        return target


def _quantise(source: Path, target: Path, form: str) -> None:
    import llama_cpp

    kind, _, head = form.partition("-")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = {"q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0}[kind]
    if head:
        params.output_tensor_type = params.token_embedding_type = llama_cpp.GGML_TYPE_Q8_0
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params):
        raise RuntimeError(f"llama.cpp could not write {target}")


def _to_openvino(source: Path, target: Path, kind: str) -> None:
    compression = ["--weight-format", kind] + (["--sym", "--group-size", "128", "--ratio", "1"] * (kind == "int4"))
    command = [sys.executable, "-m", "optimum.commands.optimum_cli", "export", "openvino"]
    task = ["--task", "text-generation-with-past", "--model", str(source)]
    subprocess.run([*command, *task, *compression, str(target)], check=True, stdout=sys.stderr)


def _to_ctranslate2(source: Path, target: Path, kind: str) -> None:
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(source), low_cpu_mem_usage=True).convert(str(target), quantization=kind)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="S, T or a model folder")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "herd-bench")
    parser.add_argument("--forms", nargs="*", default=PEER_FORMS)
    options = parser.parse_args()
    forms = Forms(options.model, options.work)
    for form in options.forms:
        print(forms.path(form))


if __name__ == "__main__":
    main()
