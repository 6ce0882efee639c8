"""The tokenizer against the official vectors; learned vocabularies against the library that trained them."""

import json
import pickle
import time
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.base.errors import ConfigError, DataError
from herd.base.files import hash_file, read_jsonl
from herd.base.languages import CODES
from herd.tokenizer import specials
from herd.tokenizer.bpe import StreamDecoder, Tokenizer
from herd.tokenizer.hf_files import byte_characters
from herd.tokenizer.learn import balanced, fertility, learn, learn_balanced, train_library

BYTES = Tokenizer({bytes((byte,)): byte for byte in range(256)})


@pytest.fixture(scope="session")
def official(shared_data: Path) -> Tokenizer:
    return Tokenizer.load(shared_data / "tokenizer")


@pytest.fixture(scope="session")
def texts(shared_data: Path) -> dict[str, list[str]]:
    rows = {code: read_jsonl(shared_data / "corpus" / f"{code}.jsonl") for code in CODES}
    return {code: [row["text"] for row in row_iter] for code, row_iter in rows.items()}


@pytest.fixture(scope="session")
def learned(texts: dict[str, list[str]]) -> Tokenizer:
    return learn(texts, vocab_size=1500, sample_megabytes=0.1)


def test_specials_are_the_official_ones(shared_data: Path, official: Tokenizer) -> None:
    facts = json.loads((shared_data / "tokenizer/special_tokens.json").read_text())
    assert official.special_ids == facts["special_tokens"]
    assert facts["pat_str"] == specials.SPLIT_PATTERN
    assert list(official.stop_ids) == facts["stop_tokens"]
    for name in ("bos_id", "eos_id", "eot_id", "eom_id", "python_tag_id", "pad_id"):
        assert getattr(official, name) == facts[name]
    assert official.n_vocab == facts["n_words"] == 128_256


def test_official_encoding_vectors(shared_data: Path, official: Tokenizer) -> None:
    wrong = []
    for row in read_jsonl(shared_data / "tokenizer/golden.jsonl"):
        allowed = "all" if row["allowed_special"] == "all" else frozenset(row["allowed_special"])
        ids = official.encode(row["text"], bos=row["bos"], eos=row["eos"], allowed_special=allowed)
        if ids != row["ids"] or official.decode(ids) != row.get("decoded", official.decode(row["ids"])):
            wrong.append((row["id"], row["category"]))
        elif row["roundtrip"] and not row["bos"] and not row["eos"]:
            assert official.decode(ids) == row["text"]
    assert wrong == []


def test_official_decoding_vectors(shared_data: Path, official: Tokenizer) -> None:
    for row in read_jsonl(shared_data / "tokenizer/golden_decode.jsonl"):
        assert official.decode_bytes(row["ids"]).hex() == row["bytes_hex"], row["id"]
        assert official.decode(row["ids"]) == row["text_replace"], row["id"]
        stream = StreamDecoder(official)
        assert "".join(map(stream.push, row["ids"])) + stream.flush() == row["text_replace"], row["id"]


def test_save_gives_the_official_file_and_load_reads_it_back(
    shared_data: Path, official: Tokenizer, tmp_path: Path
) -> None:
    saved = official.save(tmp_path)
    assert hash_file(saved) == official.fingerprint == hash_file(shared_data / "tokenizer/tokenizer.model")
    assert Tokenizer.load(tmp_path).ranks == official.ranks
    assert pickle.loads(pickle.dumps(BYTES)).ranks == BYTES.ranks  # noqa: S301


