"""Files as Windows, Excel and a careless hand leave them: read as they are meant, or refused in one line."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zipfile
from pathlib import Path

import pytest

from pilocal.base.base import Base, find_base
from pilocal.errors import InputError, ModelError
from pilocal.task import load_examples, load_task
from pilocal.task.placeholders import placeholder_warning
from pilocal.task.schedule import load_schedule
from tests.test_task import refusal, write_task

FILES = ("task.toml", "template.md", "train.jsonl", "valid.jsonl", "test.jsonl")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_task(tmp_path)


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_a_byte_order_mark_and_other_line_ends_are_no_part_of_any_file(folder: Path, ends: str) -> None:
    plain = load_task(folder)
    for name in FILES:
        text = (folder / name).read_text()
        (folder / name).write_bytes(b"\xef\xbb\xbf" + text.replace("\n", ends).encode())
    assert load_task(folder) == plain
    (folder / "s.toml").write_bytes(b'\xef\xbb\xbfdecay = "linear"\n')
    assert len(load_schedule(folder / "s.toml").stages) == 4


def test_files_that_were_joined_have_the_mark_within(folder: Path) -> None:
    half = (folder / "train.jsonl").read_bytes()
    (folder / "train.jsonl").write_bytes(b"\xef\xbb\xbf" + half + b"\xef\xbb\xbf" + half.replace(b"train", b"more"))
    assert len(load_task(folder).train) == 6


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_utf_16_is_refused_by_name(folder: Path, name: str, encoding: str) -> None:
    (folder / name).write_bytes((folder / name).read_text().encode(encoding))
    assert refusal(folder) == f'{folder / name}: this is UTF-16, which Windows calls "Unicode"; save it as UTF-8'


@pytest.mark.parametrize("name", FILES)
def test_another_encoding_is_refused_with_its_line(folder: Path, name: str) -> None:
    with (folder / name).open("ab") as file:
        file.write("# Käse\n".encode("latin-1"))
    lines = (folder / name).read_bytes().count(b"\n")
    assert refusal(folder) == f"{folder / name}:{lines}: not UTF-8 text; got b'\\xe4'; save it as UTF-8"


def test_packed_files_are_refused_by_name_with_what_to_do(folder: Path) -> None:
    path = folder / "train.jsonl"
    data = path.read_bytes() * 50
    for packed, name in ((gzip.compress(data), "gzip"), (bz2.compress(data), "bzip2"), (lzma.compress(data), "xz")):
        path.write_bytes(packed)
        assert f"train.jsonl: this is a{'n' * (name == 'xz')} {name} file, not text; unpack it: {name} -dc " in refusal(
            folder
        )
    path.write_bytes(b"PAR1\x15\x04\x15\x00\x00\xff PAR1")
    said = refusal(folder)
    assert "this is a Parquet file, not text; with pandas and pyarrow installed: python3 -c" in said
    assert said.endswith(f"{path} {folder}/train.new.jsonl")
    with zipfile.ZipFile(folder / "template.md", "w") as file:
        file.writestr("word/document.xml", "x" * 99)
    assert "template.md: this is a zip, Excel or Word file" in refusal(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_link_that_leads_nowhere_is_called_one(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to("gone.txt")
    assert f"{folder / name}: a link to gone.txt, which is not there" in refusal(folder)


def test_what_lies_behind_a_link_that_leads_nowhere_is_told(folder: Path) -> None:
    (folder / "data").symlink_to("/nowhere/data")
    (folder / "task.toml").write_text('name = "t"\ntrain = "data/train.jsonl"\n')
    said = f"train.jsonl: it lies behind {folder}/data, a link to /nowhere/data, which is not there"
    assert said in refusal(folder)
    for model in ("data", "data/x", "./data"):
        with pytest.raises(ModelError, match="a link to /nowhere/data, which is not there"):
            find_base(model, folder)
    with pytest.raises(ModelError, match="no such model"):
        find_base("./other", folder)


def test_a_file_that_may_not_be_read_is_one_line(folder: Path) -> None:
    (folder / "train.jsonl").unlink()
    (folder / "train.jsonl").symlink_to("train.jsonl")
    assert "train.jsonl: cannot be read: Too many levels of symbolic links" in refusal(folder)
    (folder / "task.toml").write_text('name = "t"\ntest = "a\\u0000b"\n')
    assert "not the name of a file" in refusal(folder)


LARGE = "a number that no setting can be"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"[training]\nsteps = {'9' * 400}\n", f"task.toml:3: {LARGE}"),
        (f"[training]\nlearning_rate = {'9' * 400}\n", f"task.toml:3: {LARGE}"),
        (f"[training]\nseed = -{'9' * 30}\n", f"task.toml:3: {LARGE}"),
        (f"[training]\nsteps = 1\nseed = {'9' * 5000}\n", f"task.toml:4: {LARGE}"),
        (f"[training]\nseed = {'9_' * 5000}9\n", f"task.toml:3: {LARGE}"),
        (f"[training]\nseed = 0x{'f' * 5000}\n", f"task.toml:3: {LARGE}"),
        (f"x = [\n1,\n{'9' * 20}]\n", f"task.toml:4: {LARGE}"),
        ("[training]\nsteps = 1\nlearning_rate = 1e400\n", f"task.toml:4: {LARGE}"),
        ("[training]\nclip = inf\n", f"task.toml:3: {LARGE}"),
        ("[training]\nclip = -nan\n", f"task.toml:3: {LARGE}"),
        (f"[training]\nseed = {2**63}\n", f"task.toml:3: {LARGE}"),
        ("x = " + "[" * 10_000 + "]" * 10_000 + "\n", "task.toml: lists and tables are nested too deeply"),
        ("x = " + "{a=" * 10_000 + "1" + "}" * 10_000 + "\n", "task.toml: lists and tables are nested too deeply"),
        ("a" + ".a" * 10_000 + " = 1\n", "task.toml: lists and tables are nested too deeply"),
        ("x = [" + "[" * 150 + "]" * 150 + "]\n", "task.toml: lists and tables are nested too deeply"),
        ("x = 1\nx = 2\n", "task.toml: not valid TOML"),
        ("x = 2020-13-40\n", "task.toml:2: not valid TOML"),
        ('x = "\\ud800"\n', "task.toml:2: not valid TOML"),
    ],
)
def test_toml_that_python_cannot_hold_is_one_line(folder: Path, text: str, said: str) -> None:
    (folder / "task.toml").write_text(f'name = "t"\n{text}')
    told = refusal(folder)
    assert told.startswith(f"{folder}/{said.partition(': not valid')[0]}")
    assert said.partition(": ")[2] in told
    assert len(told.splitlines()) == 1


def test_the_largest_whole_number_is_taken(folder: Path) -> None:
    (folder / "task.toml").write_text(f'name = "t"\n[training]\nseed = {2**63 - 1}\n')
    assert load_task(folder).training.seed == 2**63 - 1


def test_schedules_are_read_as_strictly(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    stage = "[[stage]]\ntau = {}\nshots = 0\nshare = 0.5\n"
    for text, said in (
        (stage.format("9" * 5000), f"s.toml:2: {LARGE}"),
        (stage.format("1.0") + "[[stage]]\nshots = " + "9" * 400, f"s.toml:6: {LARGE}"),
        (stage.format("[" * 3000 + "]" * 3000), "nested too deeply"),
        (
            stage.format("2.0") * 100,
            "s.toml:2: tau must be between 0 and 1, and 99 more like it, the last on line 398",
        ),
    ):
        path.write_text(text)
        with pytest.raises(InputError) as caught:
            load_schedule(path)
        assert said in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


def test_a_tilde_is_the_home_folder_wherever_a_path_is_named(
    folder: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = folder / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    (home / "base").symlink_to(tiny_base.folder)
    for name in FILES[1:]:
        (folder / name).rename(home / name)
    paths = "".join(f'{Path(name).stem} = "~/{name}"\n' for name in FILES[1:])
    rest = '[compression]\nladder = "~/rungs"\ncheckpoint = "~/c"\n[retrieval]\nembedding_model = "~/e"\n'
    scoring = '[scoring]\ncommand = ["~/score.py", "~/kept"]\n'
    (folder / "task.toml").write_text(f'name = "t"\nmodel = "~/base"\nmetric = "command"\n{paths}{rest}{scoring}')
    task = load_task(folder)
    assert task.files["train"] == home / "train.jsonl"
    assert (task.model, task.compression.ladder) == (f"{home}/base", f"{home}/rungs")
    assert (task.compression.checkpoint, task.retrieval.embedding_model) == (f"{home}/c", f"{home}/e")
    assert task.scoring.command == (f"{home}/score.py", "~/kept")
    assert find_base("~/base", folder).folder == find_base(task.model, folder).folder == home / "base"
    for model in ("~/other", "~no-such-user/base"):
        with pytest.raises(ModelError, match="no such model"):
            find_base(model, folder)


@pytest.mark.parametrize(
    "text",
    [
        "{query}",
        "{input}",
        "{{query}}",
        "{{ question }}",
        "{user_input}",
        "{Question}",
        "$query",
        "${input}",
        "%s",
        "%(query)s",
    ],
)
def test_a_placeholder_in_the_template_is_pointed_out(folder: Path, text: str) -> None:
    (folder / "template.md").write_text(f"\nSay it backwards.\nText: {text}\n")
    (said,) = load_task(folder).warnings
    assert said.startswith(f"{folder}/template.md:3: {text} in a template stays as it stands: the query comes after it")
    (folder / "template.md").write_text(f"{text}\nSay it backwards: {text}.\n")
    (said,) = load_task(folder).warnings
    assert said.startswith(f"{folder}/template.md:1: {text} (and 1 more) in a template")


@pytest.mark.parametrize(
    "text",
    [
        '{"query": "x"}',
        "{name}",
        "$queryset",
        "100%so",
        "%%s",
        "`{}`",
        "{ query: 1 }",
        "${HOME}",
        "query",
        "[input]",
        "${inputs}",
    ],
)
def test_other_braces_in_a_template_are_left_alone(text: str) -> None:
    assert placeholder_warning(f"Say {text}", Path("template.md")) is None


def test_the_examples_of_this_folder_warn_of_nothing() -> None:
    root = Path(__file__).parent.parent / "examples"
    found = [path for path in root.glob("*/template*.md") if placeholder_warning(path.read_text(), path)]
    assert not found
    assert len(list(root.glob("*/template*.md"))) > 5
    assert load_examples(root / "smart-home" / "train.jsonl")
