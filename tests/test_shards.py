"""Token shards: what is written is what is read, and damage is noticed."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.base.errors import DataError
from herd.tokenizer.bpe import Tokenizer
from herd.tokenizer.shards import TokenShards, encode_documents, write_shards

DOCUMENTS = [([1, 2, 3], ("de", "story")), ([], ("en", "code")), ([60_000, 5], ("de", "story"))]


@given(st.lists(st.lists(st.integers(0, 70_000), max_size=9), max_size=8), st.sampled_from([70_001, 2**31]))
@settings(deadline=None, max_examples=25)
def test_documents_come_back(documents: list[list[int]], vocab_size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = [(ids, ("en", str(len(ids)))) for ids in documents]
        shards = write_shards(Path(folder), rows, vocab_size=vocab_size)
        assert shards.tokens.dtype == np.uint32
        assert [shards.document(i).tolist() for i in range(len(shards))] == documents
        assert [shards.key(i)["kind"] for i in range(len(shards))] == [key[1] for _, key in rows]
        assert shards.n_tokens == sum(map(len, documents))


def test_small_vocabularies_take_two_bytes_a_token(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, DOCUMENTS, vocab_size=65_535, fingerprint="abc")
    assert shards.tokens.dtype == np.uint16
    assert (tmp_path / "tokens.bin").stat().st_size == 2 * 5
    assert shards.offsets.tolist() == [0, 3, 3, 5]
    assert shards.keys == [("de", "story"), ("en", "code")]
    assert shards.tokens_per_key() == {("de", "story"): 5, ("en", "code"): 0}
    assert TokenShards(tmp_path, fingerprint="abc").fingerprint == "abc"
    assert write_shards(tmp_path, DOCUMENTS, vocab_size=65_536).tokens.dtype == np.uint32
    assert not list(tmp_path.glob(".*"))


def test_documents_are_framed_by_the_tokenizer(tmp_path: Path) -> None:
    tokenizer = Tokenizer({bytes((byte,)): byte for byte in range(256)})
    texts = [(f"text {i}", ("en", "x")) for i in range(7)]
    shards = write_shards(
        tmp_path,
        encode_documents(tokenizer, texts, batch=3),
        vocab_size=tokenizer.n_vocab,
        fingerprint=tokenizer.fingerprint,
    )
    for i, (text, _) in enumerate(texts):
        assert shards.document(i).tolist() == [tokenizer.bos_id, *text.encode(), tokenizer.eos_id]


def test_damage_and_mismatch_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"index\.json is missing"):
        TokenShards(tmp_path)
    write_shards(tmp_path, DOCUMENTS, vocab_size=65_000, fingerprint="abc")
    with pytest.raises(DataError, match="was encoded by tokenizer abc, not def"):
        TokenShards(tmp_path, fingerprint="def")
    (tmp_path / "keys.npy").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"keys\.npy can't be read"):
        TokenShards(tmp_path)
    tokens = tmp_path / "tokens.bin"
    tokens.write_bytes(tokens.read_bytes()[:-2])
    with pytest.raises(DataError, match="holds 8 bytes, the index says 10"):
        TokenShards(tmp_path)
    (tmp_path / "index.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(DataError, match="not format 1"):
        TokenShards(tmp_path)


def test_writing_that_fails_leaves_no_whole_folder(tmp_path: Path) -> None:
    write_shards(tmp_path, DOCUMENTS, vocab_size=65_000)
    with pytest.raises(DataError, match=r"document 2 has ids outside 0\.\.59999"):
        write_shards(tmp_path, DOCUMENTS, vocab_size=60_000)
    with pytest.raises(DataError, match="missing"):
        TokenShards(tmp_path)
    with pytest.raises(DataError, match="document 0 has key"):
        write_shards(tmp_path, [([1], ("only one",))], vocab_size=10)
