"""`pilocal export RUN`: other forms of a trained adapter, each measured before it is served."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pilocal.base.base import Base
from pilocal.errors import ExportError, InputError
from pilocal.export.fused import export_fused
from pilocal.flow.checks import UNMADE
from pilocal.flow.listeners import Listeners
from pilocal.flow.opening import open_task
from pilocal.flow.run import export_run
from pilocal.flow.runner import run_steps, step_named
from pilocal.flow.shipping import found_from
from pilocal.llamacpp.quantize import quantize_gguf
from pilocal.run_folder.shipped import read_shipped
from pilocal.task import Retrieval
from tests.forked import pilocal
from tests.test_flow import flow, make_task
from tests.tiny import make_base


def export(*arguments: object) -> subprocess.CompletedProcess[str]:
    return pilocal("export", *arguments)


@pytest.fixture(scope="module")
def task(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_task(tmp_path_factory.mktemp("shipping") / "task", tiny_base.folder)
    flow(folder)
    return folder


@pytest.fixture(autouse=True)
def as_before(task: Path, tmp_path: Path) -> Iterator[None]:
    """Every test finds the run as `pilocal run` left it."""
    aside = shutil.copytree(task / "run", tmp_path / "run")
    yield
    shutil.rmtree(task / "run")
    shutil.copytree(aside, task / "run")


def test_another_form_is_measured_scored_and_served(task: Path) -> None:
    done = export(task / "run", "--quant", "q8_0", "--accept-loss", "--json")
    assert done.returncode == 0, done.stderr
    entries = json.loads(done.stdout)
    assert entries == json.loads((task / "run" / "export" / "artefacts.json").read_text())
    assert set(entries) == {"lossless", "q8_0"}
    entry = entries["q8_0"]
    assert 0 < entry["kl"] < entry["kl_without"]
    assert 0 <= entry["interval"][0] <= entry["score"] <= entry["interval"][1] <= 1
    assert set(entry["files"]) == {"base-q8_0.gguf", "shipped-q8_0.gguf"}
    assert entry["bytes"] == (task / "run" / "export" / "shipped-q8_0.gguf").stat().st_size
    shipped = read_shipped(task / "run")
    assert (shipped.fused, shipped.adapter) == ("shipped-q8_0.gguf", None)
    steps = flow(task)
    assert [name for name, worked in steps.items() if worked] == ["evaluate"]
    metrics = json.loads((task / "run" / "metrics.json").read_text())
    assert metrics["gate"].keys() == {"lossless", "q8_0"}
    assert 0 <= metrics["same_answers"] <= 1
    assert read_shipped(task / "run").fused == "shipped-q8_0.gguf"


def test_what_the_gate_refuses_is_deleted_and_what_was_served_stays(task: Path) -> None:
    before = (task / "run" / "export" / "shipped.json").read_bytes()
    done = export(task / "run", "--format", "fused", "--quant", "q2_k")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("export q2_k: refused: ")
    assert not list((task / "run" / "export").glob("*q2_k*"))
    assert (task / "run" / "export" / "shipped.json").read_bytes() == before
    assert not any(flow(task).values())


def test_other_programs_get_a_folder_each_with_a_card(task: Path) -> None:
    done = export(task / "run", "--format", "peft", "--format", "mlx", "--format", "ollama", "--json")
    assert done.returncode == 0, done.stderr
    folder = task / "run" / "export"
    entries = json.loads(done.stdout)
    assert set(entries) == {"lossless", "peft", "mlx", "ollama"}
    for form in ("peft", "mlx", "ollama"):
        assert all((folder / name).stat().st_size == size for name, size in entries[form]["files"].items())
    assert {"peft/adapter_model.safetensors", "peft/README.md"} <= set(entries["peft"]["files"])
    assert {"mlx/model.safetensors", "mlx/tokenizer.json", "mlx/README.md"} <= set(entries["mlx"]["files"])
    modelfile = (folder / "Modelfile").read_text()
    assert "FROM ./base-q4_1.gguf\nADAPTER ./adapter.gguf\n" in modelfile
    assert "| lossless |" in (folder / "README.md").read_text()
    assert not any(flow(task).values())


def test_llama_server_gets_the_adapters_of_several_runs(task: Path, tmp_path: Path) -> None:
    other = shutil.copytree(task, tmp_path / "other")
    text = (other / "task.toml").read_text()
    (other / "task.toml").write_text(text.replace('name = "', 'name = "other ', 1))
    assert export(other / "run", "--format", "llama-server").returncode == 0
    done = export(task / "run", other / "run", "--format", "llama-server", "--json")
    assert done.returncode == 0, done.stderr
    folder = task / "run" / "export"
    assert json.loads(done.stdout)["llama-server"]["files"].keys() == {"llama-server.sh", "llama-server.json"}
    script = (folder / "llama-server.sh").read_text()
    assert [line.split(":0")[0] for line in script.splitlines() if "--lora-scaled" in line] == [
        "  --lora-scaled adapter.gguf",
        f"  --lora-scaled {os.path.relpath(other / 'run' / 'export' / 'adapter.gguf', folder)}",
    ]
    names = [read_shipped(run).name for run in (task / "run", other / "run")]
    assert list(json.loads((folder / "llama-server.json").read_text())["requests"]) == [*names, "base"]
    refused = export(task / "run", other / "run", "--format", "peft")
    assert refused.returncode == 2
    assert "several runs are exported together with --format llama-server alone" in refused.stderr
    twice = export(task / "run", task / "run", "--format", "llama-server")
    assert (twice.returncode, twice.stderr.count("has the same name")) == (1, 1)


def test_a_new_adapter_leaves_nothing_of_the_old_one(task: Path) -> None:
    assert export(task / "run", "--quant", "f16", "--accept-loss").returncode == 0
    assert (task / "run" / "export" / "shipped-f16.gguf").is_file()
    text = (task / "task.toml").read_text()
    try:
        (task / "task.toml").write_text(text.replace("learning_rate = 1e-3", "learning_rate = 2e-3"))
        done = export(task / "run")
        assert done.returncode == 1
        assert "the task or its settings have changed since; pilocal run" in done.stderr
        flow(task)
    finally:
        (task / "task.toml").write_text(text)
    names = {path.name for path in (task / "run" / "export").iterdir()}
    served = {"base-q4_1.gguf", "adapter.gguf", "shipped.json", "examples.jsonl", "confidence.json"}
    assert names == served | {"artefacts.json"}


def test_a_run_that_never_finished_its_training_is_refused(task: Path, tiny_base: Base, tmp_path: Path) -> None:
    other = make_task(tmp_path / "other", tiny_base.folder)
    with open_task(other, other / "schedule.toml", other / "run") as context:
        run_steps(context, step_named("stages"))
    done = export(other / "run")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "the training is not finished; pilocal run" in done.stderr
    done = export(tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "no run has begun here" in done.stderr


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (("--quant", "q4km"), 1, "--quant: llama.cpp has no such type; got 'q4km'; did you mean q4_k_m?"),
        (("--quant", "zzz"), 1, "known: "),
        (("--format", "lossless", "--quant", "f16"), 2, "--quant is the type of a fused file"),
    ],
)
def test_bad_options_are_one_line(task: Path, options: tuple[str, ...], status: int, said: str) -> None:
    done = export(task / "run", *options)
    assert (done.returncode, done.stderr.count("\n")) == (status, 1)
    assert said in done.stderr


def test_a_type_that_does_not_exist_is_refused_before_any_work(task: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(task, tmp_path / "task", ignore=shutil.ignore_patterns("run"))
    toml = folder / "task.toml"
    toml.write_text(toml.read_text().replace("accept_loss = true", 'quant = "q9"'))
    with pytest.raises(ExportError, match=r"\[export\] quant: llama.cpp has no such type; got 'q9'"):
        flow(folder)
    toml.write_text(toml.read_text().replace('quant = "q9"', ""))
    toml.write_text(toml.read_text().replace("rank = 2", 'rank = 2\nkind = "dora"'))
    with pytest.raises(InputError, match=r"no adapters with magnitudes \(DoRA\)"):
        flow(folder)
    toml.write_text(toml.read_text().replace('kind = "dora"', "").replace("[export]", '[export]\nquant = "iq2_xs"'))
    with pytest.raises(InputError, match=r"\[export\] quant: llama.cpp does not make this type .* got 'iq2_xs'"):
        flow(folder)
    assert not (folder / "run" / "stages").exists()


def test_the_types_that_are_refused_are_those_that_llama_cpp_does_not_make(starter: Base, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1, "rope_scaling": None}
    base = make_base(tmp_path / "base", starter.folder, quantized=False, **sizes)
    floats = export_fused(base, None, tmp_path / "f16.gguf", "f16")
    for quant in UNMADE:
        with pytest.raises(ExportError, match=f"llama.cpp cannot quantize to {quant}"):
            quantize_gguf(floats, tmp_path / "made.gguf", quant)
    for quant in ("iq3_m", "iq3_s", "iq4_nl", "iq4_xs", "q2_k", "q3_k_s", "tq1_0"):
        quantize_gguf(floats, tmp_path / "made.gguf", quant)


def _other_disk(*_: object) -> None:
    raise OSError(errno.EXDEV, "another disk")


def test_a_link_to_another_disk_is_told_of_and_replaced(task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache of the base lies on another disk, so that the run can only point at it."""
    monkeypatch.setattr("os.link", _other_disk)
    said: list[str] = []
    export_run(task / "run", accept_loss=True, listeners=Listeners(warn=said.append))
    base = task / "run" / "export" / "base-q4_1.gguf"
    assert base.is_symlink()
    assert said == [f"{base}: a link to {base.readlink()}; `pilocal export {task / 'run'} --copy` puts the file there"]
    before = read_shipped(task / "run")
    export_run(task / "run", copy=True, listeners=Listeners(warn=pytest.fail))
    assert not base.is_symlink()
    assert read_shipped(task / "run") == before
    assert not any(flow(task).values())


