from __future__ import annotations

import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pilocal.base.base import Base
from pilocal.base.load import load_base
from pilocal.errors import ExportError, RunError
from pilocal.export import mlx_folder
from pilocal.export.card import Facts
from pilocal.export.fuse import FusedWeights
from pilocal.export.mlx_folder import write_mlx_folder
from pilocal.prompt.tokens import end_tokens, prompt_tokens
from tests.test_export import kl, largest_file
from tests.tiny import make_adapter, make_base

TOLERANCES = {"float16": 1e-5, "bfloat16": 1e-3, "8bit": 2e-3}
"""KL divergence of the next-token distribution from the model that was trained, in nats: the largest over the tokens.

bfloat16 keeps 8 bits of a number as well."""

FACTS = Facts(task="smart-home", base="owner/model")


def tokens_T() -> list[int]:
    """Few: MLX's quantized product is slow on a CPU."""
    return [2040, *np.random.default_rng(0).integers(0, 2000, 24).tolist()]


def logits(model: Any) -> np.ndarray:
    """(T, V) float32."""
    import mlx.core as mx

    return np.array(model(mx.array([tokens_T()]))[0].astype(mx.float32))


def stock(folder: Path) -> tuple[Any, Any]:
    """What mlx-lm by itself loads."""
    from mlx_lm import load

    model, tokenizer, *_ = load(str(folder))
    return model, tokenizer


