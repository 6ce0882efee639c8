"""Structured output: llguidance against xgrammar on herd's own vocabularies.

The same schemas and the same valid answers, token by token: preparing the vocabulary once, compiling each grammar,
the mask of each token (median and slowest, in a fresh grammar and again with its caches warm), whether every token of
the answer is allowed, and which control tokens are at the end. Times are one thread's.

Run `python benchmarks/grammar.py --tokenizer FILE...`; without xgrammar (not a dependency) herd's own side alone.
"""

import argparse
import importlib
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from herd.base.messages import Tool
from herd.engine.constraint import Constraint
from herd.engine.grammar import choice_constraint, json_constraint, tool_constraint
from herd.tokenizer.bpe import Tokenizer
from herd.tokenizer.layout import Layout

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "mail": {"type": "string", "pattern": "^[a-z.]+@[a-z]+\\.[a-z]{2,3}$"},
        "kind": {"enum": ["cat", "dog", "हाथी"]},
        "friends": {"type": "array", "items": {"$ref": "#"}},
    },
    "required": ["name", "age", "mail", "kind"],
    "additionalProperties": False,
}
ANNA = {"name": "Anna Müller-Łaska", "age": 31, "mail": "anna@ulm.de", "kind": "हाथी"}
CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "any object": ({"type": "object"}, {"text": "Long text, said plainly. " * 8, "n": [1, 2.5e3, None]}),
    "person, recursive": (PERSON, {**ANNA, "friends": [{**ANNA, "friends": [ANNA]}]}),
}


class XGrammar:
    """xgrammar behind herd's interface for constraints."""

    def __init__(self, library: Any, compiled: Any, tokenizer: Tokenizer) -> None:
        self._matcher = library.GrammarMatcher(compiled, override_stop_tokens=list(tokenizer.stop_ids))
        self._bits = library.allocate_token_bitmask(1, tokenizer.n_vocab)
        self._n_vocab = tokenizer.n_vocab

    def allowed(self) -> np.ndarray:
        self._matcher.fill_next_token_bitmask(self._bits)
        return np.unpackbits(self._bits.numpy().view(np.uint8)[0], count=self._n_vocab, bitorder="little")

    def accept(self, token_id: int) -> None:
        self._matcher.accept_token(token_id)


def answer_time(constraint: Any, ids: Sequence[int]) -> tuple[list[float], int, list[int]]:
    """Follow the ids; return the time of each mask in µs, how many ids were allowed, and what may come after."""
    times, fitting = [], 0
    for token in ids:
        start = time.perf_counter()
        allowed = constraint.allowed()
        times.append((time.perf_counter() - start) * 1e6)
        if not allowed[token]:
            break
        fitting += 1
        constraint.accept(token)
    return times, fitting, np.flatnonzero(np.asarray(constraint.allowed())).tolist()


def report(name: str, make: Callable[[], Any], ids: Sequence[int], tokenizer: Tokenizer) -> None:
    """Print one line: compile time, then masks of two answers in turn."""
    start = time.perf_counter()
    constraint = make()
    compiled = (time.perf_counter() - start) * 1e3
    again = constraint.fork() if hasattr(constraint, "fork") else make()
    (cold, fitting, after), (warm, _, _) = answer_time(constraint, ids), answer_time(again, ids)
    ends = tokenizer.decode(after) if len(after) < 6 else f"{len(after)} ids"
    print(
        f"  {name:34} compile {compiled:8.2f} ms   mask {statistics.median(cold):7.0f} µs (max {max(cold):7.0f}),"
        f" warm {statistics.median(warm):6.0f} ({max(warm):6.0f})   allowed {fitting}/{len(ids)}   then {ends}"
    )


def herd_side(tokenizer: Tokenizer) -> None:
    """Time herd's constraints (llguidance), tool calls included."""
    start = time.perf_counter()
    choice_constraint(tokenizer, ["yes"])
    print(f"  llguidance: vocabulary {time.perf_counter() - start:.2f} s")
    for name, (schema, value) in CASES.items():
        ids = tokenizer.encode(json.dumps(value, ensure_ascii=False))
        report(f"llguidance, {name}", lambda schema=schema: json_constraint(tokenizer, schema), ids, tokenizer)
    for count in (1, 10, 60):
        tools = [Tool(f"tool_{i}", "", PERSON) for i in range(count)]
        call = json.dumps({"name": f"tool_{count - 1}", "parameters": ANNA}, ensure_ascii=False)
        ids = tokenizer.encode(f"I look it up: see [1] and more. {call}")

        def make(tools: list[Tool] = tools) -> Constraint:
            return tool_constraint(tokenizer, tools, Layout(), required=False)

        report(f"llguidance, text or {count} tools", make, ids, tokenizer)


def peer_side(library: Any, tokenizer: Tokenizer) -> None:
    """Time xgrammar on the same schemas."""
    start = time.perf_counter()
    pieces = [piece for piece, _ in sorted(tokenizer.ranks.items(), key=lambda item: item[1])]
    info = library.TokenizerInfo(
        [*pieces, *tokenizer.special_ids], vocab_size=tokenizer.n_vocab, stop_token_ids=list(tokenizer.stop_ids)
    )
    compiler = library.GrammarCompiler(info, max_threads=1, cache_enabled=False)
    print(f"  xgrammar: vocabulary {time.perf_counter() - start:.2f} s")
    for name, (schema, value) in CASES.items():
        ids = tokenizer.encode(json.dumps(value, ensure_ascii=False))
        text = json.dumps(schema)

        def make(text: str = text) -> XGrammar:
            compiled = compiler.compile_json_schema(text, any_whitespace=False, strict_mode=False)
            return XGrammar(library, compiled, tokenizer)

        report(f"xgrammar, {name}", make, ids, tokenizer)


def main() -> None:
    """Read the arguments and print a table for each tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, nargs="+", required=True)
    try:
        library = importlib.import_module("xgrammar")
    except ImportError:
        library = None
    for path in parser.parse_args().tokenizer:
        tokenizer = Tokenizer.load(path)
        print(f"{path}: {tokenizer.n_vocab:,} ids")
        herd_side(tokenizer)
        if library is not None:
            peer_side(library, tokenizer)


if __name__ == "__main__":
    main()
