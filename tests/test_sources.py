"""Sources: every format gives the same documents; what is broken is counted and never fatal."""

import gzip
import json
from pathlib import Path

import pytest

from herd.base.errors import DataError, HerdError
from herd.data.document import Document
from herd.data.formats import PIECE
from herd.data.sources import SourceReport, read_source

ROWS = [
    {
        "id": "a",
        "text": "one little text",
        "lang": "en",
        "source": "s",
        "license": "CC0-1.0",
        "date": "2020",
        "kind": None,
    },
    {"id": "b", "text": "ein kleiner Text\nin zwei Zeilen", "lang": "de", "kind": "story", "votes": 3},
]


def read(path: Path | str, **options: str) -> tuple[list[Document], SourceReport]:
    report = SourceReport()
    return list(read_source(str(path), report=report, **options)), report


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_all_formats(folder: Path) -> dict[str, Path]:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    paths = {name: folder / f"rows.{name}" for name in ("jsonl", "json", "jsonl.gz", "parquet")}
    paths["jsonl"].write_text(lines(ROWS), encoding="utf-8")
    paths["json"].write_text(json.dumps(ROWS), encoding="utf-8")
    with gzip.open(paths["jsonl.gz"], "wt", encoding="utf-8") as file:
        file.write(lines(ROWS))
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), paths["parquet"])
    return paths


def test_every_row_format_gives_the_same_documents(tmp_path: Path) -> None:
    found = {name: read(path)[0] for name, path in write_all_formats(tmp_path).items()}
    for documents in found.values():
        assert [document.text for document in documents] == [row["text"] for row in ROWS]
        assert [document.id for document in documents] == ["a", "b"]
        assert (documents[0].license, documents[0].date, documents[1].kind) == ("CC0-1.0", "2020", "story")
    assert found["jsonl"][1].extra == {"votes": 3}
    assert found["jsonl"][1].source == "rows.jsonl"


def test_folder_reads_all_files_recursively_in_name_order(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.txt").write_text("second file", encoding="utf-8")
    (tmp_path / "a.md").write_text("# first file\n", encoding="utf-8")
    (tmp_path / ".hidden.txt").write_text("not read", encoding="utf-8")
    (tmp_path / "z.bin").write_bytes(b"\0\1")
    documents, report = read(tmp_path)
    assert [(document.id, document.source) for document in documents] == [
        ("a.md", "a.md"),
        ("b/x.txt", "b/x.txt"),
    ]
    assert report.not_corpora == ["z.bin: .bin is not a known type of corpus file"]
    assert (report.files, report.documents, report.bytes) == (2, 2, 12 + 11)


def test_broken_rows_are_counted_with_the_first_three_shown(tmp_path: Path) -> None:
    bad = [
        b"{not json",
        b'{"id": 1}',
        b'{"text": 5}',
        b'{"text": "\xff\xfe"}',
        b'{"text": " "}',
        b"[1]",
        b'{"text": "\\ud800"}',
    ]
    good = [json.dumps(row).encode() for row in ROWS]
    (tmp_path / "c.jsonl").write_bytes(b"\n".join([good[0], *bad, b"", good[1]]))
    documents, report = read(tmp_path / "c.jsonl")
    assert [document.id for document in documents] == ["a", "b"]
    assert report.bad_rows == len(bad)
    assert report.first == [
        "c.jsonl:2: broken JSON",
        "c.jsonl:3: no 'text'",
        "c.jsonl:4: 'text' is int, not a string",
    ]
    assert report.reasons["invalid UTF-8"] == 1
    assert report.reasons["text holds half a surrogate pair"] == 1


def test_a_file_without_text_is_named_in_one_line_and_is_not_a_fault(tmp_path: Path) -> None:
    (tmp_path / "labels.jsonl").write_text(lines([{"id": str(i), "label": 1} for i in range(500)]))
    (tmp_path / "text.jsonl").write_text(lines(ROWS), encoding="utf-8")
    documents, report = read(tmp_path)
    assert len(documents) == 2
    assert report.not_corpora == ["labels.jsonl: rows have no 'text' (keys: id, label)"]
    assert report.bad_rows == 0


def test_a_damaged_archive_is_used_up_to_the_damage(tmp_path: Path) -> None:
    packed = gzip.compress(lines(ROWS * 2000).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "b.txt").write_text("whole")
    documents, report = read(tmp_path)
    assert documents[-1].text == "whole"
    assert any("a.jsonl.gz" in where for where in report.first)


def test_a_huge_text_file_is_cut_at_blank_lines_and_nothing_is_lost(tmp_path: Path) -> None:
    paragraphs = [f"paragraph {number} " + "word " * 60 for number in range(400)]
    text = "\n\n".join(paragraphs)
    (tmp_path / "book.txt").write_text(text, encoding="utf-8")
    documents, _ = read(tmp_path / "book.txt")
    assert "\n\n".join(document.text for document in documents) == text
    assert all(len(document.text) < PIECE + 1000 for document in documents)
    assert documents[0].id == "book.txt:1"
    assert len({document.id for document in documents}) == len(documents) > 3


def test_other_field_names_and_text_keys_are_understood(tmp_path: Path) -> None:
    row = {
        "content": "a text",
        "language": "fr",
        "url": "https://example.org",
        "licence": "MIT",
        "timestamp": 2021,
    }
    (tmp_path / "x.jsonl").write_text(lines([row]))
    (document,), _ = read(tmp_path, text_key="content")
    assert (document.lang, document.source, document.license, document.date) == (
        "fr",
        row["url"],
        "MIT",
        "2021",
    )


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda folder: folder / "absent", "doesn't exist"),
        (lambda folder: folder, "holds no file that can be read"),
        (lambda folder: (folder / "e.jsonl").write_text("") or folder, "holds no document"),
        (lambda folder: (folder / "e.jsonl").write_text('{"id": 1}\n') and folder, "keys: id"),
        (lambda folder: (folder / "e.jsonl").write_text("{\n") and folder, "broken JSON"),
        (lambda folder: "hf:nonsense", "is not of the form"),
    ],
)
def test_an_unusable_source_is_refused_in_one_line(tmp_path: Path, make, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint) as caught:
        read(make(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_hub_id_without_the_library_says_what_to_install() -> None:
    try:
        import datasets  # noqa: F401
    except ImportError:
        with pytest.raises(HerdError, match="pip install 'datasets'"):
            read("hf:owner/name")
    else:
        pytest.skip("the datasets library is installed")


def test_a_document_survives_its_json_form() -> None:
    document = Document("i", "t", "en", "s", None, "2020-01-01", "story", {"votes": 3})
    assert Document.from_json(json.loads(json.dumps(document.to_json()))) == document


def test_the_shared_corpus_folder_reads_whole(shared_data: Path) -> None:
    documents, report = read(shared_data / "corpus")
    assert report.bad_rows == 0
    assert [line.split(":")[0] for line in report.not_corpora] == ["dirty_labels.jsonl", "pud_parallel.jsonl"]
    assert {document.lang for document in documents} >= {"en", "de", "fr", "it", "pt", "hi", "es", "th"}
    assert len(documents) == report.documents > 8_000
