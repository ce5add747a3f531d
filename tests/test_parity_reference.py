"""A recorded reference travels: it is read as it was written, replayed without MLX, and refused if it does not fit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pilocal.parity import report
from pilocal.parity.reference import load_reference, save_reference
from pilocal.parity.replay import play
from pilocal.parity.settings import Settings
from pilocal.training.mlx.trainer import MlxTrainer
from tests.parity.record import FOLDER, make_replay
from tests.test_parity import NEAR, TOLERANCE, command


def test_the_code_still_makes_the_reference() -> None:
    replay, recorded, content = load_reference(FOLDER)
    again = make_replay()
    assert replay == again
    assert sum(path.stat().st_size for path in FOLDER.parent.rglob("*") if path.is_file()) < 1e6
    mlx = MlxTrainer(again.base, again.lora, again.training)
    for name, value in mlx.adapter().items():
        np.testing.assert_array_equal(value, recorded.starts[0][name])
    result = report.traces_report(
        again, recorded, play(mlx, again, starts=recorded.starts), ("recorded", "mlx"), Settings()
    )
    assert result["exceeded"] == []
    assert result["adapter_distance"] < 1e-3
    assert content["made_by"]["mlx"]


WITHOUT_MLX = """
import sys
sys.modules["mlx"] = sys.modules["mlx_lm"] = None  # an import of them raises
import pilocal.cli
pilocal.cli.main()
"""


def test_the_reference_is_replayed_where_mlx_cannot_be_imported() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_MLX, "parity", "--reference", FOLDER, "--json"],
        check=False,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    said = [line for line in done.stderr.splitlines() if not line.startswith("parity: torch: ")]  # its progress
    assert (done.returncode, said) == (0, [])
    result = json.loads(done.stdout)
    assert result["backends"] == ["recorded", "torch"]
    assert [stage["steps"] for stage in result["stages"]] == [3, 3, 3]
    assert max(step["loss"]["relative"] for step in result["steps"]) <= NEAR
    assert max(stage["gradients"]["relative"] for stage in result["stages"]) <= TOLERANCE


def test_a_reference_is_read_as_it_was_written(tmp_path: Path) -> None:
    replay, trace, _ = load_reference(FOLDER)
    save_reference(tmp_path, replay, trace, model="starter", made_by={})
    same, kept, content = load_reference(tmp_path)
    assert (same, content["made_by"]) == (replay, {})
    assert (kept.losses, kept.norms) == (trace.losses, trace.norms)
    for mine, other in zip(kept.gradients, trace.gradients, strict=True):
        assert all(np.array_equal(mine[name], other[name]) for name in other)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            lambda content: content["rows"][0]["tokens"].append(2048),
            "a token beyond the base's vocabulary of 2048; got 2048",
        ),
        (lambda content: content.update(tokenizer_sha256="0"), "the rows were made with another tokenizer"),
        (lambda content: content.update(base_sha256="0"), "the base is not the reference's"),
        (lambda content: content.update(format=0), "only format 1 is known; got 0"),
        (lambda content: content.pop("losses"), "not a whole reference: 'losses'"),
        (lambda content: content["losses"].pop(), "not a whole reference: steps or weights are missing"),
        (lambda content: content["lora"].update(dropout=0.1), "random dropout cannot be replayed"),
        (lambda content: content["training"].update(later=1), "not a whole reference"),
        (lambda content: content["training"].update(seed="0"), "not a whole reference: seed is '0'"),
        (lambda content: content["rows"][0]["tokens"].append([]), "not a whole reference: tokens is"),
        (lambda content: content["rows"][0].update(offset=9999), "not a whole reference: offset is 9999 in a row of"),
        (lambda content: content["stages"][0]["steps"][0]["rows"].append(-1), "not a whole reference: rows is"),
        (lambda content: content["stages"][0]["steps"][0].update(rate="x"), "not a whole reference: rate is 'x'"),
    ],
)
def test_a_reference_that_does_not_fit_is_refused_in_one_line(
    change: Any, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(FOLDER, tmp_path / "reference")
    content = json.loads((folder / "reference.json").read_text())
    change(content)
    (folder / "reference.json").write_text(json.dumps(content))
    status, out, err = command(capsys, "--reference", folder)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert line in err
