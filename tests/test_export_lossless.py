from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize

from pilocal.base.base import Base
from pilocal.base.packed import Packed, unpack
from pilocal.errors import ExportError
from pilocal.export.adapter import read_updates
from pilocal.export.lora import export_adapter
from pilocal.export.lossless import LosslessBase, cached_base, export_lossless, link
from pilocal.export.numbers import interleave
from pilocal.export.q4_1 import q4_1_rows
from pilocal.export.ship import Files, ship
from pilocal.export.weights import BaseWeights
from tests.test_export import F16_TOLERANCE, LOGIT_TOLERANCE, kl, llama, mlx_logits, read_field, tokens_T
from tests.tiny import OTHERS, make_adapter, make_base


def tensors(gguf: Path) -> dict[str, tuple[str, np.ndarray]]:
    """Every tensor's type and its numbers in float32, by the gguf package's own reading."""
    return {
        tensor.name: (tensor.tensor_type.name, dequantize(tensor.data, tensor.tensor_type))
        for tensor in GGUFReader(gguf).tensors
    }


def expected(base: Base) -> dict[str, np.ndarray]:
    weights, config = BaseWeights(base), base.config
    architecture = base.architecture

    def in_gguf(name: str) -> np.ndarray:
        rows, heads = weights.read(name), architecture.permuted(name, config)
        return interleave(rows, heads) if heads else rows + np.float32(architecture.offset(name))

    return {architecture.tensor(name): in_gguf(name) for name in weights.shapes}


@pytest.fixture(scope="module")
def bfloat_base(tmp_path_factory: pytest.TempPathFactory, starter: Base) -> Base:
    """Bfloat16 scales, groups of 64, one matrix in 8 bits and one in floats."""
    exceptions = {"lm_head": {"bits": 8, "group_size": 64}, "model.layers.0.mlp.up_proj": False}
    return make_base(tmp_path_factory.mktemp("bases") / "bf", starter.folder, dtype="bfloat16", exceptions=exceptions)


