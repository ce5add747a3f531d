"""Models whose layers are not alike: what config.json and a GGUF file may say of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

from pilocal.base.base import Base
from pilocal.errors import ExportError, InputError, ModelError
from pilocal.export.fused import export_fused
from pilocal.export.lossless import export_lossless
from pilocal.export.mlx_folder import write_mlx_folder
from pilocal.export.peft import write_peft
from pilocal.export.weights import BaseWeights
from pilocal.task import Lora, Training
from pilocal.training.memory import read_sizes
from pilocal.training.mlx.batches import make_batch
from pilocal.training.mlx.frozen_layers import first_adapted
from pilocal.training.torch_backend.trainer import TorchTrainer
from tests import test_export_peft as in_peft
from tests.same_ids import write_vocabulary
from tests.test_export import F16_TOLERANCE, kl, mlx_logits
from tests.test_train import assert_exact, random_rows, trainable
from tests.tiny import GEMMA4, GEMMA4_SHARED, make_adapter, make_base

SHARED: dict[str, Any] = {**GEMMA4_SHARED, "vocab_size_per_layer_input": 64}
ROPES: dict[str, Any] = GEMMA4["rope_parameters"]


def described(folder: Path, **changes: Any) -> Base:
    """Return a base of which there is only config.json."""
    config = {**GEMMA4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "vocab_size": 64, **changes}
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value != "absent"}))
    return Base(folder, str(folder), local=True, weights=False)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"num_kv_shared_layers": "absent"}, "num_kv_shared_layers must be a whole number from 0"),
        ({"hidden_size_per_layer_input": None}, "hidden_size_per_layer_input must be a whole number from 0"),
        (
            {**SHARED, "num_kv_shared_layers": 5},
            "before the layers that share, a sliding_attention and a full_attention",
        ),
        (
            {**SHARED, "num_kv_shared_layers": 2},
            "before the layers that share, a sliding_attention and a full_attention",
        ),
        ({**SHARED, "use_double_wide_mlp": None}, "use_double_wide_mlp and hidden_size_per_layer_input must be named"),
        ({**SHARED, "vocab_size_per_layer_input": 32}, "vocab_size_per_layer_input is not vocab_size; got 32"),
        ({"enable_moe_block": True}, "enable_moe_block: a mixture of experts is not supported"),
        ({"layer_types": "absent"}, "layer_types must name 4 layers, some of them sliding_attention and some full"),
        ({"layer_types": ["full_attention"] * 4}, "layer_types must name 4 layers"),
        ({"layer_types": [*GEMMA4["layer_types"][1:], "sliding_attention"]}, "the last layer must see all tokens"),
        ({"global_head_dim": "absent"}, "global_head_dim must be a whole number above 0; copy"),
        ({"global_head_dim": 2**40}, "global_head_dim is more than 65536"),
        ({"final_logit_softcapping": None}, "final_logit_softcapping must be a number above 0"),
        *(
            ({"rope_parameters": {**ROPES, kind: {**ROPES[kind], **changes}}}, f"{kind} is not rotated as in a rel")
            for kind, changes in (
                ("full_attention", {"rope_type": "default"}),
                ("full_attention", {"partial_rotary_factor": 0.2}),
                ("full_attention", {"factor": 2.0}),
                ("sliding_attention", {"rope_type": "linear", "factor": 8.0}),
                ("sliding_attention", {"partial_rotary_factor": 0.5}),
            )
        ),
    ],
)
def test_what_programs_compute_in_other_ways_is_refused(changes: dict[str, Any], line: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    described(tmp_path).check()
    described(tmp_path, **SHARED).check()
    with pytest.raises(ModelError, match=line) as refusal:
        described(tmp_path, **changes).check()
    assert "\n" not in str(refusal.value)


def test_what_transformers_writes_for_each_layer_is_read(tmp_path: Path) -> None:
    """With the released model's rope where none is named."""
    own = {str(layer): {"head_dim": 64, "num_key_value_heads": 1} for layer in (1, 3)}
    said = dict.fromkeys(("global_head_dim", "num_global_key_value_heads", "rope_parameters"), "absent")
    expected = dict(described(tmp_path).config)
    assert described(tmp_path, **said, per_layer_config=own).config == expected


def test_an_adapter_needs_a_layer_that_has_what_it_adapts(tmp_path: Path) -> None:
    config = described(tmp_path).config
    values = Lora(rank=2, linears=("self_attn.v_proj",))
    assert read_sizes(config, values).adapter == 2 * 2 * (96 + 2 * 32)
    with pytest.raises(InputError, match=r"none of them is in a layer that is adapted; got 'self_attn.v_proj'; take"):
        read_sizes(config, Lora(rank=2, layers=1, linears=values.linears))


def test_a_head_that_a_file_rotates_otherwise_is_refused(tiny_gemma4_base: Base, tmp_path: Path) -> None:
    gguf = export_lossless(tiny_gemma4_base, tmp_path).path
    (factors,) = [tensor for tensor in GGUFReader(gguf, "r+").tensors if tensor.name == "rope_freqs.weight"]
    factors.data[:] = np.where(np.arange(32) < 8, 1, 2)
    factors.data.flush()  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match=r"rope_freqs.weight does not say which part of a head is rotated"):
        Base.of_gguf(gguf).check()


