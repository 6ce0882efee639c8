"""A tokenizer as the files Hugging Face reads and writes, and back. Plain JSON: needs no library.

    rank table  --write_hf_tokenizer-->  tokenizer.json          vocabulary, merges, 256 special tokens, BOS in front
                                         tokenizer_config.json   the special tokens by name, the chat template
                                         special_tokens_map.json, tokenizer.model (the rank file)
    folder      --load_tokenizer----->   the rank file where there is one, else tokenizer.json, held against its ranks

A `tokenizer.json` is read only if it encodes exactly as its ranks do; anything else is refused in one line.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from herd.base.errors import DataError
from herd.base.files import write_atomic
from herd.tokenizer import specials
from herd.tokenizer.bpe import FILE_NAME, Tokenizer

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
MAP_FILE = "special_tokens_map.json"
MAX_MERGE_WORK = 1_000_000_000  # sum of squared token lengths of a foreign file; the official vocabulary's is 7 million

_SPLIT: dict[str, Any] = {
    "type": "Split",
    "pattern": {"Regex": specials.SPLIT_PATTERN},
    "behavior": "Isolated",
    "invert": False,
}
_TO_BYTES: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
_FLAGS = ("lstrip", "normalized", "rstrip", "single_word")
_RESERVED = re.compile(r"<\|reserved_special_token_\d{1,3}\|>")
# what the layout of a dialog needs; Llama 3 knows only these, 3.1 named further reserved tokens
_ESSENTIAL = frozenset(
    {specials.BEGIN_OF_TEXT, specials.END_OF_TEXT, specials.START_HEADER, specials.END_HEADER, specials.EOT}
)


def byte_characters() -> list[str]:
    """Return the printable character for each byte value in byte-level BPE files (GPT-2's table)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def merges(tokenizer: Tokenizer) -> list[tuple[bytes, bytes]]:
    """Return every way to put a token together from two others, in the order in which BPE prefers them.

    Ranks say only which token comes first; a list of merges says which pair. Where a token has several pairs, all
    are there, so that both find the same pairs. Ordered by the rank of the token, then of its left part, as in the
    published Llama 3 files.
    """
    ranks = tokenizer.ranks
    found: list[tuple[int, int, bytes, bytes]] = []
    for token, rank in ranks.items():
        for cut in range(1, len(token)):
            left = ranks.get(token[:cut])
            if left is not None and token[cut:] in ranks:
                found.append((rank, left, token[:cut], token[cut:]))
    found.sort()
    return [(left, right) for _, _, left, right in found]


def write_hf_tokenizer(
    tokenizer: Tokenizer, folder: Path, *, chat_template: str | None, max_positions: int, eos_id: int | None = None
) -> None:
    """Write all tokenizer files into the folder, each atomically.

    `eos_id` is the special token at which generation ends (an instruct model: eot); end_of_text unless given.
    `tokenizer(text)` of transformers puts one BOS in front; `apply_chat_template` doesn't, the template has it.
    """
    names = {id_: name for name, id_ in tokenizer.special_ids.items()}
    roles = {
        "bos_token": specials.BEGIN_OF_TEXT,
        "eos_token": names[tokenizer.eos_id if eos_id is None else eos_id],
        "pad_token": specials.PAD,
    }
    config: dict[str, Any] = {
        "added_tokens_decoder": {str(id_): _added(name) for id_, name in names.items()},
        **roles,
        **({} if chat_template is None else {"chat_template": chat_template}),
        "clean_up_tokenization_spaces": False,  # transformers would take spaces before punctuation out of the text
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": max_positions,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    folder = Path(folder)
    write_atomic(folder / TOKENIZER_FILE, json.dumps(_tokenizer_json(tokenizer), ensure_ascii=False))
    write_atomic(folder / CONFIG_FILE, json.dumps(config, ensure_ascii=False, indent=2))
    write_atomic(folder / MAP_FILE, json.dumps(roles, indent=2))
    tokenizer.save(folder)


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a rank file, a `tokenizer.json`, or a model folder of Meta's, Hugging Face's or herd's. Raises DataError."""
    path = Path(path)
    if path.is_file():
        return read_hf_tokenizer(path) if path.suffix == ".json" else Tokenizer.load(path)
    for file in (path / FILE_NAME, path / "original" / FILE_NAME):
        if file.is_file():
            return Tokenizer.load(file)
    if (path / TOKENIZER_FILE).is_file():
        return read_hf_tokenizer(path / TOKENIZER_FILE)
    raise DataError(
        f"no tokenizer at {path}: expected a tiktoken rank file, or a folder holding {FILE_NAME}, "
        f"original/{FILE_NAME} or {TOKENIZER_FILE}"
    )


def read_hf_tokenizer(path: Path) -> Tokenizer:
    """Rebuild the rank table from a `tokenizer.json`, or from that of a folder.

    Raises DataError unless the file encodes as its ranks do: byte-level BPE over Llama 3's pattern, its 256 special
    tokens, the full list of merges in the order of the ranks. A reserved special token may have another number in
    its name than in Meta's code, as it does in the published files.
    """
    file = Path(path) / TOKENIZER_FILE if Path(path).is_dir() else Path(path)
    tree = _read_object(file)
    try:
        model = _check_pipeline(tree)
        tokenizer = Tokenizer(_ranks(model.get("vocab")))
        _check_added(tree.get("added_tokens"), tokenizer)
        _check_merges(model.get("merges"), tokenizer)
    except DataError as error:
        raise DataError(
            f"{file}: not a Llama 3 tokenizer: {error}; if the model has a rank file {FILE_NAME}, put it beside this"
        ) from None
    return tokenizer


def read_chat_template(folder: Path) -> str | None:
    """Return the Jinja source of a folder's chat template, the one named 'default' of several. Raises DataError."""
    file = Path(folder) / "chat_template.jinja"
    if file.is_file():
        return _read_text(file)
    for name in (CONFIG_FILE, "chat_template.json"):
        file = Path(folder) / name
        template = _read_object(file).get("chat_template") if file.is_file() else None
        if isinstance(template, list):
            by_name = {str(row.get("name")): row.get("template") for row in template if isinstance(row, dict)}
            if "default" not in by_name:
                raise DataError(f"{file}: no chat template is named 'default', only {sorted(by_name)}; name one so")
            template = by_name["default"]
        if template is None:
            continue
        if not isinstance(template, str):
            raise DataError(f"{file}: chat_template is a {type(template).__name__}, expected text or a list of them")
        return template
    return None


def printable(tokenizer: Tokenizer) -> dict[bytes, str]:
    """Return the printable form of every text token (see `byte_characters`)."""
    alphabet = byte_characters()
    return {token: "".join([alphabet[byte] for byte in token]) for token in tokenizer.ranks}


def _added(name: str) -> dict[str, Any]:
    return {"content": name, **dict.fromkeys(_FLAGS, False), "special": True}


def _tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    names = printable(tokenizer)
    bos = specials.BEGIN_OF_TEXT
    opening: list[dict[str, Any]] = [
        {"SpecialToken": {"id": bos, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ]
    second: list[dict[str, Any]] = [
        {"SpecialToken": {"id": bos, "type_id": 1}},
        {"Sequence": {"id": "B", "type_id": 1}},
    ]
    to_text = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    add_bos = {
        "type": "TemplateProcessing",
        "single": opening,
        "pair": opening + second,
        "special_tokens": {bos: {"id": bos, "ids": [tokenizer.bos_id], "tokens": [bos]}},
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": id_, **_added(name)} for name, id_ in tokenizer.special_ids.items()],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [_SPLIT, _TO_BYTES]},
        "post_processor": {"type": "Sequence", "processors": [{**to_text, "trim_offsets": False}, add_bos]},
        "decoder": to_text,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,  # a word that is a token is that token, as tiktoken has it
            "vocab": {names[token]: rank for token, rank in sorted(tokenizer.ranks.items(), key=lambda item: item[1])},
            "merges": [f"{names[left]} {names[right]}" for left, right in merges(tokenizer)],
        },
    }


def _check_pipeline(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the model, all around which is as `_tokenizer_json` writes it."""
    model = tree.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    if not isinstance(model, dict) or kind != "BPE":
        raise DataError(f"its model is {kind!r}, not 'BPE'")
    if model.get("ignore_merges") is not True:
        raise DataError("it lacks ignore_merges, so that some words aren't their own tokens")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(key):
            raise DataError(f"it has {key} {model[key]!r}")
    if tree.get("normalizer") is not None:
        raise DataError("a normalizer changes the text")
    steps = tree.get("pre_tokenizer")
    steps = steps.get("pretokenizers") if isinstance(steps, dict) and "pretokenizers" in steps else [steps]
    match steps:
        case [{"type": "Split", "pattern": {"Regex": pattern}}, *_] if pattern != specials.SPLIT_PATTERN:
            raise DataError(f"it splits words by another pattern ({str(pattern)[:60]!r}...)")
        case [dict() as split, dict() as to_bytes]:
            if split == _SPLIT and {**to_bytes, "trim_offsets": True} == _TO_BYTES:
                return model
    raise DataError("it splits words in another way than by Llama 3's pattern, then bytes")


def _ranks(vocab: Any) -> dict[bytes, int]:
    if not isinstance(vocab, dict) or not all(type(rank) is int for rank in vocab.values()):
        raise DataError("its vocabulary is not a table of tokens and ids")
    byte_of = {character: byte for byte, character in enumerate(byte_characters())}
    if sum(len(name) ** 2 for name in vocab) > MAX_MERGE_WORK:
        raise DataError("its tokens are so long that their merges can't be looked up")
    try:
        return {bytes([byte_of[character] for character in name]): rank for name, rank in vocab.items()}
    except KeyError as error:
        raise DataError(f"the character {error} in its vocabulary is none that stands for a byte") from None


def _check_added(rows: Any, tokenizer: Tokenizer) -> None:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError("its added_tokens are not a list")
    if len(rows) != specials.N_SPECIALS:
        raise DataError(f"it has {len(rows)} added tokens, not the {specials.N_SPECIALS} special tokens of Llama 3")
    found = {row.get("id") if type(row.get("id")) is int else None: row for row in rows}
    for name, id_ in tokenizer.special_ids.items():
        row = found.get(id_)
        other = row.get("content") if row else None
        reserved = name not in _ESSENTIAL and isinstance(other, str) and _RESERVED.fullmatch(other)
        if row is None or not (other == name or reserved):
            raise DataError(f"id {id_} is {other!r}, not {name!r}")
        if row.get("special") is not True or any(row.get(flag) for flag in _FLAGS):
            raise DataError(f"{other} takes text beside it or isn't marked special")


def _check_merges(rows: Any, tokenizer: Tokenizer) -> None:
    """Hold the listed merges against the ranks: all there, each token before those of higher rank."""
    names = printable(tokenizer)
    wanted = {(names[left], names[right]): tokenizer.ranks[left + right] for left, right in merges(tokenizer)}
    listed = [tuple(row.split(" ")) if isinstance(row, str) else row for row in rows] if isinstance(rows, list) else []
    newest = 0
    seen: set[tuple[str, str]] = set()
    for row in listed:
        match row:
            case [str() as left, str() as right] if (left, right) in wanted:
                rank = wanted[left, right]
                if rank < newest:
                    raise DataError(f"its merge {left + right!r} stands behind one of higher rank")
                newest = rank
                seen.add((left, right))
            case _:
                raise DataError(f"its merge {str(row)[:60]!r} doesn't join two tokens to a third")
    if len(seen) != len(wanted):
        raise DataError(f"it lists {len(seen)} of the {len(wanted)} merges that its ranks allow")


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: can't be read as UTF-8 text ({error})") from None


def _read_object(file: Path) -> Mapping[str, Any]:
    text = _read_text(file)
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not readable as JSON ({error})") from None
    if not isinstance(tree, dict):
        raise DataError(f"{file}: expected a JSON object, found a {type(tree).__name__}")
    return tree