@pytest.mark.parametrize("form", ["float16", "bfloat16", "8bit"])
@pytest.mark.parametrize("which", ["tiny_tied_base", "tiny_float_base", "starter"])
def test_mlx_lm_computes_what_was_trained(
    which: str, form: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    base = request.getfixturevalue(which)
    adapter = make_adapter(tmp_path / "adapter", base)
    files = write_mlx_folder(base, adapter, tmp_path / "mlx", FACTS, form=form)
    assert sorted(files) == sorted((tmp_path / "mlx").iterdir())
    expected = logits(load_base(base, adapter))
    assert kl(expected, logits(stock(tmp_path / "mlx")[0])).max() < TOLERANCES[form]
    assert kl(expected, logits(load_base(base, None))).max() > 10 * TOLERANCES[form]


def test_dora_is_fused_as_well(tiny_base: Base, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", tiny_base, kind="dora")
    write_mlx_folder(tiny_base, adapter, tmp_path / "mlx", FACTS)
    assert kl(logits(load_base(tiny_base, adapter)), logits(stock(tmp_path / "mlx")[0])).max() < TOLERANCES["float16"]


def test_four_bits_would_lose_the_adapter(tiny_base: Base, tiny_adapter: Path, tmp_path: Path) -> None:
    """The reason why there is no such form: eight bits lose next to nothing of the same numbers."""
    from mlx_lm.utils import quantize_model

    write_mlx_folder(tiny_base, tiny_adapter, tmp_path / "mlx", FACTS)
    model, _ = stock(tmp_path / "mlx")
    config = json.loads((tmp_path / "mlx" / "config.json").read_text())
    rounded, _ = quantize_model(model, config, 64, 4)
    assert kl(logits(load_base(tiny_base, tiny_adapter)), logits(rounded)).mean() > 10 * TOLERANCES["8bit"]


def test_rope_settings_stand_where_mlx_lm_looks(starter: Base, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", starter.folder)
    config = dict(base.file)
    config["rope_parameters"] = config.pop("rope_scaling") | {"rope_theta": config.pop("rope_theta")}
    (base.folder / "config.json").write_text(json.dumps(config))
    base = Base.at(base.folder)
    assert not base.stock_reads_rope
    write_mlx_folder(base, None, tmp_path / "mlx", FACTS)
    assert Base.at(tmp_path / "mlx").stock_reads_rope
    assert kl(logits(load_base(base, None)), logits(stock(tmp_path / "mlx")[0])).max() < TOLERANCES["float16"]


def test_mlx_lm_says_what_the_trained_model_says(starter: Base, tmp_path: Path) -> None:
    from mlx_lm import generate

    adapter = make_adapter(tmp_path / "adapter", starter, scale=0.05)
    write_mlx_folder(starter, adapter, tmp_path / "mlx", FACTS)
    model, tokenizer = stock(tmp_path / "mlx")
    prompt = prompt_tokens([{"role": "user", "content": "turn on the kitchen light"}], starter.tokenizer)
    assert prompt == tokenizer.apply_chat_template(
        [{"role": "user", "content": "turn on the kitchen light"}], add_generation_prompt=True, return_dict=False
    )
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    expected: list[int] = []
    for token, _ in generate_step(mx.array(prompt), load_base(starter, adapter), max_tokens=16):
        if token in end_tokens(tokenizer):
            break
        expected.append(int(token))
    assert generate(model, tokenizer, prompt, max_tokens=16) == tokenizer.decode(expected)


def test_the_folder_is_a_base_again(tiny_tied_base: Base, tiny_adapter: Path, tmp_path: Path) -> None:
    write_mlx_folder(tiny_tied_base, tiny_adapter, tmp_path / "mlx", FACTS, form="8bit")
    Base.at(tmp_path / "mlx").check()
    assert (
        kl(logits(load_base(tiny_tied_base, tiny_adapter)), logits(load_base(Base.at(tmp_path / "mlx")))).max()
        < TOLERANCES["8bit"]
    )


def test_a_large_model_is_written_in_shards(
    tiny_base: Base, tiny_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mlx"
    whole = write_mlx_folder(tiny_base, tiny_adapter, folder, FACTS)
    expected = logits(stock(folder)[0])
    monkeypatch.setattr(mlx_folder, "SHARD_BYTES", 1_500_000)
    files = write_mlx_folder(tiny_base, tiny_adapter, folder, FACTS)
    shards = sorted(path.name for path in folder.glob("model*.safetensors"))
    assert shards == [f"model-{n:05d}-of-00003.safetensors" for n in (1, 2, 3)]
    assert folder / "model.safetensors" in whole and folder / "model.safetensors" not in files
    assert np.array_equal(logits(stock(folder)[0]), expected)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(shards)
    sizes = sum(path.stat().st_size for path in folder.glob("model*.safetensors"))
    assert 0 < sizes - index["metadata"]["total_size"] < 10_000  # the headers
    Base.at(folder).check()
    monkeypatch.undo()
    write_mlx_folder(tiny_base, tiny_adapter, folder, FACTS)
    assert sorted(folder.iterdir()) == sorted(whole)


def test_one_tensor_is_held_at_a_time(
    tiny_base: Base, tiny_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[Any]] = []
    read = FusedWeights.read

    class Tracked(np.ndarray):
        """Unlike its parent it can be referred to weakly."""

    def tracked(self: Any, name: str) -> Any:
        assert not [tensor for tensor in made if tensor() is not None], f"before {name}"
        tensor = read(self, name).view(Tracked)
        made.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(FusedWeights, "read", tracked)
    write_mlx_folder(tiny_base, tiny_adapter, tmp_path / "mlx", FACTS)
    assert len(made) == len(FusedWeights(tiny_base, None).shapes)


def test_a_weight_that_float16_cannot_hold_is_refused(tiny_base: Base, tiny_adapter: Path, tmp_path: Path) -> None:
    adapter = shutil.copytree(tiny_adapter, tmp_path / "adapter")
    settings = adapter / "adapter_config.json"
    settings.write_text(settings.read_text().replace('"scale": 2.0', '"scale": 1e9'))
    for form in ("float16", "8bit"):
        with pytest.raises(ExportError, match="does not fit float16"):
            write_mlx_folder(tiny_base, adapter, tmp_path / "mlx", FACTS, form=form)
    assert not list((tmp_path / "mlx").iterdir())


def test_an_unknown_form_is_refused_with_a_guess(tiny_base: Base, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="did you mean 8bit"):
        write_mlx_folder(tiny_base, None, tmp_path / "mlx", FACTS, form="8bits")
    assert not (tmp_path / "mlx").exists()


def test_a_full_disk_leaves_the_old_files(tiny_base: Base, tmp_path: Path) -> None:
    write_mlx_folder(tiny_base, None, tmp_path / "mlx", FACTS)
    before = {path: path.read_bytes() for path in (tmp_path / "mlx").iterdir()}
    with largest_file(1 << 20), pytest.raises(RunError, match="cannot write"):
        write_mlx_folder(tiny_base, None, tmp_path / "mlx", FACTS, form="bfloat16")
    assert {path: path.read_bytes() for path in (tmp_path / "mlx").iterdir()} == before