@pytest.mark.parametrize(
    "unit",
    ["a", "7", "é", "กขค", " ", "\n", "aé7 ก\n", "-", "x" * 24_999 + " "],
    ids=["letters", "digits", "non-ASCII", "Thai", "spaces", "newlines", "mixed", "signs", "just below the limit"],
)
def test_long_input_takes_linear_time(official: Tokenizer, unit: str) -> None:
    def spent(text: str) -> float:
        started = time.process_time()
        assert official.decode(official.encode(text)) == text
        return time.process_time() - started

    long = unit * (5_000_000 // len(unit.encode()))
    short = long[: len(long) // 4]
    quick = min(spent(short) for _ in range(2))
    assert spent(long) < 8 * quick  # linear time gives 4, quadratic 16


@given(st.text(max_size=60))
@settings(deadline=None, max_examples=100)
def test_text_never_becomes_a_control_token_and_comes_back(text: str) -> None:
    text = text.encode("utf-8", errors="replace").decode()
    for probe in (text, f"<|eot_id|>{text}<|begin_of_text|>"):
        ids = BYTES.encode(probe)
        assert max(ids, default=0) < BYTES.n_ranks
        assert BYTES.decode(ids) == probe


def test_encoding_equals_plain_tiktoken(official: Tokenizer) -> None:
    plain = tiktoken.Encoding(
        "plain", pat_str=specials.SPLIT_PATTERN, mergeable_ranks=official.ranks, special_tokens=official.special_ids
    )
    anything = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)  # all planes
    lookalikes = st.sampled_from(
        ["<|", "|>", "<|eot_id|", "<|EOT_ID|>", "<| eot_id|>", "<|reserved_special_token_999|>"]
    )
    pieces = st.one_of(anything, st.sampled_from(specials.SPECIAL_TOKENS), lookalikes)

    @given(st.lists(pieces, max_size=6).map("".join))
    @settings(deadline=None, max_examples=300)
    def check(text: str) -> None:
        assert official.encode(text) == plain.encode_ordinary(text)
        assert official.encode(text, allowed_special="all") == plain.encode(text, allowed_special="all")
        some = frozenset({specials.EOT})
        wanted = plain.encode(text, allowed_special=some, disallowed_special=())
        assert official.encode(text, allowed_special=some) == wanted

    check()


@given(st.lists(st.integers(0, 255), max_size=40))
@settings(deadline=None, max_examples=200)
def test_stream_decoder_equals_decode_on_any_bytes(ids: list[int]) -> None:
    stream = StreamDecoder(BYTES)
    assert "".join(map(stream.push, ids)) + stream.flush() == BYTES.decode(ids)


def test_bos_eos_batch_and_bad_ids() -> None:
    assert BYTES.encode("a", bos=True, eos=True) == [256, 97, 257]
    assert BYTES.encode("<|eot_id|>", allowed_special="all") == [BYTES.eot_id]
    assert BYTES.encode("<|eot_id|>", allowed_special=frozenset({"<|eom_id|>"})) == list(b"<|eot_id|>")
    batch = ["one", "", "zwei drei"]
    assert BYTES.encode_batch(batch, 3, eos=True) == [BYTES.encode(text, eos=True) for text in batch]
    for bad in (512, -1):
        with pytest.raises(DataError, match=f"token id {bad} is outside this vocabulary of 512"):
            BYTES.decode([65, bad])


def test_a_text_that_begins_with_bos_gets_no_second_one() -> None:
    text, bos = "<|begin_of_text|>a", BYTES.bos_id
    assert BYTES.encode(text, bos=True, allowed_special="all") == [bos, 97]
    assert BYTES.encode(text, bos=True, allowed_special=frozenset({"<|begin_of_text|>"})) == [bos, 97]
    assert BYTES.encode("<|begin_of_text|>" + text, bos=True, allowed_special="all") == [bos, bos, 97]
    assert BYTES.encode(text, bos=True) == [bos, *text.encode()]  # text, not a control token
    assert BYTES.encode("", bos=True, allowed_special="all") == [bos]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_batch_keeps_its_order_and_cuts_long_texts_too(threads: int) -> None:
    texts = [f"text {i} " * (i % 7) for i in range(200)] + ["z" * 60_000]
    wanted = [BYTES.encode(text, bos=True) for text in texts]
    assert BYTES.encode_batch(texts, threads, bos=True) == wanted
    assert BYTES.encode_batch([], threads) == []


def test_bad_rank_files_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no tokenizer at"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.model").write_text("YQ== 0\nnot a rank line\n")
    with pytest.raises(DataError, match="line 2: not a tiktoken rank line"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.model").write_text("YQ== 0\n")
    with pytest.raises(DataError, match="lacks 255 of the 256 single bytes"):
        Tokenizer.load(tmp_path)
    with pytest.raises(DataError, match="without gaps"):
        Tokenizer({**BYTES.ranks, b"ab": 300})


def test_learned_vocabulary_is_deterministic_and_in_merge_order(
    texts: dict[str, list[str]], learned: Tokenizer
) -> None:
    again = learn(texts, vocab_size=1500, sample_megabytes=0.1)
    assert again.fingerprint == learned.fingerprint
    assert learned.n_vocab == 1500
    assert [learned.ranks[bytes((byte,))] for byte in range(256)] == list(range(256))
    for token, rank in learned.ranks.items():  # each token is two tokens of lower rank
        splits = [(learned.ranks.get(token[:i]), learned.ranks.get(token[i:])) for i in range(1, len(token))]
        assert rank < 256 or any(a is not None and b is not None and max(a, b) < rank for a, b in splits)


def test_learned_tokenizer_encodes_as_the_library_that_trained_it(
    texts: dict[str, list[str]], learned: Tokenizer
) -> None:
    from tokenizers import Regex, pre_tokenizers

    one_digit = specials.SPLIT_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
    library = train_library(balanced(texts, 100_000), learned.n_ranks, one_digit)
    split = pre_tokenizers.Split(Regex(specials.SPLIT_PATTERN), behavior="isolated")
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    byte_of = {character: byte for byte, character in enumerate(byte_characters())}
    ids = {name: learned.ranks[bytes(byte_of[c] for c in name)] for name in library.get_vocab()}
    assert sorted(ids.values()) == list(range(learned.n_ranks))
    for code in CODES:
        for text in texts[code][:: max(1, len(texts[code]) // 20)]:
            assert learned.encode(text[:5000]) == [ids[name] for name in library.encode(text[:5000]).tokens], code


def test_no_token_spans_two_digits_unless_asked(texts: dict[str, list[str]], learned: Tokenizer) -> None:
    def spans(tokenizer: Tokenizer) -> int:
        tokens = [token.decode(errors="ignore") for token in tokenizer.ranks]
        return sum(sum(character.isdigit() for character in token) > 1 for token in tokens)

    assert spans(learned) == 0
    numbers = {"en": [f"{i * 7919} and {i % 100}. " for i in range(4000)]}
    assert spans(learn(numbers, vocab_size=600, merge_digits=True)) > 10
    with pytest.raises(DataError, match="the sample gives"):
        learn({"en": ["hello hello"]}, vocab_size=600)
    with pytest.raises(ConfigError, match="below 512"):
        learn(numbers, vocab_size=500)


def test_learning_takes_the_same_from_every_language() -> None:
    much, little = ["wordy wording words " * 50] * 200, ["ละครไทย ละครเวที " * 20] * 5
    tokenizer = learn({"en": much, "th": little}, vocab_size=540, sample_megabytes=0.003)
    assert any("ล".encode() in token for token in tokenizer.ranks)


def test_a_floor_lifts_the_languages_that_a_plain_sample_leaves_behind(texts: dict[str, list[str]]) -> None:
    some = {code: texts[code] for code in ("en", "de", "hi", "th")}
    plain = learn(some, vocab_size=1200, sample_megabytes=0.05)
    sample = {code: list(balanced({code: some[code]}, 50_000)) for code in some}
    before = {code: row["characters_per_token"] for code, row in fertility(plain, sample).items()}
    assert before["th"] < before["hi"] < 1.6 < before["de"]
    found = learn_balanced(some, floor=1.6, vocab_size=1200, sample_megabytes=0.05)
    assert found.tokenizer.n_vocab == 1200
    assert found.rounds > 1
    assert min(found.characters_per_token.values()) >= 1.6
    after = {code: row["characters_per_token"] for code, row in fertility(found.tokenizer, sample).items()}
    assert after == found.characters_per_token
    assert found.weights["en"] == found.weights["de"] == 1.0 < min(found.weights["hi"], found.weights["th"])
    again = learn_balanced(some, floor=1.6, vocab_size=1200, sample_megabytes=0.05)
    assert (again.tokenizer.fingerprint, again.weights) == (found.tokenizer.fingerprint, found.weights)
    easy = learn_balanced(some, floor=1.0, vocab_size=1200, sample_megabytes=0.05)
    assert (easy.rounds, easy.tokenizer.fingerprint) == (1, plain.fingerprint)
    with pytest.raises(
        DataError, match=r"to 9 characters a token with 1200 ids \(best: .*th 1\.\d\d\): choose a larger"
    ):
        learn_balanced(some, floor=9, vocab_size=1200, sample_megabytes=0.05, rounds=2)


def test_a_weight_repeats_a_languages_sample() -> None:
    texts = {"a": ["12345", "678"], "b": ["xy"]}
    assert list(balanced(texts, 6, {"a": 2.5, "b": 1.0})) == ["12345", "6", "12345", "6", "123", "xy"]


def test_fertility_counts() -> None:
    rows = fertility(BYTES, {"de": ["grün ist"], "th": ["ไทย"], "fr": []})
    assert rows == {
        "de": {"characters_per_token": 8 / 9, "bytes_per_token": 1.0, "tokens_per_word": 4.5},
        "th": {"characters_per_token": 1 / 3, "bytes_per_token": 1.0},
    }
