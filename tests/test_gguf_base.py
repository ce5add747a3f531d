"""A GGUF file as base: what MLX, PyTorch and llama.cpp compute of it, where it is found, and what is refused."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGUFEndian, GGUFReader, GGUFWriter
from gguf.quants import dequantize
from mlx import nn

from pilocal.base.base import Base, find_base
from pilocal.base.load import load_base
from pilocal.errors import ModelError, PilocalError
from pilocal.export.finite import check_finite
from pilocal.export.fused import export_fused
from pilocal.export.gguf import check_exportable
from pilocal.export.weights import BaseWeights
from pilocal.run_folder.hashes import sha256_file
from pilocal.run_folder.tensors import save_tensors
from tests.gguf_models import write_model
from tests.test_export import F16_TOLERANCE, kl, llama_logits, mlx_logits
from tests.tiny import make_base

KINDS = (
    "tiny_base",
    "tiny_tied_base",
    "tiny_biased_base",
    "tiny_granite_base",
    "tiny_smollm3_base",
    "tiny_qwen2_base",
    "tiny_qwen3_base",
    "tiny_gemma3_base",
    "tiny_qwen3_moe_base",
    "tiny_ministral3_base",
    "tiny_gemma4_base",
    "tiny_gemma4_shared_base",
    "linear",
)
"""Llamas with Llama 3's scaling, a tied embedding, biases and linear scaling; Qwens with biases, norms, and experts."""

ROUNDED = 0.02
"""KL divergence in nats that llama.cpp's rounding of activations to 8 bits may make; another model is far beyond."""


@pytest.fixture(scope="module")
def linear(starter: Base, tmp_path_factory: pytest.TempPathFactory) -> Base:
    scaling: dict[str, Any] = {"rope_scaling": {"type": "linear", "factor": 4.0}}
    return make_base(tmp_path_factory.mktemp("bases") / "linear", starter.folder, **scaling)


def folder_of(gguf: Path, original: Base, folder: Path) -> Base:
    """A folder with the original's config.json and the file's numbers as floats, taken from it by other means."""
    folder.mkdir()
    config = {key: value for key, value in original.file.items() if not key.startswith("quantization")}
    (folder / "config.json").write_text(json.dumps(config))
    sources = {original.architecture.tensor(name): name for name in original.architecture.shapes(config)}
    tensors = {}
    for tensor in GGUFReader(gguf).tensors:
        if tensor.name not in sources:
            continue
        source = sources[tensor.name]
        values = dequantize(np.array(tensor.data), tensor.tensor_type)
        if heads := original.architecture.permuted(source, config):
            order = np.arange(len(values)).reshape(heads, -1, 2)
            values = values[np.concatenate([order[..., 0], order[..., 1]], axis=1).reshape(-1)]
        tensors[source] = values - np.float32(original.architecture.offset(source))
    save_tensors(folder / "model.safetensors", tensors, {"format": "mlx"})
    return Base.at(folder)


