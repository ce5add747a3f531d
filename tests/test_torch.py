"""PyTorch computes what MLX computes: weights bit for bit, logits, gradients and twenty steps' losses."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pilocal.base.base import Base
from pilocal.base.load import load_base
from pilocal.errors import InputError, ModelError
from pilocal.prompt.tokens import Row
from pilocal.run_folder.adapter import read_start
from pilocal.task import Lora, Training
from pilocal.training.learning_rate import learning_rate
from pilocal.training.row_order import RowOrder
from pilocal.training.torch_backend.adapter import draw, from_peft, save_peft, to_peft
from pilocal.training.torch_backend.trainer import TorchTrainer
from tests import tiny
from tests.test_train import random_rows, trainable
from tests.tiny import OTHERS, make_base

BASES = ["starter", "tiny_base", "tiny_tied_base", "tiny_float_base"]
TOLERANCE = 1e-4
LORA = Lora(rank=4)


def mlx_start(model: Any) -> dict[str, Any]:
    """The adapter of an MLX model as it stands, as NumPy arrays."""
    from pilocal.training.mlx.adapter import adapter_weights

    return {name: np.array(value) for name, value in adapter_weights(model).items()}


def distance(a: Any, b: Any) -> float:
    """The size of what sets two arrays apart, beside their own."""
    return float(np.linalg.norm(a - b)) / max(float(np.linalg.norm(a)), float(np.linalg.norm(b)), 1e-30)


@pytest.mark.parametrize("fixture", [*BASES, *OTHERS])
def test_the_logits_are_mlxs_with_and_without_an_adapter(fixture: str, request: pytest.FixtureRequest) -> None:
    import mlx.core as mx

    base = request.getfixturevalue(fixture)
    rng = np.random.default_rng(0)
    row = Row(tuple(rng.integers(1, 1500, 200).tolist()), 190)
    tokens = mx.array([row.tokens])
    plain = np.array(load_base(base, None, "float32")(tokens)[0])
    trainer = TorchTrainer(base, LORA, Training(), mlx_start(trainable(base)))
    expected = np.array(trainable(base, LORA, "float32")(tokens)[0])
    assert np.abs(expected - plain).max() > 0.1
    assert np.abs(trainer.logits(row) - expected).max() < TOLERANCE
    trainer.set_adapter({name: 0 * value for name, value in trainer.adapter().items()})
    assert np.abs(trainer.logits(row) - plain).max() < TOLERANCE


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {"rope_scaling": None, "rope_theta": 5e5}),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}}),
        ("llama", {"rope_theta": None, "rope_scaling": None, "num_key_value_heads": None}),
        ("qwen2", {"rope_theta": None, "rope_scaling": None, "tie_word_embeddings": None}),
        ("mistral", {"rope_theta": None, "rope_scaling": None, "num_key_value_heads": 8, "sliding_window": None}),
        ("llama", {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4096}),
    ],
)
@pytest.mark.parametrize("as_transformers_5", [False, True])
def test_settings_that_are_left_out_or_written_anew_mean_what_they_mean_to_mlx(
    kind: str,
    changes: dict[str, Any],
    as_transformers_5: bool,
    starter: Base,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import mlx.core as mx

    monkeypatch.setattr(tiny, "CONFIG", {k: v for k, v in tiny.CONFIG.items() if changes.get(k, v) is not None})
    given = {name: value for name, value in changes.items() if value is not None}
    base = make_base(tmp_path / "base", starter.folder, model_type=kind, **given)
    config = dict(base.file)
    if as_transformers_5 and "rope_theta" in config:
        scaling = config.pop("rope_scaling", None) or {"rope_type": "default"}
        scaling = {"rope_type": scaling.get("type", scaling.get("rope_type")), **scaling}
        config["rope_parameters"] = {**scaling, "rope_theta": config.pop("rope_theta")}
        (base.folder / "config.json").write_text(json.dumps(config))
        base = Base.at(base.folder)
    row = Row(tuple(np.random.default_rng(0).integers(1, 1500, 100).tolist()), 90)
    trainer = TorchTrainer(base, LORA, Training(), None)
    trainer.set_adapter(draw(trainer.shapes, 0))
    expected = np.array(load_base(base, None, "float32")(mx.array([row.tokens]))[0])
    assert np.abs(trainer.logits(row) - expected).max() < TOLERANCE


@pytest.mark.parametrize("start", ["first step", "later"])
@pytest.mark.parametrize("fixture", [*BASES, *OTHERS])
def test_the_loss_and_every_gradient_are_mlxs(fixture: str, start: str, request: pytest.FixtureRequest) -> None:
    from mlx.nn.utils import value_and_grad
    from mlx.utils import tree_flatten

    from pilocal.training.mlx.adapter import add_lora
    from pilocal.training.mlx.batches import make_batch
    from pilocal.training.mlx.loss import completion_loss

    base = request.getfixturevalue(fixture)
    if start == "later":
        model = trainable(base, LORA, "float32")
    else:
        model = load_base(base, None, "float32")
        add_lora(model, LORA, seed=0)
    rows = random_rows(3, 6, 20, 2, 16)
    (loss, _), gradients = value_and_grad(model, completion_loss)(model, *make_batch(rows, 20).arrays())
    expected = {name: np.array(value) for name, value in dict(tree_flatten(gradients)).items()}
    found_loss, found = TorchTrainer(base, LORA, Training(), mlx_start(model)).gradients(rows)
    assert found_loss == pytest.approx(loss.item(), rel=TOLERANCE)
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert value.shape == found[name].shape
        assert distance(found[name], value) < TOLERANCE, name
        assert np.any(value) == (start == "later" or name.endswith("lora_b")), name


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2, "recompute": True}])
@pytest.mark.parametrize(
    "fixture", ["starter", "tiny_tied_base", "tiny_biased_base", "tiny_gemma3_base", "tiny_gemma4_shared_base", "mixed"]
)
def test_a_base_that_stays_packed_has_the_same_gradients(
    fixture: str,
    changes: dict[str, Any],
    request: pytest.FixtureRequest,
    starter: Base,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pilocal.training.torch_backend import packed

    if fixture == "mixed":
        exceptions = {"model.layers.0.mlp.up_proj": {"bits": 6, "group_size": 64}, "model.layers.1.mlp.up_proj": False}
        base = make_base(tmp_path / "base", starter.folder, exceptions=exceptions)
    else:
        base = request.getfixturevalue(fixture)
    rows = random_rows(3, 7, 20, 2, 16)
    settings: Any = [base, LORA, Training(**changes), mlx_start(trainable(base))]
    (loss, plain), whole = (TorchTrainer(*settings).gradients(rows), TorchTrainer(*settings, weights="packed"))
    held = [module for module in whole.model.modules() if isinstance(module, packed.PackedLinear)]
    assert len(held) >= 14
    assert all(module.weight.dtype.itemsize == 4 and module.weight.shape[1] < module.in_features for module in held)
    found_loss, found = whole.gradients(rows)
    assert found_loss == loss
    assert all(np.array_equal(found[name], value) for name, value in plain.items())
    monkeypatch.setattr(packed, "AT_ONCE", 5000)  # some rows at a time
    found_loss, found = whole.gradients(rows)
    assert found_loss == pytest.approx(loss, rel=1e-5)
    assert max(distance(found[name], value) for name, value in plain.items()) < TOLERANCE


def test_nf4_rounds_the_blocks_and_trains(tiny_base: Base) -> None:
    start, rows = mlx_start(trainable(tiny_base)), random_rows(3, 6, 20, 2, 16)
    plain, rounded = (TorchTrainer(tiny_base, LORA, Training(), start, weights=held) for held in ("unpacked", "nf4"))
    kinds = {type(module).__name__ for module in rounded.model.model.layers.modules()}
    assert "Linear4bit" in kinds
    assert rounded.model.lm_head.weight.dtype.is_floating_point
    (loss, gradients), (exact, _) = rounded.gradients(rows), plain.gradients(rows)
    assert loss != exact
    assert loss == pytest.approx(exact, rel=0.1)
    assert set(gradients) == set(start)
    losses = [rounded.step(number, 1e-2, rows)[0] for number in range(8)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("changes", [{"accumulate": 3}, {"accumulate": 2, "recompute": True}])
def test_parts_and_recomputation_change_no_gradient(changes: dict[str, Any], tiny_base: Base) -> None:
    start, rows = mlx_start(trainable(tiny_base)), random_rows(3, 7, 20, 2, 16)
    loss, plain = TorchTrainer(tiny_base, LORA, Training(), start).gradients(rows)
    other_loss, other = TorchTrainer(tiny_base, LORA, Training(**changes), start).gradients(rows)
    assert other_loss == pytest.approx(loss, rel=1e-5)
    assert all(distance(other[name], value) < 1e-5 for name, value in plain.items())


@pytest.mark.parametrize(
    "changes",
    [
        {"lr_schedule": "cosine", "weight_decay": 0.1},
        {"optimizer": "adam", "lr_schedule": "linear", "clip": 0.3},
        {"optimizer": "adafactor", "lr_schedule": "constant", "weight_decay": 0.1},
    ],
)
def test_twenty_steps_have_mlxs_losses(changes: dict[str, Any], tiny_base: Base) -> None:
    from pilocal.training.mlx.adapter import add_lora
    from pilocal.training.mlx.batches import Batches
    from pilocal.training.mlx.frozen_layers import Below
    from pilocal.training.mlx.optimizers import make_optimizer
    from pilocal.training.mlx.step import BatchTrainer
    from pilocal.training.mlx.team import MlxTeam

    training = Training(batch_size=4, learning_rate=2e-3, warmup=0.2, **changes)
    rows = random_rows(2, 30, 20, 2, 16)
    model = load_base(tiny_base, None, "float32")
    add_lora(model, LORA, 0)
    torchs = TorchTrainer(tiny_base, LORA, training, mlx_start(model))
    mlxs = BatchTrainer(model, make_optimizer(model, training), training, MlxTeam())
    batches, order = Batches(rows, 4, (0, 0)), RowOrder(rows, 4, (0, 0))
    below = Below(model, 0, batches.prefix_tokens)
    losses = []
    for step in range(20):
        assert tuple(order.rows_at(step)) == batches.at(step).rows
        rate = learning_rate(step, 20, training)
        loss, norm = torchs.step(step, rate, order.rows_at(step))
        expected, expected_norm = mlxs.step(step, rate, batches.at(step), below)
        assert loss == pytest.approx(expected.item(), rel=TOLERANCE)
        assert norm == pytest.approx(expected_norm.item(), rel=1e-3)
        losses.append(loss)
    assert min(losses[10:]) < losses[0]
    mlx_end = mlx_start(model)
    assert all(distance(value, mlx_end[name]) < 1e-2 for name, value in torchs.adapter().items())
    assert torchs.evaluate(rows)[0] == pytest.approx(
        sum(float(mlxs.evaluate(batch, below)[0]) for batch in batches.in_order()), rel=TOLERANCE
    )


@pytest.mark.parametrize("fixture", ["tiny_base", *OTHERS])
def test_a_shared_beginning_changes_neither_loss_nor_gradients(fixture: str, request: pytest.FixtureRequest) -> None:
    base = request.getfixturevalue(fixture)
    rows = random_rows(2, 30, 20, 2, 8)
    start = {name: value + 0.01 for name, value in mlx_start(trainable(base)).items()}
    whole, shared = (TorchTrainer(base, LORA, Training(accumulate=2), start, share=share) for share in (False, True))
    assert shared.share
    computed, padding = shared.computed_tokens(rows)
    assert computed < whole.computed_tokens(rows)[0] - 100
    assert padding == whole.computed_tokens(rows)[1]
    (loss, found), (expected, gradients) = shared.gradients(rows), whole.gradients(rows)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert all(distance(found[name], value) < 1e-5 for name, value in gradients.items())
    assert shared.evaluate(rows)[0] == pytest.approx(whole.evaluate(rows)[0], rel=1e-5)


def test_nothing_is_shared_where_layers_are_computed_again(tiny_base: Base) -> None:
    start = mlx_start(trainable(tiny_base))
    assert not TorchTrainer(tiny_base, LORA, Training(recompute=True), start, share=True).share


def test_only_the_last_layers_and_the_named_linears_are_adapted(tiny_deep_base: Base) -> None:
    lora = Lora(rank=2, layers=1, linears=("self_attn.v_proj", "mlp.up_proj"))
    start = mlx_start(trainable(tiny_deep_base, lora))
    trainer = TorchTrainer(tiny_deep_base, lora, Training(), start)
    assert set(trainer.adapter()) == set(start)
    assert len(start) == 4
    assert all(np.array_equal(value, start[name]) for name, value in trainer.adapter().items())


def test_a_base_in_bfloat16_has_a_float32_adapter_and_nearly_the_same_gradients(tiny_base: Base) -> None:
    start, rows = mlx_start(trainable(tiny_base)), random_rows(3, 6, 20, 2, 16)
    rough = TorchTrainer(tiny_base, LORA, Training(), start, precision="bfloat16")
    assert {value.dtype for value in rough.adapter().values()} == {np.dtype("float32")}
    assert all(np.array_equal(value, start[name]) for name, value in rough.adapter().items())
    loss, gradients = rough.gradients(rows)
    exact_loss, exact = TorchTrainer(tiny_base, LORA, Training(), start).gradients(rows)
    assert loss == pytest.approx(exact_loss, rel=0.02)
    whole, rough_whole = (np.concatenate([g[name].ravel() for name in exact]) for g in (exact, gradients))
    assert whole @ rough_whole > 0.98 * np.linalg.norm(whole) * np.linalg.norm(rough_whole)


def test_the_start_is_what_mlx_draws(tiny_base: Base, tiny_float_base: Base) -> None:
    from pilocal.training.mlx.adapter import add_lora, initial_adapter

    for base, seed in ((tiny_base, 0), (tiny_float_base, 5)):
        model = load_base(base)
        add_lora(model, LORA, seed)
        found = initial_adapter(base, LORA, seed)
        assert set(found) == set(mlx_start(model))
        assert all(np.array_equal(found[name], value) for name, value in mlx_start(model).items())


def test_a_start_of_ones_own_has_mlxs_distribution() -> None:
    drawn = draw({"m.lora_a": (400, 16), "m.lora_b": (16, 30)}, seed=1)
    assert not drawn["m.lora_b"].any()
    assert np.abs(drawn["m.lora_a"]).max() <= 1 / 20
    assert drawn["m.lora_a"].std() == pytest.approx(1 / 20 / np.sqrt(3), rel=0.05)


def test_an_adapter_survives_both_formats_and_peft_computes_the_same(tiny_base: Base, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel

    from pilocal.training.torch_backend.model import load_model

    start = mlx_start(trainable(tiny_base))
    assert sorted(from_peft(to_peft(start))) == sorted(start)
    assert all(np.array_equal(value, start[name]) for name, value in from_peft(to_peft(start)).items())
    trainer = TorchTrainer(tiny_base, LORA, Training(), start)
    trainer.save(tmp_path / "mlx")
    again = read_start(tmp_path / "mlx", LORA, tiny_base.sha256)
    assert all(np.array_equal(value, start[name]) for name, value in again.items())
    save_peft(tmp_path / "peft", trainer.adapter(), trainer.settings, "owner/model")
    plain = load_model(tiny_base, dtype=torch.float32, device=torch.device("cpu"))
    with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):
        loaded = PeftModel.from_pretrained(plain, tmp_path / "peft").eval()
    row = random_rows(0, 1)[0]
    with torch.no_grad():
        logits = loaded(torch.tensor([row.tokens])).logits[0].numpy()
    assert np.abs(logits - trainer.logits(row)).max() < 1e-5


def test_a_start_of_another_shape_is_refused_by_name(tiny_base: Base) -> None:
    start = mlx_start(trainable(tiny_base))
    name = "model.layers.0.mlp.up_proj.lora_a"
    with pytest.raises(InputError, match=rf"{name} of the initial adapter should be 256 x 4; got '256 x 3'"):
        TorchTrainer(tiny_base, LORA, Training(), start | {name: np.zeros((256, 3), dtype=np.float32)})
    with pytest.raises(InputError, match=f"lacks {name}"):
        TorchTrainer(tiny_base, LORA, Training(), {key: value for key, value in start.items() if key != name})
    with pytest.raises(InputError, match="holds what is no number"):
        TorchTrainer(tiny_base, LORA, Training(), start | {name: np.full((256, 4), np.nan, dtype=np.float32)})


def test_rows_of_another_tokenizer_are_refused(tiny_base: Base) -> None:
    trainer = TorchTrainer(tiny_base, LORA, Training(), None)
    with pytest.raises(InputError, match="the base knows 2048 tokens; got 2048; render the rows with"):
        trainer.gradients([Row((1, 2048, 3), 2)])


@pytest.mark.parametrize(
    ("lora", "line"),
    [
        (Lora(kind="dora"), r"does not train magnitudes \(DoRA\); got 'dora'"),
        (Lora(layers=9), "the model has 2 layers; got 9"),
        (Lora(linears=("self_attn.q_prj",)), "got 'self_attn.q_prj'; did you mean self_attn.q_proj"),
    ],
)
def test_an_adapter_that_cannot_be_made_is_refused(lora: Lora, line: str, tiny_base: Base) -> None:
    with pytest.raises(InputError, match=line):
        TorchTrainer(tiny_base, lora, Training(), None)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"quantization": {"bits": 4, "group_size": 32, "mode": "mxfp4"}}, "affine quantization alone; got 'mxfp4'"),
        ({"quantization": {"bits": 4, "group_size": 64}}, "does not hold groups of 64 weights of 4 bits"),
        ({"quantization": None}, "is packed, and config.json does not say how"),
        ({"intermediate_size": 640}, "the weights do not have config.json's shapes"),
        ({"num_hidden_layers": 3}, "weights that are missing; got 'model.layers.2"),
        ({"num_hidden_layers": 1}, "weights that are unknown; got 'model.layers.1"),
    ],
)
@pytest.mark.parametrize("weights", ["unpacked", "packed"])
def test_a_base_that_is_not_what_its_config_says_is_refused(
    weights: str, change: dict[str, Any], line: str, tiny_base: Base, tmp_path: Path
) -> None:
    shutil.copytree(tiny_base.folder, tmp_path / "base")
    config = json.loads((tiny_base.folder / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelError, match=line):
        TorchTrainer(Base.at(tmp_path / "base"), LORA, Training(), None, weights=weights)


def test_dropout_drops_in_training_alone_and_by_the_seed(tiny_base: Base) -> None:
    lora, rows = Lora(rank=4, dropout=0.5), random_rows(1, 4)
    start = mlx_start(trainable(tiny_base))
    same, other = (TorchTrainer(tiny_base, lora, Training(seed=seed), start) for seed in (0, 1))
    assert same.evaluate(rows) == other.evaluate(rows)
    first = same.step(3, 0.0, rows)
    assert same.step(3, 0.0, rows) == first != same.step(4, 0.0, rows)
    assert other.step(3, 0.0, rows) != first
    assert asdict(Training(seed=1))["seed"] == 1
