"""llama.cpp as the rest of the kit uses it: one way to load, one refusal, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pilocal.base.base import Base
from pilocal.errors import ModelError
from pilocal.export.fused import export_fused
from pilocal.export.lora import export_adapter
from pilocal.llamacpp.batch_engine import BatchEngine
from pilocal.llamacpp.engine import Engine
from pilocal.llamacpp.library import collected_errors, load_llama_cpp
from pilocal.llamacpp.model import Model
from tests.tiny import make_adapter, make_base


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory, starter: Base) -> Path:
    folder = tmp_path_factory.mktemp("llamacpp")
    return export_fused(make_base(folder / "base", starter.folder), None, folder / "base.gguf", "f16")


@pytest.fixture(scope="module")
def foreign_adapter(tmp_path_factory: pytest.TempPathFactory, starter: Base) -> Path:
    """An adapter of a base of another shape."""
    folder = tmp_path_factory.mktemp("foreign")
    other = make_base(folder / "base", starter.folder, hidden_size=64, intermediate_size=64)
    export_adapter(other, make_adapter(folder / "adapter", other), folder / "a.gguf", name="a")
    return folder / "a.gguf"


def loaded(path: Path) -> bool:
    """Whether llama.cpp maps a file into this process."""
    return str(path) in Path("/proc/self/maps").read_text()


def test_every_way_to_load_a_damaged_file_is_refused_in_the_same_words(gguf: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(gguf.read_bytes()[:100_000])
    said = set()
    for load in (Model, lambda path: Engine(path, 64)):
        with pytest.raises(ModelError) as caught:
            load(cut)
        said.add(str(caught.value).rpartition("; ")[0])
    (line,) = said
    assert line.startswith(f"{cut}: llama.cpp refuses the file: error loading model: tensor ")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_refused_adapter_leaves_no_model_in_memory(gguf: Path, foreign_adapter: Path) -> None:
    for load in (Model, lambda *files: Engine(files[0], 64, files[1])):
        with pytest.raises(ModelError, match=rf"^{foreign_adapter}: llama\.cpp refuses the file: .*tensor"):
            load(gguf, foreign_adapter)
        assert not loaded(gguf)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_engine_is_freed_however_its_block_ends(gguf: Path) -> None:
    def interrupt(*_: object, **__: object) -> None:
        assert loaded(gguf)
        raise KeyboardInterrupt

    requests: dict[str, Any] = {"ends": frozenset[int](), "max_tokens": 2}
    with pytest.raises(KeyboardInterrupt), Engine(gguf, 64) as engine:
        engine.answer([[1, 2]], warm=False, progress=interrupt, name="", **requests)
    assert not loaded(gguf)
    with pytest.raises(KeyboardInterrupt), Model(gguf) as model, BatchEngine(model, clients=1, longest=64) as batch:
        batch.answer([[1, 2]], max_tokens=2, done=interrupt)
    assert not loaded(gguf)
    engine.close()  # a second time, which does nothing


def test_llama_cpp_says_nothing_on_stderr_and_its_errors_go_to_whoever_asks(
    gguf: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with Engine(gguf, 64), collected_errors() as outer, collected_errors() as inner:
        load_llama_cpp().llama_model_load_from_file(b"/nowhere.gguf", load_llama_cpp().llama_model_default_params())
    assert "nowhere" in outer[0]
    assert outer == inner
    assert capfd.readouterr() == ("", "")


def test_threads_that_wait_for_each_other_sleep() -> None:
    """Spinning, a decode step of two threads beside two busy loops per core takes hundreds of times as long."""
    code = "import pilocal; from pilocal.llamacpp.library import load_llama_cpp; load_llama_cpp()"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    environment |= {"OMP_DISPLAY_ENV": "TRUE", "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    if "OMP_WAIT_POLICY" not in done.stderr:
        pytest.skip("llama.cpp was built without OpenMP")
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in done.stderr
