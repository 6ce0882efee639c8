"""Answers that can't be malformed: JSON by a schema, a regular expression, choices, tool calls.

    schema, pattern, tools --compile--> Grammar    .allowed() -> bool [vocab]    .accept(id)    .fork()

llguidance follows the grammar; control tokens are never text, so only those that a grammar names are ever allowed:
the stop ids where the answer may end, and <|python_tag|>. Needs the `grammar` extra.
"""

import importlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from herd.base.errors import ConfigError, HerdError
from herd.base.messages import Tool
from herd.engine.constraint import Constraint
from herd.engine.lark import check_pattern, json_grammar, parameters_of, tool_grammar
from herd.tokenizer import specials
from herd.tokenizer.bpe import Tokenizer
from herd.tokenizer.layout import Layout


class Grammar:
    """A place in a grammar. An id that doesn't fit, or a grammar past llguidance's limits, leaves nothing allowed.

    source: the grammar in llguidance's Lark, for whoever else is to follow it; None once an id was accepted.
    """

    def __init__(self, matcher: Any, n_vocab: int, source: str | None = None) -> None:
        self.source = source
        self._matcher = matcher
        self._n_vocab = n_vocab

    def allowed(self) -> Tensor:
        """Return bool [vocab] on the CPU, true where an id may come next."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            return torch.zeros(self._n_vocab, dtype=torch.bool)
        return torch.from_numpy(np.unpackbits(bits, count=self._n_vocab, bitorder="little")).view(torch.bool)

    def accept(self, token_id: int) -> None:
        """Take the id that came."""
        self.source = None
        self._matcher.consume_token(token_id)

    def fork(self) -> "Grammar":
        """Return a copy that goes its own way."""
        return Grammar(self._matcher.deep_copy(), self._n_vocab, self.source)


def json_constraint(tokenizer: Tokenizer, schema: Mapping[str, Any] | None) -> Constraint:
    """Return the constraint to one JSON value that fits the schema, or to any object; one space after ":" and ",".

    Keys come in the schema's order. Raises ConfigError for a schema that is invalid, unsupported or fits nothing.
    """
    grammar = json_grammar({"type": "object"} if schema is None else schema)
    return _compile(tokenizer, grammar, "the JSON schema", never_empty=True)


def regex_constraint(tokenizer: Tokenizer, pattern: str) -> Constraint:
    """Return the constraint to text that matches the whole pattern (Rust's syntax: no look-around, no references).

    Raises ConfigError.
    """
    check_pattern(pattern)
    (grammar,) = json.loads(_llguidance().LLMatcher.grammar_from_regex(pattern))["grammars"]
    return _compile(tokenizer, grammar["lark_grammar"], f"the regular expression {pattern[:80]!r}")


def choice_constraint(tokenizer: Tokenizer, choices: Sequence[str]) -> Constraint:
    """Return the constraint to one of these texts, exactly. Raises ConfigError when there are none."""
    if not choices:
        raise ConfigError("a choice needs at least one text to choose from")
    grammar = f"start: {' | '.join(map(json.dumps, choices))}"
    return _compile(tokenizer, grammar, f"the choices {list(choices)!r:.80}")


def tool_constraint(
    tokenizer: Tokenizer,
    tools: Sequence[Tool],
    layout: Layout,
    *,
    required: bool,
    name: str | None = None,
    parallel: bool = True,
) -> Constraint:
    """Return the constraint to answers whose tool calls `DialogCodec.read` reads and the tools' schemas accept.

    required: the answer is calls and nothing else; otherwise text may come first, or alone. name: the one tool to
    call. parallel: several calls in one answer. <|python_tag|> and the end token are those of the layout; a tool
    that its dialect can't carry is called in JSON. Raises ConfigError naming the tool at fault.
    """
    called = [tool for tool in tools if name in (None, tool.name)]
    if not called:
        offered = ", ".join(tool.name for tool in tools) or "none"
        raise ConfigError(f"no tool {name!r} to call; on offer: {offered}" if name else "tool calls need tools to call")
    for tool in called:
        what = f"the parameters of tool {tool.name!r}"
        _compile(tokenizer, json_grammar(parameters_of(tool)), what, never_empty=True)
    grammar = tool_grammar(tools, called=called, layout=layout, required=required, parallel=parallel)
    # each schema was held to the usual limits above; what many tools need besides is our own regexes
    limits = {"initial_lexer_fuel": 20_000_000, "step_lexer_fuel": 2_000_000, "precompute_large_lexemes": False}
    return _compile(tokenizer, grammar, f"calls of {', '.join(tool.name for tool in called):.80}", limits=limits)


def _compile(
    tokenizer: Tokenizer, grammar: str, what: str, *, never_empty: bool = False, limits: Mapping[str, int] | None = None
) -> Grammar:
    library = _llguidance()
    allowance = library.LLParserLimits(verbose_errors=False, **(limits or {}))
    matcher = library.LLMatcher(_vocabulary(tokenizer), grammar, log_level=0, limits=allowance)
    if matcher.is_error():
        reason = " ".join(matcher.get_error().split())
        raise ConfigError(f"{what} can't be followed: {reason:.300}")
    compiled = Grammar(matcher, tokenizer.n_vocab, grammar)
    if never_empty and not compiled.allowed()[: tokenizer.n_ranks].any():
        raise ConfigError(f"{what} can't be followed: nothing fits it")
    return compiled


@lru_cache(maxsize=8)  # half a second for 128,256 ids
def _vocabulary(tokenizer: Tokenizer) -> Any:
    return _llguidance().LLTokenizer.from_tiktoken(
        encoder=tokenizer.ranks,
        special_tokens=tokenizer.special_ids,
        pattern=specials.SPLIT_PATTERN,
        eos_token=list(tokenizer.stop_ids),
        n_vocab=tokenizer.n_vocab,
        slices=None,
    )


def _llguidance() -> Any:
    try:
        return importlib.import_module("llguidance")
    except ModuleNotFoundError:
        raise HerdError("structured output needs the `grammar` extra: pip install 'herd[grammar]'") from None
