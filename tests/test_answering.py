"""Who answers the requests of mix: llama.cpp, for a base that is a GGUF file, where there is no accelerator."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pilocal.base.base import Base
from pilocal.evaluate.asking import Asker
from pilocal.export.fused import export_fused
from pilocal.flow.opening import open_task
from pilocal.flow.runner import run_steps, step_named
from pilocal.run_folder.rows import read_records
from tests.test_mix import mixing


@pytest.mark.parametrize("accelerated", [False, True])
def test_llama_cpp_answers_for_a_gguf_base_where_there_is_no_accelerator(
    accelerated: bool, tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf = export_fused(tiny_base, None, tmp_path / "model.gguf", "f16")
    folder = mixing(tmp_path / "task", replace(tiny_base, folder=gguf))
    monkeypatch.setattr("pilocal.flow.answering.has_accelerator", lambda context: accelerated)
    monkeypatch.delattr(Asker, "in_batches" if accelerated else "answers_of")
    with open_task(folder, folder / "schedule.toml", folder / "run") as context:
        run_steps(context, step_named("mix"))
        said = [each["messages"][-1]["content"] for each in read_records(context.run.mix, "train")]
    assert len(said) == 69
    assert any(said)
