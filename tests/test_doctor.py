"""doctor: it tells what this machine has, and finds what is broken, slow or missing; each library really runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pilocal as package
from pilocal.base.blas import FASTER, FIX
from pilocal.cli import COMMANDS
from pilocal.doctor.base_size import BaseSize, base_size
from pilocal.doctor.diagnose import FAILS, MISSING, SLOW, Finding, _packages, _room, _slow
from pilocal.doctor.machine import probe
from tests.test_cli import ROOT, pilocal


def doctor(*arguments: object, **env: object) -> subprocess.CompletedProcess[str]:
    return pilocal("doctor", *arguments, env={**os.environ, **{name: str(value) for name, value in env.items()}})


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    done = doctor("--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_this_machine_works_and_every_library_was_really_used(report: dict[str, Any]) -> None:
    assert report["works"] and not [each for each in report["findings"] if each["level"] == FAILS]
    assert report["mlx"]["gflops"] > 0.1 and report["torch"]["gflops"] > 0.1
    assert report["mlx"]["device"] == "gpu" or report["mlx"]["blas"]
    assert report["llama.cpp"]["starter_tokens_per_second"] > 1
    assert report["llama.cpp"]["flags"]["CPU"]
    assert report["memory"]["total"] > 1 << 30
    assert set(report["disk"]) == {"here", "cache", "hub"}
    assert report["versions"]["pilocal"] == package.__version__
    assert {"mlx", "llama-cpp-python", "numpy"} <= report["versions"].keys()
    assert report["base"]["here"] and report["base"]["bytes"] > 100_000


BROKEN = {
    "llama_cpp": "import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n",
    "mlx": "raise ImportError('libblas.so.3: cannot open shared object file')\n",
    "torch": "import sys\nsys.exit(3)\n",
}


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A folder of packages that crash, refuse and end the program."""
    for name, code in BROKEN.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(code)
    return tmp_path


def test_libraries_that_crash_are_reported_with_what_mends_them_and_exit_status_1(broken: Path) -> None:
    done = doctor("--json", PYTHONPATH=broken)
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    found = {each["about"]: each for each in report["findings"]}
    assert not report["works"]
    assert "SIGILL" in found["llama.cpp"]["what"] and "pip install" in found["llama.cpp"]["fix"]
    assert "libblas.so.3" in found["mlx"]["what"] and "pip install" in found["mlx"]["fix"]
    assert [found[name]["level"] for name in ("llama.cpp", "mlx", "torch")] == [FAILS, FAILS, MISSING]
    assert report["findings"][0]["level"] == FAILS
    assert "Traceback" not in done.stdout + done.stderr


def test_what_fails_depends_on_the_backend(broken: Path) -> None:
    done = doctor("--backend", "torch", PYTHONPATH=broken)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[-1] == "`pilocal run` would fail here"
    assert any(line.startswith("fails: torch does not work") for line in lines)
    assert any(line.startswith("missing: mlx does not work") for line in lines)


def test_a_probe_that_prints_beside_its_answer_or_nothing_is_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("print('hello')\nraise ValueError('no')\n")
    assert probe("torch") == {"error": "ValueError: no"}
    (tmp_path / "torch" / "__init__.py").write_text("import os\nos._exit(7)\n")
    assert probe("torch") == {"error": "no answer"}


def test_a_package_that_is_not_there_is_named_with_its_command() -> None:
    code = (
        "import sys\nfor name in ('mlx', 'mlx.core', 'mlx_lm', 'llama_cpp', 'torch'): sys.modules[name] = None\n"
        "from pilocal.cli import main\nsys.argv = ['pilocal', 'doctor', '--json']\nmain()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 1, done.stderr
    found = {each["about"]: (each["level"], each["fix"]) for each in json.loads(done.stdout)["findings"]}
    assert found["mlx"] == (FAILS, "pip install 'mlx[cpu]' mlx-lm")
    assert found["llama_cpp"] == (FAILS, "pip install llama-cpp-python")
    assert found["torch"] == (MISSING, "pip install 'pilocal[torch]'")


def test_nobody_is_told_the_name_of_the_home_folder(tmp_path: Path, broken: Path) -> None:
    home = tmp_path / "alice-in-wonderland"
    home.mkdir()
    for arguments in ((), ("--json",)):
        done = doctor(*arguments, HOME=home, XDG_CACHE_HOME=home / ".cache", PYTHONPATH=broken)
        assert "alice" not in done.stdout
        assert "~/.cache/pilocal" in done.stdout


def test_a_cache_that_cannot_be_written_fails(tmp_path: Path, broken: Path) -> None:
    (tmp_path / "file").write_text("")
    done = doctor("--json", XDG_CACHE_HOME=tmp_path / "file", PYTHONPATH=broken)
    faults = [each for each in json.loads(done.stdout)["findings"] if each["about"] == "disk"]
    assert {each["level"] for each in faults} == {FAILS}
    assert any("XDG_CACHE_HOME" in each["fix"] for each in faults)


@pytest.mark.parametrize(
    ("model", "fault"),
    [("./missing", "no such model"), ("strater", "did you mean starter?"), ("ollama:none", "no such model in Ollama")],
)
def test_a_base_that_is_not_there_fails_in_a_line(model: str, fault: str) -> None:
    found = base_size(model)
    assert fault in found.fault and "\n" not in found.fault
    assert not found.here


def in_hub(home: Path, code: str) -> str:
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "OLLAMA_MODELS": str(home / "ollama")}
    env.pop("HF_HUB_CACHE", None)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=env)
    return done.stdout.strip()


