"""What comes from elsewhere: nothing that is loaded may run code, and a base that moved is noticed."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from pilocal.base.base import Base, find_base
from pilocal.errors import ModelError
from pilocal.flow.checks import _moved
from pilocal.run_folder.folder import RunDir

ROOT = Path(__file__).parent.parent
SOURCES = [path for folder in ("pilocal", "tests", "examples") for path in sorted((ROOT / folder).rglob("*.py"))]


SAFE = {"np": ("allow_pickle", "False"), "numpy": ("allow_pickle", "False"), "torch": ("weights_only", "True")}
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def faults(text: str) -> list[str]:
    """Return what in a program would run code that it reads."""
    return [fault for node in ast.walk(ast.parse(text)) for fault in (*_imports(node), *_trust(node), *_loads(node))]


def _imports(node: ast.AST) -> list[str]:
    if not isinstance(node, ast.Import | ast.ImportFrom):
        return []
    names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
    return sorted({name.partition(".")[0] for name in names} & UNPICKLERS)


def _trust(node: ast.AST) -> list[str]:
    if isinstance(node, ast.keyword):
        return ["trust_remote_code"] * (node.arg == "trust_remote_code" and ast.unparse(node.value) != "False")
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return [f"{ast.unparse(key)} in a table" for key, value in pairs if key and _trusts(key, value)]
    return []


def _loads(node: ast.AST) -> list[str]:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr != "load":
        return []
    name, value = SAFE.get(ast.unparse(node.func.value), ("", ""))
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    return [f"load without {name}={value}"] if name and given.get(name) != value else []


def _trusts(key: ast.expr, value: ast.expr) -> bool:
    return ast.unparse(key) == "'trust_remote_code'" and ast.unparse(value) != "False"


def test_nothing_unpickles_and_nothing_trusts_code_from_elsewhere() -> None:
    assert len(SOURCES) > 300
    wrong = {str(path.relative_to(ROOT)): faults(path.read_text(encoding="utf-8")) for path in SOURCES}
    assert not {name: found for name, found in wrong.items() if found}


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "np.load(file)",
        "np.load(file, allow_pickle=True)",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "Auto.from_pretrained(x, trust_remote_code=True)",
        "load(x, {'trust_remote_code': True})",
    ],
)
def test_the_guard_finds_what_it_is_for(text: str) -> None:
    assert faults(text)


@pytest.mark.parametrize("model", ["../owner/name", "/etc/passwd", "./a/b", "~/a", "a/b/c", "..", "a/b.gguf"])
def test_a_path_is_never_asked_of_the_hub(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked of the Hub"))
    with pytest.raises(ModelError):
        find_base(model, tmp_path)


def test_a_hub_id_stays_with_its_revision(starter: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[tuple[str, str | None]]()
    folder = tmp_path / ("a" * 40)
    folder.symlink_to(starter.folder)

    def snapshot(name: str, *, revision: str | None, **_: object) -> str:
        asked.append((name, revision))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    for model, revision in (("owner/name", None), ("owner/name@v1", "v1"), ("owner/name@refs/pr/1", "refs/pr/1")):
        base = find_base(model, tmp_path)
        assert asked.pop() == ("owner/name", revision)
        assert (base.model, base.address, base.revision) == (model, "owner/name", "a" * 40)
    with pytest.raises(ModelError, match="no revision after the @; give owner/name@REVISION or owner/name"):
        find_base("owner/name@", tmp_path)
    for revision in ("/dev/zero", "a/../../b", "a b"):
        with pytest.raises(ModelError, match="not the name of a commit, tag or branch; got"):
            find_base(f"owner/name@{revision}", tmp_path)
    assert not asked


def test_a_base_that_moved_under_its_name_is_noticed(starter: Base, tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    hub = Base(starter.folder, "owner/name", local=False)
    assert not _moved(run, hub)
    run.state.update(model="owner/name", base_sha256="0" * 64, base_revision="f" * 40)
    (line,) = _moved(run, hub)
    assert "not the files of owner/name that this run began with (revision ffffffffffff, now model)" in line
    run.state.update(base_sha256=hub.sha256)
    assert not _moved(run, hub)


def test_workflows_read_and_do_no_more() -> None:
    for path in sorted((ROOT / ".github" / "workflows").glob("*.yml")):
        text = path.read_text()
        assert re.findall(r"permissions:\n((?:  .+\n)+)", text) == ["  contents: read\n"], path
        assert all(re.fullmatch(r"actions/[\w-]+@v\d+", used) for used in re.findall(r"uses: (\S+)", text)), path
