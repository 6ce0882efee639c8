"""What quantised weights cost in quality: `python benchmarks/quality.py RUN --models flagship siblings/small`.

Every number format runs the same work of a finished run, and is set beside fp32 on the same documents and items, so
that differences are paired; ± is one standard error, over documents or items.

    base model      bits per byte of the held-out text, and its difference from fp32 by language; at places of that
                    text: KL divergence from fp32's distribution of the next token, how often the likeliest is the same
    instruct model  scores of the run's tasks; greedy answers: how many are the same, and for how many tokens
    both            bytes of the weights in memory and in a folder by `herd export`, and how much of them is quantised

`int4, rounded` is the control: the scale is the largest weight over 7, and nothing is searched.
"""

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from torch import Tensor

from herd.base.files import read_jsonl
from herd.base.messages import parse_dialog
from herd.base.progress import Silent
from herd.engine.engine import Engine
from herd.engine.request import Request, Sampling
from herd.eval.runner import Score, bits_per_byte
from herd.eval.statistics import mean, ratio
from herd.eval.subject import Subject
from herd.model import packing
from herd.model.hf import written_as
from herd.model.quant import QuantLinear, number_format, planned, quant_format
from herd.model.quant_files import QuantisedSource
from herd.model.weights import open_source
from herd.runtime.config import RuntimeConfig
from herd.runtime.device import set_up
from herd.stages.evaluate import run_tasks
from herd.stages.models import ModelFolder, open_engine, open_folder

CONTROL = "int4, rounded"
FORMATS = ("fp32", "bf16", "int8", "int4", CONTROL)
SLOTS = 64
PLACES = 32  # of a document, where distributions are compared
ANSWER = 64


@dataclass(frozen=True)
class Measured:
    """What one format gave for one model; `next_places_vocab` and `answers` are compared with fp32's."""

    text: Score
    tasks: Mapping[str, Score]
    next_pv: Tensor
    owners: list[int]
    answers: list[list[int]]
    memory: int
    file: int
    share: float


@contextmanager
def plainly_rounded() -> Iterator[None]:
    """Let int4 take the plain scale."""
    with patch.object(packing, "_scale4", lambda x, largest: packing._bfloat16(largest / 7)):
        yield


def opened(model: ModelFolder, form: str) -> Engine:
    """Open a model in a format; what isn't quantised is float32 but in bf16."""
    machine = set_up(RuntimeConfig(dtype="float32"))
    if form != CONTROL:
        return open_engine(model.path, machine, slots=SLOTS, tokenizer=model.tokenizer, quant=number_format(form))
    with plainly_rounded():
        return open_engine(model.path, machine, slots=SLOTS, tokenizer=model.tokenizer, quant="int4")