def test_a_base_of_the_hub_is_never_downloaded(tmp_path: Path) -> None:
    code = "from pilocal.doctor.base_size import base_size\nprint(base_size('nobody/no-such-model').fault)"
    said = in_hub(tmp_path, code)
    assert said.startswith("nobody/no-such-model is not downloaded")
    assert len(said.splitlines()) == 1


def test_what_lies_in_the_caches_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "models--own--model"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "snapshots" / "abc" / "model.safetensors").write_bytes(b"x" * 77)
    manifest = tmp_path / "ollama" / "manifests" / "registry.ollama.ai" / "library" / "llama3.2" / "1b"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}")
    code = (
        "from pilocal.doctor.base_size import base_size\nfrom pilocal.doctor.machine import model_facts\n"
        "found = base_size('own/model')\nprint(found.bytes, found.here, model_facts())"
    )
    assert in_hub(tmp_path, code) == "77 True {'hub': ['own/model'], 'ollama': ['ollama:llama3.2:1b']}"


FAST: dict[str, Any] = {
    "system": {"machine": "x86_64", "nvidia": None, "variables": {}, "cores": 4},
    "mlx": {"gflops": 50.0, "over_reference": 8.0, "cuda": False},
    "torch": {"device": "cpu"},
    "llama.cpp": {"gpu": False, "flags": {"CPU": {"AVX2": "1", "FMA": "1", "AVX512": "1"}}},
}


def slow(**changed: Any) -> list[Finding]:
    facts = {**FAST, **changed}
    facts["system"] = {**FAST["system"], **changed.get("system", {})}
    return list(_slow(facts))


def test_what_is_slow_is_found_with_the_command_that_mends_it() -> None:
    assert slow() == []
    (blas,) = slow(mlx={**FAST["mlx"], "over_reference": FASTER / 2})
    assert (blas.level, blas.about, blas.fix) == (SLOW, "blas", FIX)
    (threads,) = slow(system={"variables": {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "4"}})
    assert threads.fix == "unset OMP_NUM_THREADS"
    on_gpu = slow(system={"nvidia": "NVIDIA H200"})
    assert [each.about for each in on_gpu] == ["torch", "mlx", "llama.cpp"]
    assert "GGML_CUDA=on" in on_gpu[-1].fix
    assert slow(**{"llama.cpp": {"error": "x"}}, mlx=None, torch={"error": "y"}) == []


def room(total: int = 8 << 30, free: int = 50 << 30, writable: bool = True, **base: Any) -> list[str]:
    disk = {name: {"folder": name, "free": free, "writable": writable} for name in ("here", "cache", "hub")}
    facts = {"memory": {"total": total, "limit": None}, "disk": disk}
    return [each.about for each in _room(facts, BaseSize(model="m", **base)) if each.level == FAILS]


def test_too_little_memory_or_disk_for_the_base_fails() -> None:
    assert room(bytes=4 << 30, here=True) == []
    assert room(bytes=9 << 30, here=True) == ["memory"]
    assert room(total=1 << 29, bytes=1, here=True) == ["memory"]
    assert room(free=3 << 30, bytes=4 << 30, here=True) == ["disk"]
    assert room(free=3 << 30, bytes=4 << 30) == ["disk", "disk"]
    assert room(fault="no such model") == ["base"]


def test_packages_of_the_other_backend_are_not_needed() -> None:
    assert not [each for each in (*_packages("mlx"), *_packages("torch")) if each.level == FAILS]


def test_the_version_names_what_a_report_needs() -> None:
    done = pilocal("--version")
    first, packages, system = done.stdout.splitlines()
    assert first == f"pilocal, version {package.__version__}"
    assert "mlx " in packages and "llama-cpp-python " in packages
    assert system.startswith("BLAS ") and "Python 3." in system


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_options_and_words(shell: str) -> None:
    def completed(words: str, count: int) -> list[str]:
        incomplete = words.rsplit(" ", maxsplit=1)[-1]
        env = {**os.environ, "_PILOCAL_COMPLETE": f"{shell}_complete", "COMP_WORDS": words,
               "COMP_CWORD": incomplete if shell == "fish" else str(count)}  # fmt: skip
        said = pilocal(env=env).stdout
        return [line.replace("plain,", "").split("\t")[0] for line in said.splitlines()]

    commands = completed("pilocal ", 1)
    assert set(COMMANDS) <= set(commands)
    assert "bedrock" in completed("pilocal stages x --format b", 4)
    assert "--schedule" in completed("pilocal run --sch", 2)
    env = {**os.environ, "_PILOCAL_COMPLETE": f"{shell}_source"}
    assert "_PILOCAL_COMPLETE" in pilocal(env=env).stdout