def test_a_copied_export_is_whole(task: Path) -> None:
    forms = ("--format", "fused", "--quant", "f16", "--format", "lossless")
    served = export(task / "run", *forms, "--accept-loss")
    assert served.returncode == 0, served.stderr
    assert (task / "run" / "export" / "base-q4_1.gguf").stat().st_nlink > 1
    done = export(task / "run", "--copy", "--format", "ollama", "--format", "peft", "--format", "mlx")
    assert done.returncode == 0, done.stderr
    assert read_shipped(task / "run").fused == "shipped-f16.gguf"
    files = [path for path in (task / "run" / "export").rglob("*") if path.is_file()]
    assert all(path.stat().st_nlink == 1 and not path.is_symlink() for path in files)
    here = str(task).encode()
    texts = [path for path in files if path.suffix not in (".gguf", ".safetensors")]
    assert not [path.name for path in texts if here in path.read_bytes()]


def test_there_is_nothing_to_copy_before_an_export(task: Path) -> None:
    shutil.rmtree(task / "run" / "export")
    done = export(task / "run", "--copy")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "nothing was exported here yet" in done.stderr


def test_an_embedding_model_in_the_task_s_folder_is_found_from_the_export(tmp_path: Path) -> None:
    (tmp_path / "task" / "models").mkdir(parents=True)
    export = tmp_path / "runs" / "first" / "export"
    for named, found in (("models", "../../../task/models"), ("owner/model", "owner/model"), ("/models", "/models")):
        settings = Retrieval(similarity="embedding", embedding_model=named)
        assert found_from(settings, tmp_path / "task", export).embedding_model == found
