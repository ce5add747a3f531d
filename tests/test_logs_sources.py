"""Files of logs of every kind are read in bounded memory, and what is no log is one clear line."""

from __future__ import annotations

import csv
import io
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from pilocal.errors import InputError
from pilocal.logs.exchange import BROKEN, HALF_LINE, Exchange, LeftOut
from pilocal.logs.reading import read
from pilocal.logs.sources import records
from pilocal.packages import is_installed
from pilocal.progress import silent
from tests.test_logs_formats import ANSWER, ASKED, CHAT, RECORDS, SAID, SYSTEM, one, rows, write


def containers(folder: Path) -> Iterator[Path]:
    record = RECORDS["Langfuse"]
    for name, text in {
        "array.json": json.dumps([record] * 3),
        "pretty.json": json.dumps([record] * 3, indent=2),
        "page.json": json.dumps({"data": [record] * 3, "meta": {"page": 1}}, indent=2),
        "trace.json": json.dumps({"id": "t", "observations": [record, record, record]}),
        "objects.json": "\n".join(json.dumps(record, indent=1) for _ in range(3)),
        "bom.jsonl": "\ufeff" + "\n\n".join(json.dumps(record) for _ in range(3)),
        "crlf.jsonl": "\r\n".join(json.dumps(record) for _ in range(3)),
    }.items():
        (folder / name).write_bytes(text.encode())
        yield folder / name


def test_every_container_is_read(tmp_path: Path) -> None:
    for path in containers(tmp_path):
        found = rows(path)
        assert [row.answer for row in found if isinstance(row, Exchange)] == [ANSWER] * 3, path.name


def test_the_line_of_every_record_is_known(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    path.write_text("[\n" + ",\n".join(json.dumps({"query": str(n), "answer": "a"}, indent=0) for n in range(9)) + "]")
    lines = path.read_text().split("\n")
    for where, record in records(path):
        assert f'"query": "{record["query"]}"' in lines[where.number]


def table(path: Path, delimiter: str, *table_rows: list[str]) -> Path:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter).writerows(table_rows)
    path.write_text(text.getvalue(), encoding="utf-8", newline="")
    return path


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_tables(delimiter: str, tmp_path: Path) -> None:
    path = table(tmp_path / "log.csv", delimiter, ["frage", "antwort", "rolle"], [ASKED, ANSWER, SYSTEM])
    row = one(path, "query=frage,answer=antwort,system=rolle")
    assert (row.system, row.turns, row.answer) == (SYSTEM, (("user", ASKED),), ANSWER)
    path = table(
        tmp_path / "export.csv", delimiter, ["id", "input", "output"], ["1", json.dumps(CHAT), json.dumps(SAID)]
    )
    assert (one(path).system, one(path).turns, one(path).answer) == (SYSTEM, (("user", ASKED),), ANSWER)


def test_columns_name_the_keys_of_json_too(tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", {"chat": CHAT, "said": ANSWER})
    assert one(path, "query=chat,answer=said").system == SYSTEM


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ("query=frge,answer=antwort", "no such column; got 'frge'; did you mean frage?"),
        ("query=frage", "must name the query and the answer"),
        ("qery=frage,answer=antwort", "did you mean query?"),
        ("frage,antwort", "must be query=NAME,answer=NAME"),
    ],
)
def test_columns_that_are_not_there(columns: str, said: str, tmp_path: Path) -> None:
    path = table(tmp_path / "log.csv", ",", ["frage", "antwort"], [ASKED, ANSWER])
    with pytest.raises(InputError) as error:
        rows(path, columns)
    assert said in str(error.value)


def test_a_dataset_s_folder(tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    (folder / "data").mkdir(parents=True)
    (folder / ".cache").mkdir()
    (folder / "README.md").write_text("# no data")
    (folder / "dataset_info.json").write_text("{}")
    write(folder / ".cache" / "x.jsonl", {"query": "hidden", "answer": "b"})
    write(folder / "data" / "train.jsonl", RECORDS["proxy"])
    write(folder / "data" / "test.jsonl", RECORDS["LiteLLM"])
    assert [row.answer for row in rows(folder) if isinstance(row, Exchange)] == [ANSWER] * 2


@pytest.mark.skipif(is_installed("pyarrow"), reason="pyarrow is installed")
def test_parquet_without_pyarrow_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "data.parquet").write_bytes(b"PAR1" + b"\0" * 40)
    with pytest.raises(InputError, match="parquet files need pyarrow, which is not installed; pip install pyarrow"):
        rows(tmp_path)


