"""Exported GGUF files in llama.cpp: the same greedy continuations, logits and token ids as herd's own.

Models are toys with random weights, every shape that the format writes differently, or `--model FOLDER`, any that herd
opens. Prompts reach beyond the original context, so that RoPE's scaling counts. llama.cpp keeps keys and values in
float32 here (its own default is float16) and runs on the processor.
    reference  herd in float32 over the numbers as written
    greedy     prompts that are continued token by token as by the reference
    logits     largest difference from the reference at any place of a prompt, over the largest logit; beside it that
               of herd computing in the format itself: both round activations, at different places
    ids        golden strings whose ids differ, with the first place

Run `python benchmarks/llamacpp.py --tokenizer FILE --golden FILE.jsonl`; needs the `gguf` and `bench` extras.
"""

import argparse
import copy
import tempfile
from collections import Counter
from pathlib import Path

import torch
from llama_cpp import GGML_TYPE_F32, Llama

from herd.base.files import read_jsonl
from herd.engine.engine import Engine
from herd.engine.request import Request, Sampling
from herd.model.config import ModelConfig, RopeScaling
from herd.model.gguf import write_gguf
from herd.model.source import WeightsSource
from herd.model.transformer import Transformer
from herd.model.weights import load_model
from herd.stages.vocabulary import to_vocabulary
from herd.tokenizer.bpe import Tokenizer
from herd.tokenizer.hf_files import load_tokenizer

ORIGINAL = 64  # positions before RoPE's scaling begins
LENGTHS = (3, 40, 100, 300)
NEW_TOKENS = 32
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SCALED = {"rope_scaling": RopeScaling(factor=8.0, original_max_position_embeddings=ORIGINAL)}
SHAPES = {
    "gqa": {},
    "tied": {"tie_embeddings": True},
    "wide heads": {"head_dim": 32},
    "scaled": SCALED,
    "scaled, tied": SCALED | {"tie_embeddings": True},
}


def toy(vocab_size: int, changes: dict) -> Transformer:
    """Draw a model whose attention looks far back, so that a wrong angle changes what it says."""
    config = ModelConfig(
        **{"dim": 64, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "ffn_hidden": 96, "max_positions": 512}
        | {"vocab_size": vocab_size}
        | changes
    )
    model = Transformer(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.dim() < 2 else 0.0, 0.2, generator=generator)
    return model.eval()


def prompts(vocab_size: int) -> list[list[int]]:
    """Draw one prompt of each length."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, vocab_size, (n,), generator=generator).tolist() for n in LENGTHS]


def opened(path: Path) -> Llama:
    """Load a file into llama.cpp with a score of every place."""
    return Llama(
        str(path),
        n_ctx=max(LENGTHS) + NEW_TOKENS,
        n_batch=max(LENGTHS),
        n_threads=1,
        logits_all=True,
        type_k=GGML_TYPE_F32,
        type_v=GGML_TYPE_F32,
        verbose=False,
    )


def continued(theirs: Llama, prompt: list[int]) -> tuple[torch.Tensor, list[int]]:
    """Return the logits [t, vocab] of the prompt and the greedy tokens after it."""
    theirs.reset()
    theirs.eval(prompt)
    logits = torch.tensor(theirs.scores[: len(prompt)])
    ids: list[int] = []
    for _ in range(NEW_TOKENS):
        ids.append(int(theirs.scores[theirs.n_tokens - 1].argmax()))
        theirs.eval(ids[-1:])
    return logits, ids


@torch.no_grad()
def compare(model: Transformer, path: Path, dtype: torch.dtype) -> tuple[int, float, float]:
    """Return how many prompts are continued alike, and the largest relative differences: llama.cpp's and herd's own."""
    rounded = copy.deepcopy(model).to(dtype)
    reference = copy.deepcopy(rounded).float()
    theirs, alike, worst, own = opened(path), 0, 0.0, 0.0
    for prompt in prompts(model.config.vocab_size):
        logits, ids = continued(theirs, prompt)
        request = Request(tuple(prompt), Sampling(max_tokens=NEW_TOKENS))
        alike += Engine(reference, max_running=1).generate([request])[0].ids == ids
        tokens = torch.tensor([prompt])
        wanted = reference.logits(reference(tokens))[0]
        largest = wanted.abs().max()
        worst = max(worst, float((logits - wanted).abs().max() / largest))
        own = max(own, float((rounded.logits(rounded(tokens))[0].float() - wanted).abs().max() / largest))
    theirs.close()
    return alike, worst, own


def compare_ids(tokenizer: Tokenizer, path: Path, golden: Path) -> None:
    """Print for each category of strings how many llama.cpp encodes as herd does, and what differs."""
    theirs = opened(path)
    total: Counter[str] = Counter()
    different: list[tuple[str, str]] = []
    for row in read_jsonl(golden):
        category, text = row.get("category", "all"), row["text"]
        total[category] += 1
        ours = tokenizer.encode(text)
        # the bytes that herd encodes: lone surrogates are U+FFFD
        found = theirs.tokenize(tokenizer.decode_bytes(ours), add_bos=False, special=False)
        if found != ours:
            at = next(
                (i for i, (a, b) in enumerate(zip(found, ours, strict=False)) if a != b), min(len(found), len(ours))
            )
            different.append(
                (category, f"{row.get('id', '')} place {at}: {found[at : at + 4]}, herd {ours[at : at + 4]}")
            )
    theirs.close()
    print(f"\n{total.total()} strings, {total.total() - len(different)} with herd's ids in llama.cpp")
    for category, line in different:
        print(f"  {category}: {line}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", type=Path, help="a rank file or folder; of --model unless given")
    parser.add_argument("--golden", type=Path, help="JSON lines with text")
    parser.add_argument("--model", type=Path, help="a model folder instead of toys")
    options = parser.parse_args()
    if (options.tokenizer or options.model) is None:
        parser.error("give --tokenizer or --model")
    tokenizer = load_tokenizer(options.tokenizer or options.model)
    vocabulary = to_vocabulary(tokenizer, chat_template=None)
    if options.model:
        models = {options.model.name: load_model(options.model).eval()}
    else:
        models = {name: toy(tokenizer.n_vocab, changes) for name, changes in SHAPES.items()}
    print(f"prompts of {LENGTHS} tokens, {NEW_TOKENS} new ones; original context of scaled toys {ORIGINAL}\n")
    print("| model | written as | greedy alike | logits differ by | herd in that format |")
    print("| --- | --- | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        for name, model in models.items():
            source = WeightsSource(dict(model.named_parameters()), model.config)
            for form, dtype in DTYPES.items():
                write_gguf(source, vocabulary, path, dtype=dtype, name=name)
                alike, worst, own = compare(model, path, dtype)
                print(f"| {name} | {form} | {alike} of {len(LENGTHS)} | {worst:.1e} | {own:.1e} |", flush=True)
        if options.golden:
            compare_ids(tokenizer, path, options.golden)


if __name__ == "__main__":
    main()