def next_tokens(
    engine: Engine, model: ModelFolder, heldout: list[dict[str, Any]], each: int
) -> tuple[Tensor, list[int]]:
    """Return log p of the next token [place, vocab] within `each` documents a language, and each place's document.

    By requests for one token, so that whatever kernels the engine has are measured.
    """
    requests, owners, vocab = [], [], model.config.vocab_size
    sampling = Sampling(max_tokens=1, top_logprobs=vocab)
    for _, rows in groupby(sorted(enumerate(heldout), key=lambda r: r[1]["lang"]), key=lambda r: r[1]["lang"]):
        for number, row in list(rows)[:each]:
            ids = model.tokenizer.encode(row["text"], bos=True)[: engine.capacity - 1]
            step = max(1, len(ids) // PLACES)
            requests += [Request(tuple(ids[:end]), sampling) for end in range(1, len(ids), step)]
            owners += [number] * len(range(1, len(ids), step))
    next_pv = torch.empty(len(requests), vocab)
    for start in range(0, len(requests), SLOTS):
        for place, done in enumerate(engine.generate(requests[start : start + SLOTS]), start=start):
            ids, logprobs = zip(*done.tokens[0].top, strict=True)
            next_pv[place, list(ids)] = torch.tensor(logprobs)
    return next_pv, owners


def answers(engine: Engine, model: ModelFolder, bench: Path, each: int) -> list[list[int]]:
    """Return the ids of greedy answers to the first `each` dialogs of every task that fits the context."""
    stop, requests = frozenset(model.tokenizer.stop_ids), []
    for path in sorted(bench.glob("*.jsonl")):
        items = [item for _, item in zip(range(each), read_jsonl(path), strict=False) if "messages" in item]
        prompts = [tuple(model.codec.prompt(parse_dialog(item))) for item in items]
        fitting = [prompt for prompt in prompts if len(prompt) + ANSWER <= engine.capacity]
        requests += [Request(prompt, Sampling(max_tokens=ANSWER), stop) for prompt in fitting]
    return [done.ids for done in engine.generate(requests)]


def file_bytes(model: ModelFolder, form: str) -> int:
    """Return the bytes of the tensors that an export in this format writes."""
    source, dtype = open_source(model.path), torch.float32 if form == "fp32" else torch.bfloat16
    if form.startswith("int"):
        source = QuantisedSource(source, planned(source.config, quant_format(form.partition(",")[0]), head=False))
    return sum(torch.Size(source.shape(n)).numel() * written_as(source, n, dtype).itemsize for n in source.names())


def measure(run: Path, name: str, form: str, options: argparse.Namespace) -> Measured:
    """Run all work of one model in one format."""
    base, instruct = (open_folder(run / name / part) for part in ("base", "instruct"))
    heldout = list(read_jsonl(run / "corpus/heldout.jsonl"))
    engine = opened(base, form)
    text = bits_per_byte(Subject(name, engine, base.codec, False), heldout)
    next_pv, owners = next_tokens(engine, base, heldout, options.documents)
    tensors = [*engine.model.parameters(), *engine.model.buffers()]
    packed = sum(m.in_features * m.out_features for m in engine.model.modules() if isinstance(m, QuantLinear))
    engine = opened(instruct, form)
    subject = Subject(name, engine, instruct.codec, True)
    tasks = {str(score.facts["task"]): score for score in run_tasks(subject, run / "corpus", Silent())}
    said = answers(engine, instruct, run / "corpus/bench", options.answers)
    memory = sum(tensor.nbytes for tensor in tensors)
    share = packed / base.config.parameters()
    return Measured(text, tasks, next_pv, owners, said, memory, file_bytes(base, form), share)


def _pm(value: Any, *, scale: float = 1.0, digits: int = 4, sign: bool = False) -> str:
    shown = value.to_json()
    return f"{shown['value'] * scale:{'+' if sign else ''}.{digits}f} ± {shown['stderr'] * scale:.{digits}f}"


def by_document(values: Tensor, owners: list[int]) -> Any:
    """Return the mean over places, its error over documents: places of one text are no independent draws."""
    documents = sorted(set(owners))
    sums = [float(sum(v for v, o in zip(values.tolist(), owners, strict=True) if o == d)) for d in documents]
    return ratio(sums, [owners.count(d) for d in documents])


def rows(found: Measured, fp32: Measured) -> dict[str, str]:
    """Return the lines of a format, as label -> cell."""
    lines = {
        "weights in memory, MB": f"{found.memory / 1e6:.2f}",
        "weights in a folder, MB": f"{found.file / 1e6:.2f}",
        "share of the weights quantised, %": f"{100 * found.share:.0f}",
        "bits per byte ↓": f"{found.text.facts['value']:.4f}",
    }
    pairs = list(zip(found.text.items, fp32.text.items, strict=True))
    for lang in ("all", *dict.fromkeys(item["lang"] for item in found.text.items)):
        own = [(a, b) for a, b in pairs if lang in ("all", a["lang"])]
        lines[f"… difference, {lang}"] = _pm(
            ratio([a["bits"] - b["bits"] for a, b in own], [a["bytes"] for a, _ in own]), digits=5, sign=True
        )
    kl = (fp32.next_pv.exp() * (fp32.next_pv - found.next_pv)).sum(-1)
    lines["KL from fp32, nats ↓"] = _pm(by_document(kl, found.owners), digits=5)
    same = (fp32.next_pv.argmax(-1) == found.next_pv.argmax(-1)).float()
    lines["same likeliest token, %"] = _pm(by_document(same, found.owners), scale=100, digits=2)
    common = []
    for a, b in zip(found.answers, fp32.answers, strict=True):
        parts = [x == y for x, y in zip(a, b, strict=False)]
        common.append(parts.index(False) if False in parts else len(parts))
    equal = [float(a == b) for a, b in zip(found.answers, fp32.answers, strict=True)]
    lines["same greedy answer, %"] = _pm(mean(equal), scale=100, digits=1)
    lengths = [len(a) for a in fp32.answers]
    lines["tokens of fp32's answer before they part"] = (
        f"{sum(common) / len(common):.1f} of {sum(lengths) / len(lengths):.1f}"
    )
    for task, score in found.tasks.items():
        down = "" if score.facts["higher_is_better"] else " ↓"
        value = f"{100 * score.facts['value']:.1f} ± {100 * score.facts['stderr']:.1f}"
        if found is not fp32:
            shifts = [a["score"] - b["score"] for a, b in zip(score.items, fp32.tasks[task].items, strict=True)]
            value += f" ({100 * sum(shifts) / len(shifts):+.1f})"
        lines[f"{task.replace('_', ' ')}{down}, %"] = value
    return lines


def main() -> None:
    """Print a Markdown table for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run folder made by herd raise")
    parser.add_argument("--models", nargs="+", default=["flagship"])
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=FORMATS)
    parser.add_argument("--documents", type=int, default=6, help="held-out documents a language for KL and likeliest")
    parser.add_argument("--answers", type=int, default=25, help="greedy answers a task")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    progress = Console(stderr=True)
    for name in options.models:
        fp32 = measure(options.run, name, "fp32", options)
        columns = {}
        for form in options.formats:
            progress.print(f"{name}: {form}", highlight=False)
            found = fp32 if form == "fp32" else measure(options.run, name, form, options)
            columns[form] = rows(found, fp32)
        print(f"\n| {name} | {' | '.join(columns)} |\n| --- |{' ---: |' * len(columns)}")
        for label in next(iter(columns.values())):
            print(f"| {label} | {' | '.join(column[label] for column in columns.values())} |")


if __name__ == "__main__":
    main()