@pytest.mark.skipif(not is_installed("pyarrow"), reason="needs pyarrow")
def test_parquet_and_arrow(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.ipc
    import pyarrow.parquet

    made = pyarrow.Table.from_pylist([{"messages": [*CHAT, SAID]}] * 3)
    pyarrow.parquet.write_table(made, tmp_path / "data.parquet")
    for open_writer, name in ((pyarrow.ipc.new_stream, "stream.arrow"), (pyarrow.ipc.new_file, "file.arrow")):
        with open_writer(tmp_path / name, made.schema) as writer:
            writer.write_table(made)
    assert [row.answer for row in rows(tmp_path) if isinstance(row, Exchange)] == [ANSWER] * 9
    (tmp_path / "data.parquet").write_bytes(b"PAR1" + b"\0" * 40)
    with pytest.raises(InputError, match="damaged"):
        rows(tmp_path)


def test_half_a_line_at_the_end_and_broken_lines_are_left_out(tmp_path: Path) -> None:
    good = json.dumps({"query": "a", "answer": "b"})
    path = tmp_path / "log.jsonl"
    path.write_bytes(
        f"{good}\nnot json\n".encode() + b'{"query": "\xff", "answer": "b"}\n' + f"{good}\n{good[:20]}".encode()
    )
    reasons = [row.reason if isinstance(row, LeftOut) else "" for row in rows(path)]
    assert reasons == ["", BROKEN, BROKEN, "", HALF_LINE]
    (tmp_path / "array.json").write_text(f"[{good},\n{good},\n{good[:20]}")
    reasons = [row.reason if isinstance(row, LeftOut) else "" for row in rows(tmp_path / "array.json")]
    assert reasons == ["", "", HALF_LINE]


BAD: dict[str, tuple[bytes, str]] = {
    "text": (b"hello\nworld\n", "the log is not JSON"),
    "log lines": (b"2026-01-01 INFO started\n2026-01-01 INFO done\n", "the log is not JSON"),
    "half a record": (b'{"query": "a", "ans', "the log is not JSON"),
    "empty": (b"", "the file is empty"),
    "spaces": (b"\n \n", "the file is empty"),
    "zip": (b"PK\x03\x04" + b"\0" * 30, "this is a zip, Excel or Word file, not text"),
    "gzip": (b"\x1f\x8b\x08" + b"\0" * 30, "this is a gzip file, not text; unpack it: gzip -dc"),
    "UTF-16": ('{"query": "a", "answer": "b"}'.encode("utf-16"), "this is UTF-16"),
    "picture": (b"\x89PNG\r\n\x1a\n" + b"\0" * 30, "the log is not JSON"),
    "broken array": (b'[{"query": "a", "answer": "b"}, {"query" "a", "answer": "b"}, {}, {}]', "broken JSON"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_file_that_is_no_log_is_one_clear_line(what: str, tmp_path: Path) -> None:
    data, said = BAD[what]
    path = tmp_path / "log.jsonl"
    path.write_bytes(data)
    with pytest.raises(InputError) as error:
        rows(path)
    assert said in str(error.value)
    assert str(error.value).startswith(str(path))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("form", ["lines", "array", "table"])
def test_a_large_file_is_never_in_memory(form: str, tmp_path: Path) -> None:
    path = tmp_path / f"log.{'csv' if form == 'table' else 'json'}"
    text = "x" * 4000
    with path.open("w") as file:
        file.write({"lines": "", "array": "[", "table": "query,answer\n"}[form])
        for number in range(3000):
            line = (
                f"{number} {text},b\n" if form == "table" else json.dumps({"query": f"{number} {text}", "answer": "b"})
            )
            file.write(line + {"lines": "\n", "array": ",\n", "table": ""}[form])
        file.write('{"query": "a", "answer": "b"}]' if form == "array" else "")
    tracemalloc.start()
    count = sum(1 for _ in records(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count in (3000, 3001)
    assert path.stat().st_size > 12_000_000
    assert peak < 4_000_000


def test_a_line_without_end_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pilocal.logs.sources.LONGEST", 1000)
    good = json.dumps({"query": "a", "answer": "b"})
    path = tmp_path / "log.jsonl"
    path.write_text(f"{good}\n{json.dumps({'query': 'x' * 5000, 'answer': 'b'})}\n{good}\n")
    found = [(where.number, isinstance(row, Exchange)) for where, row in read([path], {}, silent, "")]
    assert found == [(1, True), (2, False), (3, True)]
