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
from herd.tokenizer.shard_writer import write_shards
from herd.tokenizer.shards import TokenShards, encode_documents

DOCUMENTS = [([1, 2, 3], ("de", "story")), ([], ("en", "code")), ([60_000, 5], ("de", "story"))]


@given(
    st.lists(st.lists(st.integers(0, 70_000), max_size=9), max_size=8),
    st.sampled_from([70_001, 2**31]),
    st.sampled_from([1, 7, 20, 100]),
)
@settings(deadline=None, max_examples=60)
def test_documents_come_back(documents: list[list[int]], vocab_size: int, file_tokens: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = [(ids, ("en", str(len(ids)))) for ids in documents]
        shards = write_shards(Path(folder), rows, vocab_size=vocab_size, file_tokens=file_tokens)
        assert shards.dtype == np.uint32
        assert [shards.document(i).tolist() for i in range(len(shards))] == documents
        assert [shards.key(i)["kind"] for i in range(len(shards))] == [key[1] for _, key in rows]
        assert shards.n_tokens == sum(map(len, documents))
        assert shards.offsets.tolist() == [0, *np.cumsum([len(ids) for ids in documents], dtype=np.int64).tolist()]
        for start, ids in zip(shards.offsets.tolist(), documents, strict=False):
            assert shards.read(start, len(ids)).tolist() == ids
        for file in shards.files:  # as many documents have ids as are not predicted
            assert file.n_tokens <= file_tokens or sum(c.tokens - c.targets for c in file.counts) == 1
        assert len(shards.files) <= 1 + 2 * shards.n_tokens / file_tokens


def test_small_vocabularies_take_two_bytes_a_token(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, DOCUMENTS, vocab_size=65_535, fingerprint="abc")
    assert shards.dtype == np.uint16
    assert (tmp_path / "tokens-00000.bin").stat().st_size == 2 * 5
    assert shards.offsets.tolist() == [0, 3, 3, 5]
    assert shards.keys == [("de", "story"), ("en", "code")]
    assert shards.tokens_per_key() == {("de", "story"): 5, ("en", "code"): 0}
    assert TokenShards(tmp_path, fingerprint="abc").fingerprint == "abc"
    assert write_shards(tmp_path, DOCUMENTS, vocab_size=65_536).dtype == np.uint32
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
    tokens, table = tmp_path / "tokens-00000.bin", tmp_path / "documents-00000.bin"
    table.write_bytes(np.array([0, 3, 3, 4, 0, 2, 1], np.uint32).tobytes())
    with pytest.raises(DataError, match=r"documents-00000\.bin: offsets don't cover the tokens"):
        TokenShards(tmp_path).document(0)
    table.write_bytes(np.array([0, 4, 3, 5, 0, 2, 1], np.uint32).tobytes())
    with pytest.raises(DataError, match="offsets of documents fall"):
        TokenShards(tmp_path).offsets  # noqa: B018
    tokens.write_bytes(tokens.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"tokens-00000\.bin holds 8 bytes, the index says 10"):
        TokenShards(tmp_path).read(0, 2)
    table.unlink()
    with pytest.raises(DataError, match=r"documents-00000\.bin is missing"):
        TokenShards(tmp_path)
    (tmp_path / "index.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(DataError, match="not format 2 of herd's token shards: remove"):
        TokenShards(tmp_path)


def test_writing_that_fails_leaves_no_whole_folder(tmp_path: Path) -> None:
    write_shards(tmp_path, DOCUMENTS, vocab_size=65_000)
    with pytest.raises(DataError, match=r"document 2 has ids outside 0\.\.59999"):
        write_shards(tmp_path, DOCUMENTS, vocab_size=60_000)
    with pytest.raises(DataError, match="missing"):
        TokenShards(tmp_path)
    with pytest.raises(DataError, match="document 0 has key"):
        write_shards(tmp_path, [([1], ("only one",))], vocab_size=10)
