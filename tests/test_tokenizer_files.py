"""Tokenizer files: `transformers` and `tokenizers` read what herd writes; herd reads back what it can read exactly."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiktoken

from herd.base.errors import DataError
from herd.base.files import read_jsonl
from herd.tokenizer import specials
from herd.tokenizer.bpe import Tokenizer
from herd.tokenizer.hf_files import load_tokenizer, merges, read_chat_template, read_hf_tokenizer, write_hf_tokenizer
from herd.tokenizer.learn import learn

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}<|eot_id|>{% endfor %}"


@pytest.fixture(scope="module")
def learned() -> Tokenizer:
    words = ["Hello", " world", " größer", " สวัสดี", " नमस्ते", " 2024", "\n\n", " tokens", " token's", "  if x:"]
    chosen = random.Random(0).choices(words, k=4000)
    return learn({"en": ["".join(chosen[i : i + 20]) for i in range(0, 4000, 20)]}, vocab_size=560)


@pytest.fixture(scope="module")
def real(shared_data: Path) -> Tokenizer:
    texts = {
        code: [row["text"] for row in read_jsonl(shared_data / "corpus" / f"{code}.jsonl")][:80]
        for code in ("en", "de", "hi", "th")
    }
    return learn(texts, vocab_size=1500, sample_megabytes=0.1)


@pytest.fixture(scope="module", params=["official", "learned by herd"])
def either(request: pytest.FixtureRequest, shared_data: Path, real: Tokenizer) -> Tokenizer:
    return Tokenizer.load(shared_data / "tokenizer") if request.param == "official" else real


@pytest.fixture
def folder(learned: Tokenizer, tmp_path: Path) -> Path:
    write_hf_tokenizer(learned, tmp_path, chat_template=TEMPLATE, max_positions=64, eos_id=learned.eot_id)
    return tmp_path


def as_tiktoken_reads(text: str) -> str:
    # lone surrogates become U+FFFD in herd and tiktoken; the Rust libraries refuse a text that holds them
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def with_specials(text: str, allowed: str | list[str], encode: Callable[[str, bool], list[int]]) -> list[int]:
    """Encode with all, none, or one of the special tokens allowed, by a library that knows only all or none."""
    if isinstance(allowed, str) or not allowed:
        return encode(text, allowed == "all")
    (name,) = allowed
    pieces = text.split(name)
    ids = [encode(name, True) + encode(piece, False) for piece in pieces]
    return [id_ for piece in ids for id_ in piece][1:]


def test_transformers_and_tokenizers_give_the_same_ids_on_all_golden_rows(
    shared_data: Path, either: Tokenizer, tmp_path: Path
) -> None:
    library = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    write_hf_tokenizer(either, tmp_path, chat_template=None, max_positions=131_072)
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
    rust = library.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    official = either.n_vocab == 128_256

    def by_rust(text: str, allow: bool) -> list[int]:
        rust.encode_special_tokens = not allow
        return rust.encode(text, add_special_tokens=False).ids

    def by_transformers(text: str, allow: bool) -> list[int]:
        return auto(text, add_special_tokens=False, split_special_tokens=not allow).input_ids

    rows = list(read_jsonl(shared_data / "tokenizer/golden.jsonl"))
    assert len(rows) == 287
    for row in rows:
        text, allowed = as_tiktoken_reads(row["text"]), row["allowed_special"]
        ours = either.encode(
            row["text"],
            bos=row["bos"],
            eos=row["eos"],
            allowed_special="all" if allowed == "all" else frozenset(allowed),
        )
        assert ours == row["ids"] or not official
        inner = ours[row["bos"] : len(ours) - row["eos"]]
        assert with_specials(text, allowed, by_transformers) == inner, row["id"]
        assert with_specials(text, allowed, by_rust) == inner, row["id"]
        assert auto.decode(ours) == either.decode(ours) == rust.decode(ours, skip_special_tokens=False), row["id"]
        if row["bos"]:
            assert auto(text).input_ids == [either.bos_id, *inner]


def test_golden_bytes_decode_alike(shared_data: Path, either: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    write_hf_tokenizer(either, tmp_path, chat_template=None, max_positions=64)
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for row in read_jsonl(shared_data / "tokenizer/golden_decode.jsonl"):
        ids = [id_ % either.n_vocab for id_ in row["ids"]]
        assert auto.decode(ids) == either.decode(ids), row["id"]


@pytest.mark.parametrize("config", [None, {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}])
def test_transformers_takes_bos_stop_and_template_from_the_files(
    folder: Path, learned: Tokenizer, config: dict[str, Any] | None
) -> None:
    transformers = pytest.importorskip("transformers")
    if config is not None:  # a complete model folder: its kind must not bring another tokenizer class in
        (folder / "config.json").write_text(json.dumps(config))
    auto = transformers.AutoTokenizer.from_pretrained(folder)
    assert (auto.bos_token_id, auto.eos_token_id, auto.pad_token_id) == (learned.bos_id, learned.eot_id, learned.pad_id)
    assert (len(auto), auto.model_max_length) == (learned.n_vocab, 64)
    text = "Hello world , größer ' s"
    assert auto(text).input_ids == learned.encode(text, bos=True)
    assert auto.decode(learned.encode(text)) == text
    pair = auto("Hello", " world").input_ids
    assert pair == [*learned.encode("Hello", bos=True), *learned.encode(" world", bos=True)]
    chat = auto.apply_chat_template([{"role": "user", "content": text}], return_dict=False)
    assert chat == [learned.bos_id, *learned.encode(text), learned.eot_id]


def test_what_is_written_reads_back_and_rank_files_come_first(either: Tokenizer, tmp_path: Path) -> None:
    write_hf_tokenizer(either, tmp_path, chat_template=None, max_positions=64)
    for path in (tmp_path / "tokenizer.json", tmp_path / "tokenizer.model"):
        assert load_tokenizer(path).ranks == either.ranks
    assert read_hf_tokenizer(tmp_path).fingerprint == either.fingerprint
    (tmp_path / "tokenizer.json").write_text("not looked at")
    assert load_tokenizer(tmp_path).fingerprint == either.fingerprint
    (tmp_path / "original").mkdir()
    (tmp_path / "tokenizer.model").rename(tmp_path / "original/tokenizer.model")
    assert load_tokenizer(tmp_path).fingerprint == either.fingerprint
    (tmp_path / "original/tokenizer.model").unlink()
    with pytest.raises(DataError, match=r"tokenizer\.json: not readable as JSON"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"expected a tiktoken rank file, or a folder holding tokenizer\.model, orig"):
        load_tokenizer(tmp_path)


def test_merges_are_the_published_ones_in_number_and_order(shared_data: Path) -> None:
    official = Tokenizer.load(shared_data / "tokenizer")
    found = merges(official)
    assert len(found) == len(set(found)) == 280_147  # as in the published tokenizer.json of Llama 3
    ranks = [official.ranks[left + right] for left, right in found]
    assert ranks == sorted(ranks)
    assert set(ranks) == set(range(256, 128_000))  # every token can be put together


def test_merges_encode_as_ranks_do_on_any_table() -> None:
    """Random tables, not learned ones, where pairs overlap and parts rank above wholes: 'aba' = 'ab' 'a' = 'a' 'ba'."""
    library = pytest.importorskip("tokenizers")
    rng = random.Random(0)
    for _ in range(12):
        tokens, parts = [bytes((byte,)) for byte in range(256)], [b"a", b"b"]
        while len(parts) < 24:
            token = rng.choice(parts) + rng.choice(parts)
            if token not in parts and len(token) < 9:
                parts.append(token)
        made = parts[2:]
        rng.shuffle(made)
        table = Tokenizer({token: rank for rank, token in enumerate(tokens + made)})
        # no splitting into words here: one word is all the text, and every letter counts
        plain = tiktoken.Encoding("plain", pat_str=r"[\s\S]+", mergeable_ranks=table.ranks, special_tokens={})
        pairs = [(left.decode("latin-1"), right.decode("latin-1")) for left, right in merges(table)]
        vocab = {token.decode("latin-1"): rank for token, rank in table.ranks.items()}
        rust = library.Tokenizer(library.models.BPE(vocab=vocab, merges=pairs, ignore_merges=True))
        for _ in range(100):
            text = "".join(rng.choices("ab", k=rng.randrange(2, 40)))
            assert rust.encode(text).ids == plain.encode_ordinary(text), (text, made)


def test_published_names_of_reserved_tokens_and_listed_pairs_are_read(folder: Path, learned: Tokenizer) -> None:
    tree = json.loads((folder / "tokenizer.json").read_text())
    number = 0
    for row in tree["added_tokens"]:  # the published 3.1 files number on where Meta's code names <|step_id|>, <|image|>
        if row["content"] in ("<|step_id|>", "<|image|>") or "reserved" in row["content"]:
            row["content"] = f"<|reserved_special_token_{number}|>"
            number += 1
    assert number == 248
    tree["model"]["merges"] = [row.split(" ") for row in tree["model"]["merges"]]  # newer files list pairs
    (folder / "tokenizer.json").write_text(json.dumps(tree))
    assert read_hf_tokenizer(folder).ranks == learned.ranks


def swap_merges(tree: dict[str, Any]) -> None:
    rows = tree["model"]["merges"]
    rows[0], rows[-1] = rows[-1], rows[0]


def drop_byte(tree: dict[str, Any]) -> None:
    del tree["model"]["vocab"]["A"]


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another model": (lambda t: t["model"].update(type="Unigram"), r"its model is 'Unigram', not 'BPE'"),
    "no model": (lambda t: t.pop("model"), r"its model is None, not 'BPE'"),
    "no ignore_merges": (lambda t: t["model"].pop("ignore_merges"), r"it lacks ignore_merges"),
    "dropout": (lambda t: t["model"].update(dropout=0.1), r"it has dropout 0\.1"),
    "byte_fallback": (lambda t: t["model"].update(byte_fallback=True), r"it has byte_fallback True"),
    "normalizer": (lambda t: t.update(normalizer={"type": "NFC"}), r"a normalizer changes the text"),
    "pattern": (
        lambda t: t["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": r"\w+"}),
        r"it splits words by another pattern \('\\\\w\+'",
    ),
    "split": (
        lambda t: t["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed"),
        r"in another way than by Llama 3's pattern",
    ),
    "prefix space": (
        lambda t: t["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
        r"in another way than by Llama 3's pattern",
    ),
    "no pre-tokenizer": (lambda t: t.update(pre_tokenizer=None), r"in another way than by Llama 3's pattern"),
    "no vocabulary": (lambda t: t["model"].update(vocab=["a"]), r"its vocabulary is not a table"),
    "odd id": (lambda t: t["model"]["vocab"].update(A=True), r"its vocabulary is not a table"),
    "missing byte": (drop_byte, r"lacks 1 of the 256 single bytes \(first: 0x41\)"),
    "not bytes": (lambda t: t["model"]["vocab"].update({"▁the": 304}), r"the character '▁' in its vocabulary"),
    "gap": (lambda t: t["model"]["vocab"].update(zqx=9999), r"ranks are not 0\.\.304 without gaps"),
    "huge token": (lambda t: t["model"]["vocab"].update({"A" * 40_000: 304}), r"its tokens are so long"),
    "another name": (
        lambda t: t["added_tokens"][9].update(content="<|im_end|>"),
        r"id 313 is '<\|im_end\|>', not '<\|eot",
    ),
    "reserved for eot": (
        lambda t: t["added_tokens"][9].update(content="<|reserved_special_token_9|>"),
        r"id 313 is '<\|reserved_special_token_9\|>', not '<\|eot_id\|>'",
    ),
    "another id": (lambda t: t["added_tokens"][0].update(id=9), r"id 304 is None, not '<\|begin_of_text\|>'"),
    "extra token": (
        lambda t: t["added_tokens"].append({"id": 560, "content": "[PAD]", "special": True}),
        r"it has 257 added tokens, not the 256 special tokens",
    ),
    "no special tokens": (lambda t: t.pop("added_tokens"), r"its added_tokens are not a list"),
    "stripping": (lambda t: t["added_tokens"][9].update(lstrip=True), r"<\|eot_id\|> takes text beside it"),
    "merge order": (swap_merges, r"its merge '.+' stands behind one of higher rank"),
    "merge lacking": (lambda t: t["model"]["merges"].pop(5), r"it lists \d+ of the \d+ merges"),
    "no merges": (lambda t: t["model"].pop("merges"), r"it lists 0 of the \d+ merges"),
    "false merge": (lambda t: t["model"]["merges"].append("A Q"), r"its merge .*'A', 'Q'.* doesn't join two tokens"),
    "odd merge": (lambda t: t["model"]["merges"].append(7), r"its merge '7' doesn't join two tokens"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_tokenizer_that_would_encode_otherwise_is_refused(folder: Path, kind: str) -> None:
    change, message = REFUSED[kind]
    file = folder / "tokenizer.json"
    tree = json.loads(file.read_text())
    change(tree)
    file.write_text(json.dumps(tree))
    with pytest.raises(DataError, match=message) as caught:
        read_hf_tokenizer(folder)
    assert str(caught.value).startswith(f"{file}: not a Llama 3 tokenizer: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not readable as JSON"),
        (b"[" * 100_000, "not readable as JSON"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not readable as JSON"),
        (b"\xff\xfe", "can't be read as UTF-8"),
        (b"[]", "expected a JSON object, found a list"),
    ],
    ids=["cut", "deep", "long number", "not text", "a list"],
)
def test_broken_json_is_told_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"tokenizer\.json: {message}"):
        load_tokenizer(tmp_path)
    with pytest.raises(DataError, match=rf"tokenizer_config\.json: {message}"):
        read_chat_template(tmp_path)


def test_chat_templates_are_found_where_people_put_them(folder: Path, tmp_path: Path) -> None:
    assert read_chat_template(folder) == TEMPLATE
    config = folder / "tokenizer_config.json"
    several = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    config.write_text(json.dumps({"chat_template": several}))
    assert read_chat_template(folder) == "D"
    config.write_text(json.dumps({"chat_template": several[:1]}))
    with pytest.raises(DataError, match=r"no chat template is named 'default', only \['tool_use'\]"):
        read_chat_template(folder)
    config.write_text(json.dumps({"chat_template": 7}))
    with pytest.raises(DataError, match="chat_template is a int"):
        read_chat_template(folder)
    config.write_text("{}")
    assert read_chat_template(folder) is None
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "J"}))
    assert read_chat_template(folder) == "J"
    (folder / "chat_template.jinja").write_text("{{ 'ก' }}", encoding="utf-8")
    assert read_chat_template(folder) == "{{ 'ก' }}"
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"chat_template\.jinja: can't be read as UTF-8"):
        read_chat_template(folder)


def test_without_a_template_none_is_written(learned: Tokenizer, tmp_path: Path) -> None:
    write_hf_tokenizer(learned, tmp_path, chat_template=None, max_positions=64)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert "chat_template" not in config
    assert config["eos_token"] == specials.END_OF_TEXT
    assert read_chat_template(tmp_path) is None