@pytest.mark.parametrize("quant", ["f16", "q4_k_m"])
@pytest.mark.parametrize("kind", KINDS)
def test_all_three_compute_the_same(kind: str, quant: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    from pilocal.task import Lora, Training
    from pilocal.training.torch_backend.trainer import TorchTrainer
    from tests.test_train import random_rows

    original: Base = request.getfixturevalue(kind)
    base = Base.of_gguf(export_fused(original, None, tmp_path / "model.gguf", quant))
    base.check()
    check_exportable(base)
    check_finite(base)
    known = {name: value for name, value in original.config.items() if name in base.config}
    assert {name: base.config[name] for name in known if name != "rope_scaling"} == {
        name: value for name, value in known.items() if name != "rope_scaling"
    }
    expected = mlx_logits(base, None)
    assert np.array_equal(expected, mlx_logits(folder_of(base.path, original, tmp_path / "folder"), None))
    limit = F16_TOLERANCE if quant == "f16" else ROUNDED
    assert kl(expected, llama_logits(base.path)).mean() < limit
    assert expected.std() > 0.5
    (row,) = random_rows(1, 1, 10)
    trainer = TorchTrainer(base, Lora(rank=2), Training(), None)
    in_mlx = np.array(load_base(base)(mx.array([row.tokens]))[0])
    assert np.abs(trainer.logits(row) - in_mlx).max() < 1e-4 * in_mlx.std()


@pytest.mark.parametrize("quant", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k_m", "q2_k", "bf16"])
def test_what_stays_packed_is_the_same_model(
    quant: str, tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Base.of_gguf(export_fused(tiny_base, None, tmp_path / "model.gguf", quant))
    tokens = mx.array([[5, 7, 11, 13, 1000, 3]])
    plain = load_base(base)
    expected = np.array(plain(tokens)[0])
    monkeypatch.setattr("pilocal.base.load.keeps_packed", lambda: True)
    model = load_base(base)
    weights = base.gguf_weights
    bits = {name.removesuffix(".weight"): weights.packed_bits(name) for name in weights.shapes}
    kinds: Any = (vars(nn)["QuantizedLinear"], vars(nn)["QuantizedEmbedding"])
    found = {name: module.bits for name, module in model.named_modules() if isinstance(module, kinds)}
    assert found == {name: count for name, count in bits.items() if count}
    assert bool(found) == (quant != "bf16")
    assert np.abs(np.array(model(tokens)[0].astype(mx.float32)) - expected).max() < 1e-3 * expected.std()


def test_memory_says_what_is_not_packed(tiny_base: Base, tmp_path: Path) -> None:
    from mlx.utils import tree_flatten

    from pilocal.base.gguf_memory import held_as_floats, held_packed

    base = Base.of_gguf(export_fused(tiny_base, None, tmp_path / "model.gguf", "q6_k"))
    floats = sum(value.nbytes for value in dict(tree_flatten(load_base(base).parameters())).values())
    assert held_as_floats(base.gguf_weights).bytes == floats
    held = held_packed(base.gguf_weights)
    assert held.bytes < floats
    assert held.types == ("Q6_K",)
    assert f"{held.floats} of {held.matrices} matrices (Q6_K) are held as floats" in str(held)


@pytest.mark.parametrize("quant", ["q4_k_m", "f16"])
def test_memory_is_what_the_packed_model_takes(
    quant: str, tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx.utils import tree_flatten

    from pilocal.base.gguf_memory import held_packed

    base = Base.of_gguf(export_fused(tiny_base, None, tmp_path / "model.gguf", quant))
    monkeypatch.setattr("pilocal.base.load.keeps_packed", lambda: True)
    taken = sum(value.nbytes for value in dict(tree_flatten(load_base(base).parameters())).values())
    assert held_packed(base.gguf_weights).bytes == taken


def test_an_export_reads_the_same_numbers(tiny_base: Base, tmp_path: Path) -> None:
    gguf = export_fused(tiny_base, None, tmp_path / "model.gguf", "f16")
    original, found = BaseWeights(tiny_base), BaseWeights(Base.of_gguf(gguf))
    assert found.shapes == original.shapes
    for name in found.shapes:
        expected = original.read(name)
        expected = expected.astype(np.float16).astype(np.float32) if expected.ndim > 1 else expected
        assert np.array_equal(found.read(name), expected), name


def test_both_backends_say_how_the_weights_are_held(tiny_base: Base, tmp_path: Path) -> None:
    from pilocal.progress import silent
    from pilocal.task import Lora, Training
    from pilocal.training.mlx.setup import Setup as MlxSetup
    from pilocal.training.row_order import StagePlan
    from pilocal.training.torch_backend.setup import Setup as TorchSetup
    from tests.test_train import random_rows

    base = Base.of_gguf(export_fused(tiny_base, None, tmp_path / "model.gguf", "q4_k_m"))
    settings: dict[str, Any] = {"lora": Lora(rank=2), "training": Training()}
    plans = [StagePlan(0, random_rows(0, 8), (), 1, tmp_path)]
    for made in (MlxSetup, partial(TorchSetup, device="cpu")):
        forecast = made(base=base, **settings).plan(plans, probe=False, progress=silent)
        assert "16 of 16 matrices (Q4_K, Q5_0, Q6_K, Q8_0) are held as floats" in str(forecast.weights)
        assert made(base=tiny_base, **settings).plan(plans, probe=False, progress=silent).weights is None


def test_an_adapter_begins_as_on_the_same_base_in_a_folder(tiny_base: Base, tmp_path: Path) -> None:
    from pilocal.task import Lora
    from pilocal.training.mlx.adapter import initial_adapter

    base = Base.of_gguf(export_fused(tiny_base, None, tmp_path / "model.gguf", "q4_0"))
    found, expected = (initial_adapter(each, Lora(rank=2), seed=3) for each in (base, tiny_base))
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], value) for name, value in expected.items())


def split(gguf: Path, folder: Path, sizes: tuple[int, ...], **said: int) -> list[Path]:
    """Cut a file into parts of some numbers of tensors, as llama-gguf-split does; metadata are in the first."""
    reader = GGUFReader(gguf)
    folder.mkdir()
    paths, start = [], 0
    for number, size in enumerate(sizes):
        path = folder / f"model-{number + 1:05d}-of-{len(sizes):05d}.gguf"
        writer = GGUFWriter(path, "llama")
        for field in reader.fields.values() if number == 0 else ():
            if not field.name.startswith("GGUF.") and field.name != "general.architecture":
                kinds = {"sub_type": field.types[1]} if len(field.types) > 1 else {}
                writer.add_key_value(field.name, field.contents(), field.types[0], **kinds)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", len(sizes))
        writer.add_int32("split.tensors.count", said.get("tensors", sum(sizes)))
        for tensor in reader.tensors[start : start + size]:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        start += size
        if number:  # as llama-gguf-split writes it
            del writer.kv_data[0]["general.architecture"]
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        paths.append(path)
    return paths


def test_parts_are_one_model_by_the_first(tmp_path: Path) -> None:
    write_model(tmp_path / "model.gguf", "Q4_K")
    whole = Base.of_gguf(tmp_path / "model.gguf")
    first, second, third = split(tmp_path / "model.gguf", tmp_path / "parts", (0, 5, 7))
    base = find_base("parts/model-00001-of-00003.gguf", tmp_path)
    assert base.config == whole.config
    assert base.weight_files == (first, second, third)
    for name in whole.gguf_weights.shapes:
        assert np.array_equal(base.gguf_weights.read(name), whole.gguf_weights.read(name))
    assert base.sha256 not in (whole.sha256, sha256_file(first))
    with pytest.raises(ModelError, match=r"00002-of-00003.gguf: part 2 of 3; give the first, model-00001-of"):
        find_base(str(second), tmp_path)
    first.with_name("renamed.gguf").write_bytes(first.read_bytes())
    with pytest.raises(ModelError, match="part 1 of 3, and the name does not say so; give it its name back"):
        find_base(str(first.with_name("renamed.gguf")), tmp_path)
    third.unlink()
    with pytest.raises(ModelError, match=r"3 parts, of which some are missing; got \['model-00003-of-00003.gguf'\]"):
        find_base(str(first), tmp_path)


def test_parts_with_too_few_tensors_are_refused(tmp_path: Path) -> None:
    write_model(tmp_path / "model.gguf")
    first, _ = split(tmp_path / "model.gguf", tmp_path / "parts", (5, 7), tensors=13)
    with pytest.raises(ModelError, match="its parts should hold 13 tensors; got 12"):
        find_base(str(first), tmp_path)


def refused(path: Path) -> str:
    """What is said of a file; one line without a traceback."""
    with pytest.raises(PilocalError) as caught:
        find_base(str(path), path.parent)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"endian": GGUFEndian.BIG}, "the GGUF file is for big-endian machines"),
        ({"metadata": {"general.type": "adapter"}}, "an adapter, not a base"),
        ({"metadata": {"general.type": "mmproj"}}, "not a language model; got 'mmproj'"),
        ({"architecture": "gemma3n"}, "this architecture is not supported; got 'gemma3n'; take a base of one of these"),
        (
            {"architecture": "phi3"},
            "llama.cpp picks the rope factors of this kind by the room of its context, not by a",
        ),
        ({"kind": "TQ1_0"}, "token_embd.weight is of a type that cannot be read; got 'TQ1_0'"),
        ({"kind": "MXFP4"}, "token_embd.weight is of a type that cannot be read; got 'MXFP4'"),
        ({"metadata": {"expert_count": 8}}, "llama.expert_count is not supported; got 8"),
        ({"metadata": {"attention.key_length": 32}}, "blk.0.attn_q.weight is not what the metadata says, 128 x 256"),
        ({"metadata": {"rope.dimension_count": 32}}, "llama.rope.dimension_count is not the dimension of a head, 64"),
        ({"metadata": {"rope.scaling.type": "longrope"}}, "this kind of rope scaling is not supported; got 'longrope'"),
        ({"metadata": {"rope.scaling.attn_factor": 1.5}}, "llama.rope.scaling.attn_factor is not supported; got 1.5"),
        ({"without": ["blk.0.ffn_up.weight"]}, "blk.0.ffn_up.weight is not what the metadata says, 512 x 256; got"),
        ({"without": ["token_embd.weight"]}, "no token_embd.weight: the file is damaged"),
        ({"architecture": "qwen3", "without": ["blk.0.attn_q_norm.weight"]}, "blk.0.attn_q_norm.weight is not what"),
    ],
)
def test_what_cannot_be_a_base_is_one_line(
    options: dict[str, Any], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if options.get("kind"):
        monkeypatch.setattr("tests.gguf_models.HALVES", {"TQ1_0": (52,), "MXFP4": ()})
    write_model(tmp_path / "model.gguf", **options)
    assert refused(tmp_path / "model.gguf").startswith(line)


def test_a_vocabulary_and_layers_that_differ_are_one_line(tmp_path: Path) -> None:
    from pilocal.base.architectures import ARCHITECTURES
    from tests.gguf_models import SIZES

    path, llama = tmp_path / "model.gguf", ARCHITECTURES["llama"]
    write_model(path, without=[llama.tensor(name) for name in llama.shapes(SIZES)])
    assert refused(path).startswith("a vocabulary without weights")
    writer = GGUFWriter(path, "llama")
    writer.add_array("llama.attention.head_count", [4, 2])
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    for key in ("embedding_length", "block_count", "feed_forward_length"):
        writer.add_uint32(f"llama.{key}", 4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert refused(path).startswith("its layers are not alike: llama.attention.head_count; got [4, 2]")


@pytest.mark.parametrize("size", [0, 3, 20, 200, 900, -1, -100_000])
def test_a_file_that_ends_early_is_one_line_wherever_it_ends(size: int, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_model(path)
    data = path.read_bytes()
    path.write_bytes(data[:size])
    line = refused(path)
    assert "cut off" in line or (size == 3 and "not a GGUF file" in line)
    path.write_bytes(b"PK\x03\x04" + data[4:])
    assert refused(path).startswith("not a GGUF file; got b'PK")


def test_every_damaged_byte_of_a_header_is_one_line_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_model(path)
    data, rng = path.read_bytes(), np.random.default_rng(0)
    end = data.find(b"output.weight") + 60
    for place in rng.choice(end, 300, replace=False).tolist():
        path.write_bytes(data[:place] + bytes([data[place] ^ int(rng.integers(1, 256))]) + data[place + 1 :])
        try:
            find_base(str(path), tmp_path)
        except PilocalError as error:
            assert "\n" not in str(error)


def test_a_mistral_with_a_window_ends_there(tmp_path: Path) -> None:
    write_model(tmp_path / "model.gguf", metadata={"attention.sliding_window": 64})
    base = find_base("model.gguf", tmp_path)
    assert (base.config["model_type"], base.context) == ("mistral", 64)