@pytest.mark.parametrize("which", ["starter", "tiny_base", "tiny_tied_base", "tiny_float_base", "bfloat_base", *OTHERS])
def test_every_number_of_the_file_is_the_base_s(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    base = request.getfixturevalue(which)
    made = export_lossless(base, tmp_path)
    found, wanted = tensors(made.path), expected(base)
    added = {"llama3": {"rope_freqs.weight"}, "longrope": {"rope_factors_long.weight", "rope_factors_short.weight"}}
    added["gemma4_text"] = added["llama3"]
    kind = (base.config.get("rope_scaling") or {}).get("rope_type") or base.config["model_type"]
    assert set(found) == set(wanted) | added.get(kind, set())
    for name, tensor in wanted.items():
        kind, got = found[name]
        assert np.array_equal(got, tensor), name
        if tensor.ndim == 1 or "ffn_gate_inp" in name or (which, name) == ("bfloat_base", "output.weight"):
            assert kind == "F32"
        else:
            assert kind in ("Q4_1", "F16", "BF16")
    assert set(made.floats) == ({"lm_head.weight"} if which == "bfloat_base" else set())
    kinds = [kind for kind, tensor in found.values() if tensor.ndim > 1]
    assert kinds.count("F16" if which == "tiny_float_base" else "Q4_1") >= len(kinds) - 2
    assert made.path.name == ("base-f16.gguf" if which == "tiny_float_base" else "base-q4_1.gguf")


def test_a_scale_that_float16_cannot_hold_costs_one_tensor_its_four_bits(starter: Base, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", starter.folder, dtype="bfloat16")
    import mlx.core as mx

    path, name = base.folder / "model.safetensors", "model.layers.1.mlp.down_proj"
    loaded: Any = mx.load(str(path))
    stored: Any = dict(loaded)

    def exported(scale: float, word: int) -> tuple[LosslessBase, str]:
        scales, words = stored[f"{name}.scales"], stored[f"{name}.weight"]
        scales[0, 0] = mx.array(scale, dtype=mx.bfloat16)
        words[0, :4] = mx.array(word, dtype=mx.uint32)
        stored.update({f"{name}.scales": scales, f"{name}.weight": words})
        mx.save_safetensors(str(path), stored, {"format": "mlx"})
        made = export_lossless(base, tmp_path / "out")
        kind, got = tensors(made.path)[base.architecture.tensor(f"{name}.weight")]
        assert np.array_equal(got, BaseWeights(base).read(f"{name}.weight"))
        return made, kind

    assert exported(2.0**-20 * 1.5, 0x76543210) == (LosslessBase(tmp_path / "out" / "base-q4_1.gguf", {}), "Q4_1")
    made, kind = exported(2.0**-24 * 1.5, 0x76543210)
    assert kind == "F32"
    rows, width = base.config["hidden_size"], base.config["intermediate_size"]
    in_base = rows * width // 2 + 2 * 2 * rows * width // 32
    assert made.floats == {f"{name}.weight": {"type": "F32", "bytes": 4 * rows * width, "bytes_in_base": in_base}}
    assert exported(2.0**-24 * 1.5, 0)[1] == "Q4_1", "no number asks for this scale"


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_packed_rows_are_what_mlx_computes_with(group_size: int) -> None:
    rng = np.random.default_rng(0)
    rows, width = 1300, 4096
    words = rng.integers(0, 2**32, (rows, width // 8), dtype=np.uint32)
    scales, biases = (rng.normal(size=(rows, width // group_size)).astype(np.float16) for _ in range(2))
    packed = Packed(words, scales.astype(np.float32), biases.astype(np.float32), group_size)
    parts = [part.copy() for part in q4_1_rows(packed.rows, rows, width)]
    assert len(parts) > 1
    import mlx.core as mx

    with_mlx = mx.dequantize(
        mx.array(words), mx.array(packed.scales), mx.array(packed.biases), group_size=group_size, bits=4
    )
    assert np.array_equal(dequantize(np.concatenate(parts), GGMLQuantizationType.Q4_1), np.array(with_mlx))


def test_a_number_that_changed_on_the_way_is_noticed() -> None:
    words = np.zeros((2, 8), dtype=np.uint32)
    scales = np.full((2, 2), 1 + 2**-20, dtype=np.float32)
    with pytest.raises(ValueError, match="not what it was"):
        list(q4_1_rows(Packed(words, scales, scales, 32).rows, 2, 64))


def test_a_base_is_made_once_for_all_runs_and_takes_no_room_in_them(
    tiny_base: Base, tiny_adapter: Path, tmp_path: Path
) -> None:
    first, second = (ship(tiny_base, tiny_adapter, tmp_path / run, "lossless", name="tiny") for run in ("a", "b"))
    kept = cached_base(tiny_base).path
    assert first.base.samefile(kept)
    assert second.base.samefile(kept)
    assert first.size == kept.stat().st_size + (tmp_path / "a" / "adapter.gguf").stat().st_size
    kept.unlink()
    assert first.base.is_file()
    kept.write_bytes(first.base.read_bytes()[:5000])
    assert cached_base(tiny_base).path.read_bytes() == first.base.read_bytes()


def reference_and_served(base: Base, adapter: Path, files: Files) -> tuple[Any, Any]:
    """Return MLX's logits with the adapter and llama.cpp's, which must lie far nearer than those without it."""
    reference, bare = mlx_logits(base, adapter), mlx_logits(base, None)
    with llama(files.base, lora_path=str(files.adapter), logits_all=True) as model:
        model.eval(tokens_T())
        got = model.scores[: len(tokens_T())].copy()
    assert kl(reference, bare).mean() > 0.05
    assert kl(reference, got).mean() < kl(reference, bare).mean() / 50
    return reference, got


@pytest.mark.parametrize("which", ["tiny_base", "tiny_tied_base", "tiny_float_base", "starter", *OTHERS])
def test_base_and_adapter_compute_what_mlx_computes(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    base = request.getfixturevalue(which)
    adapter = make_adapter(tmp_path / "adapter", base)
    files = ship(base, adapter, tmp_path / "out", "lossless", name="tiny")
    reference, got = reference_and_served(base, adapter, files)
    if which == "tiny_float_base":  # in the others llama.cpp rounds activations to 8 bits beside 4-bit weights
        assert np.abs(got - reference).max() < LOGIT_TOLERANCE * reference.std()
        assert kl(reference, got).mean() < F16_TOLERANCE


def test_the_adapter_s_file_names_its_base(tiny_base: Base, tiny_adapter: Path, tmp_path: Path) -> None:
    gguf = export_adapter(tiny_base, tiny_adapter, tmp_path / "adapter.gguf", name="tiny")
    assert read_field(gguf, "pilocal.base.sha256") == tiny_base.sha256
    assert read_field(gguf, "general.type") == "adapter"
    assert read_field(gguf, "adapter.lora.alpha") == 2.0 * 4
    assert len(GGUFReader(gguf).tensors) == 2 * len(read_updates(tiny_adapter).by_module)
    assert gguf.stat().st_size < (tiny_base.folder / "model.safetensors").stat().st_size / 4


def test_an_adapter_that_gguf_cannot_hold_is_refused(starter: Base, tiny_base: Base, tmp_path: Path) -> None:
    out = tmp_path / "adapter.gguf"
    dora = make_adapter(tmp_path / "dora", tiny_base, kind="dora")
    with pytest.raises(ExportError, match=r"no magnitudes; .* kind = .lora."):
        export_adapter(tiny_base, dora, out, name="tiny")
    plain = make_adapter(tmp_path / "plain", tiny_base)
    with pytest.raises(ExportError, match="does not fit"):
        export_adapter(starter, plain, out, name="tiny")
    assert not out.exists()


def test_weights_that_are_cut_short_are_noticed(tiny_base: Base, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_base.folder, tmp_path / "base")
    path = base / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ExportError, match="cut short"):
        export_lossless(Base.at(base), tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.gguf"))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_packed_weights_are_unpacked_to_mlx_s_own_numbers(bits: int, dtype: str) -> None:
    import mlx.core as mx

    packed = mx.quantize(mx.random.normal((24, 256)).astype(getattr(mx, dtype)), group_size=64, bits=bits)
    words, scales, biases = (packed[0], *(part.astype(mx.float32) for part in packed[1:]))
    expected = np.array(mx.dequantize(words, scales, biases, group_size=64, bits=bits))
    assert np.array_equal(unpack(np.array(words), np.array(scales), np.array(biases), 64, bits), expected)


def test_a_file_that_is_linked_already_is_linked_again_without_a_trace(tmp_path: Path) -> None:
    (tmp_path / "base.gguf").write_bytes(b"GGUF")
    for _ in range(2):
        assert link(tmp_path / "base.gguf", tmp_path / "export").read_bytes() == b"GGUF"
    assert [path.name for path in (tmp_path / "export").iterdir()] == ["base.gguf"]