def test_a_file_that_stretches_its_rope_is_refused(tiny_gemma4_base: Base, tmp_path: Path) -> None:
    gguf = with_another(export_lossless(tiny_gemma4_base, tmp_path).path, "", "", rope__scaling__factor=8.0)
    with pytest.raises(ModelError, match="rope scaling is not supported in this kind of model; got"):
        Base.of_gguf(gguf).check()


def test_a_file_is_the_same_model_again(tokenizers: dict[str, Path], tmp_path: Path) -> None:
    original = make_base(tmp_path / "base", tokenizers["gemma 4"], **GEMMA4)
    gguf = Base.of_gguf(export_fused(original, None, tmp_path / "model.gguf", "f16"))
    again = Base.of_gguf(export_fused(gguf, None, tmp_path / "again.gguf", "f16"))
    assert again.config == gguf.config
    first, second = (GGUFReader(base.path).fields for base in (gguf, again))
    for name in ("model", "tokens", "merges", "add_bos_token"):
        assert (key := f"tokenizer.ggml.{name}") in first
        assert first[key].contents() == second[key].contents(), name


@pytest.mark.parametrize("token", ["\n\n\n\n\n", "a\n"])
def test_a_token_that_llama_cpp_takes_apart_at_newlines_is_refused(
    token: str, tokenizers: dict[str, Path], tmp_path: Path
) -> None:
    """Of five newlines it makes the token of five, though no pair does."""
    folder = shutil.copytree(tokenizers["gemma 4"], tmp_path / "tokenizer")
    described = json.loads((folder / "tokenizer.json").read_text())
    described["model"]["vocab"][token] = 2040
    (folder / "tokenizer.json").write_text(json.dumps(described))
    with pytest.raises(ExportError, match=r"llama.cpp cuts text at newlines before it merges; got") as refusal:
        write_vocabulary(folder, 2048, tmp_path / "vocabulary.gguf")
    assert "\n" not in str(refusal.value)


def with_another(gguf: Path, part: str, new: str, **said: float) -> Path:
    """Write a file beside another one, in which a tensor stands again under another name, and `said` below "gemma4"."""
    reader, more = GGUFReader(gguf), gguf.with_name("more.gguf")
    writer = GGUFWriter(more, "gemma4")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            kinds = {"sub_type": field.types[1]} if len(field.types) > 1 else {}
            writer.add_key_value(field.name, field.contents(), field.types[0], **kinds)
    for key, value in said.items():
        writer.add_float32(f"gemma4.{key.replace('__', '.')}", value)
    for tensor in reader.tensors:
        for name in {tensor.name, tensor.name.replace(part, new)}:
            writer.add_tensor(name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return more


def test_weights_of_layers_that_share_are_left_out(tiny_gemma4_shared_base: Base, tmp_path: Path) -> None:
    """Hugging Face's files have them, and so has what llama.cpp makes of these."""
    folder = shutil.copytree(tiny_gemma4_shared_base.folder, tmp_path / "base")
    tensors: Any = mx.load(str(folder / "model.safetensors"))
    names = [name for name in tensors if ".layers.0.self_attn." in name and ".k_" in name]
    assert len(names) == 4  # three parts of a matrix, and a norm
    tensors |= {name.replace("layers.0", "layers.4"): tensors[name] for name in names}
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, {"format": "mlx"})
    base = Base.at(folder)
    assert dict(BaseWeights(base).shapes) == base.architecture.shapes(base.config)
    (row,) = random_rows(1, 1, 10)
    found, expected = (
        TorchTrainer(each, Lora(rank=2), Training(), None).logits(row) for each in (base, tiny_gemma4_shared_base)
    )
    assert np.array_equal(found, expected)
    gguf = export_lossless(base, tmp_path).path
    more = with_another(gguf, "blk.0.attn_k.", "blk.4.attn_k.")
    found, expected = (mlx_logits(Base.of_gguf(each), None) for each in (gguf, more))
    assert np.array_equal(found, expected)


def test_an_adapter_on_the_last_layers_alone_is_exact_where_these_share(tiny_gemma4_shared_base: Base) -> None:
    model = trainable(tiny_gemma4_shared_base, Lora(rank=4, layers=2))
    batch = make_batch(random_rows(3, 5, 20, 2, 16), 20)
    assert first_adapted(model) == 0  # nothing that is kept below would do
    assert_exact(model, batch, recompute=True)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # which peft still asks for
def test_mlx_lm_and_peft_compute_what_was_trained(tiny_gemma4_shared_base: Base, tmp_path: Path) -> None:
    base = tiny_gemma4_shared_base
    adapter = make_adapter(tmp_path / "adapter", base)
    write_mlx_folder(base, adapter, tmp_path / "mlx", in_peft.FACTS)
    expected = mlx_logits(base, adapter)
    assert kl(expected, mlx_logits(Base.at(tmp_path / "mlx"), None)).max() < F16_TOLERANCE
    write_peft(base, adapter, tmp_path / "peft", in_peft.FACTS)
    model = in_peft.peft_model(in_peft.float_copy(base, tmp_path / "float"), tmp_path / "peft")
    expected = in_peft.mlx_logits(base, adapter)
    assert np.abs(in_peft.peft_logits(model) - expected).max() < 1e-4 * expected.std()
