"""What is served is measured against what was trained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pilocal.base.base import Base
from pilocal.base.load import load_base
from pilocal.errors import ExportError
from pilocal.export.gate import Gate, candidates, open_gate, through
from pilocal.export.ship import Files, ship
from pilocal.prompt.tokens import Row
from tests.test_export import kl
from tests.tiny import make_adapter


def rows() -> list[Row]:
    rng = np.random.default_rng(1)
    return [Row((2040, *rng.integers(0, 2000, 20 + i).tolist()), 12) for i in range(6)]


@pytest.fixture(scope="module")
def slight(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that changes the model less than rounding it to four bits does."""
    return make_adapter(tmp_path_factory.mktemp("adapter"), tiny_base, scale=0.4)


@pytest.fixture(scope="module")
def gate(tiny_base: Base, slight: Path) -> Iterator[Gate]:
    with open_gate(tiny_base, slight, rows()) as gate:
        yield gate


def shipped(base: Base, adapter: Path, folder: Path, quant: str) -> Files:
    return ship(base, adapter, folder, quant, name="tiny")


def test_the_distance_is_the_mean_divergence_over_completion_tokens(
    gate: Gate, tiny_base: Base, slight: Path, tmp_path: Path
) -> None:
    import mlx.core as mx

    trained, bare = load_base(tiny_base, slight), load_base(tiny_base)
    found = []
    for row in rows():
        tokens = mx.array([row.tokens[:-1]])
        found += kl(*(np.array(model(tokens)[0, row.offset - 1 :]) for model in (trained, bare))).tolist()
    loss = gate.measure(shipped(tiny_base, slight, tmp_path, "f16"))
    assert loss.tokens == len(found) == sum(len(row.tokens) - 12 for row in rows())
    assert loss.kl_without == pytest.approx(np.mean(found), rel=1e-4)
    assert 0 <= loss.kl < 1e-3 * loss.kl_without


def test_four_bits_lose_the_adapter_that_the_lossless_form_keeps(
    gate: Gate, tiny_base: Base, slight: Path, tmp_path: Path
) -> None:
    def write(quant: str) -> Files:
        return shipped(tiny_base, slight, tmp_path, quant)

    rough = gate.measure(write("q4_k_m"))
    assert rough.kl > 0.5 * rough.kl_without
    with pytest.raises(ExportError, match=r"export q4_k_m: refused: .* nats per token .* --accept-loss"):
        through(gate, ["q4_k_m"], write, accept_loss=False)
    assert list(tmp_path.glob("*.gguf")) == []
    files, _ = through(gate, ["q4_k_m"], write, accept_loss=True)
    assert files.fused == tmp_path / "shipped-q4_k_m.gguf"
    assert files.fused.is_file()
    files, loss = through(gate, ["lossless"], write, accept_loss=False)
    assert files.fused is None
    assert loss.passes


def test_auto_tries_the_forms_by_their_size(tiny_base: Base, slight: Path, tmp_path: Path) -> None:
    order = candidates(tiny_base, slight)
    assert set(order) == {"q4_k_m", "q5_k_m", "q6_k", "q8_0", "f16", "lossless"}
    sizes = [shipped(tiny_base, slight, tmp_path / quant, quant).size for quant in order]
    assert sizes == sorted(sizes)


def test_the_first_form_that_passes_is_kept_and_those_before_it_are_gone(
    gate: Gate, tiny_base: Base, slight: Path, tmp_path: Path
) -> None:
    def write(quant: str) -> Files:
        tried.append(shipped(tiny_base, slight, tmp_path / quant, quant))
        return tried[-1]

    tried: list[Files] = []
    files, loss = through(gate, ["q4_k_m", "f16", "q8_0"], write, accept_loss=False)
    assert [each.quant for each in tried] == ["q4_k_m", "f16"]
    assert files.quant == "f16"
    assert loss.passes
    assert [path for each in tried for path in each.own if path.exists()] == files.own


def test_a_loss_says_what_metrics_json_says(gate: Gate, tiny_base: Base, slight: Path, tmp_path: Path) -> None:
    facts = gate.measure(shipped(tiny_base, slight, tmp_path, "lossless")).facts()
    assert json.loads(json.dumps(facts)) == facts
    assert set(facts) == {"kl", "kl_without", "tokens", "passes"}
