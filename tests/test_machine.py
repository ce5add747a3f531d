"""`pilocal check --machine`: whether a Mac that is not here could train a task, by the sizes of the base alone."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest

import pilocal
from pilocal.base.base import Base, find_base
from pilocal.base.device import lent_memory
from pilocal.base.gguf_memory import held_packed
from pilocal.base.load import unloaded_model
from pilocal.base.recipe import count_parameters
from pilocal.cli import cli
from pilocal.errors import InputError, ModelError, PilocalError
from pilocal.flow.check_page.write import make_check
from pilocal.flow.plan import Plan
from pilocal.progress import silent
from pilocal.prompt.tokens import Row
from pilocal.task import Lora, Training
from pilocal.training.backend import TORCH, Backend
from pilocal.training.memory import GIB, Machine, advise, base_bytes, predict, read_sizes
from pilocal.training.mlx.frozen_layers import Below
from pilocal.training.mlx.probe import survey
from pilocal.training.mlx.setup import Setup
from pilocal.training.row_order import StagePlan
from tests.bench.macbook import BASES, bases_table
from tests.gguf_models import write_model
from tests.reports import Page, commands_of
from tests.test_flow import make_task
from tests.tiny import OTHERS, TOKENIZER_FILES, make_base

Bare = Callable[..., Path]


@pytest.fixture
def bare(starter: Base, tmp_path: Path) -> Bare:
    """Makes a folder of a base without any weights, with the starter's tokenizer."""

    def make(shape: str = "Llama 3.1 8B", **changes: Any) -> Path:
        folder = tmp_path / "bare"
        folder.mkdir()
        config = {**BASES[shape], **changes}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        for name in TOKENIZER_FILES:
            shutil.copyfile(starter.folder / name, folder / name)
        return folder

    return make


def checked(task: Path, machine: int) -> Plan:
    return pilocal.check(task, schedule=task / "schedule.toml", machine=machine)


def machine_that_lends(memory: int) -> int:
    """Return the least unified memory of which Metal lends as much; from 36 GiB on."""
    unified = -(-memory * 4 // 3)
    assert lent_memory(unified) >= memory > lent_memory(unified - 2)
    return unified


def test_the_base_s_sizes_and_its_tokenizer_are_enough(bare: Bare, tmp_path: Path) -> None:
    task = make_task(tmp_path / "task", bare("Llama 3.3 70B"))
    with pytest.raises(ModelError, match=r"no model\*\.safetensors"):
        pilocal.check(task)
    large, small = checked(task, 128 * GIB), checked(task, 32 * GIB)
    assert (large.machine, large.memory, large.advice) == (128 * GIB, 96 * GIB, None)
    weights = base_bytes(BASES["Llama 3.3 70B"], packed=True)
    assert all(weights < need.peak < large.memory and need.seconds is None for need in large.needs if need)
    assert small.needs == large.needs
    assert small.memory < weights
    assert small.advice == f"its weights alone take {weights / GIB:.1f} GiB: take a smaller base, or one in fewer bits"


def test_what_the_advice_names_makes_it_fit(bare: Bare, tmp_path: Path) -> None:
    task = make_task(tmp_path / "task", bare("Llama 3.3 70B"))
    file = task / "task.toml"
    written = file.read_text(encoding="utf-8")
    peak = checked(task, 128 * GIB).peak
    assert checked(task, machine_that_lends(peak)).advice is None
    less = machine_that_lends(peak) - 2
    found = checked(task, less)
    assert found.peak == peak > found.memory
    assert found.advice
    settings = re.match(r"set \[training\] (accumulate = \d+): [\d.]+ GiB, the same gradient$", found.advice)
    assert settings
    file.write_text(written.replace("[training]", f"[training]\n{settings[1]}"), encoding="utf-8")
    assert checked(task, less).advice is None


def test_fewer_layers_are_the_last_resort() -> None:
    config = BASES["Llama 3.3 70B"]
    training, sizes, base = Training(batch_size=2), read_sizes(config, Lora()), base_bytes(config, packed=True)
    rows = [Row((*range(10, 1000), *[number] * 200), 1150) for number in (1, 2)]
    works = [survey(sizes, StagePlan(0, rows, (), 1, Path()), training)]

    def least(**changes: Any) -> int:
        fewer = read_sizes(config, Lora(**changes))
        smallest = replace(training, accumulate=2, recompute=True)
        return predict(Machine(memory=48 * GIB, base=base), fewer, works, [1], smallest)[0].peak

    for layers in (70, 20):
        advice = advise(Machine(memory=least(layers=layers), base=base), sizes, works, training)
        assert advice
        settings = "accumulate = 2 and recompute = true"
        assert advice.startswith(f"set [lora] layers = {layers}, and [training] {settings}: ")
        assert advice.endswith(" GiB, an adapter on the last layers alone")
    none = advise(Machine(memory=base + GIB, base=base), sizes, works, training)
    assert none == "shorten the template, lower shots, adapt fewer [lora] layers, or take a smaller base"


@pytest.mark.parametrize("fixture", ["starter", "tiny_base", "tiny_tied_base", "tiny_float_base", *OTHERS])
def test_packed_weights_are_weighed_by_config_json(fixture: str, request: pytest.FixtureRequest) -> None:
    base: Base = request.getfixturevalue(fixture)
    assert base_bytes(base.config, packed=True) == loaded_bytes(base)
    assert base_bytes(base.config, packed=False, precision="bfloat16") * 2 == base_bytes(base.config, packed=False)
    assert count_parameters(base) * 4 == base_bytes(base.config, packed=False)


def test_a_module_with_bits_of_its_own_is_weighed_by_these(starter: Base, tmp_path: Path) -> None:
    own = {
        "model.embed_tokens": {"group_size": 64, "bits": 8},
        "model.layers.0.mlp.up_proj": {"group_size": 32, "bits": 4, "mode": "mxfp4"},
    }
    base = make_base(tmp_path / "mixed", starter.folder, exceptions=own)
    plain = base_bytes({**base.config, "quantization": {"group_size": 32, "bits": 4}}, packed=True)
    assert base_bytes(base.config, packed=True) == loaded_bytes(base) > plain
    floats = {**base.config, "quantization": {"group_size": 32, "bits": 4, "lm_head": False}}
    assert base_bytes(floats, packed=True) == plain + (16 - 5) * 2048 * 256 // 8


def test_float32_makes_scales_and_biases_larger(tiny_base: Base) -> None:
    import mlx.core as mx

    model = unloaded_model(tiny_base)
    model.set_dtype(mx.float32)
    assert base_bytes(tiny_base.config, packed=True, precision="float32") == parameters_bytes(model)


def loaded_bytes(base: Base) -> int:
    return parameters_bytes(unloaded_model(base))


def parameters_bytes(model: Any) -> int:
    from mlx.utils import tree_flatten

    return sum(value.nbytes for value in dict(tree_flatten(model.parameters())).values())


def test_a_gguf_file_is_planned_packed(tmp_path: Path) -> None:
    write_model(tmp_path / "base.gguf", "Q8_0")
    base = replace(Base.of_gguf(tmp_path / "base.gguf"), weights=False)
    setup = Setup(base=base, lora=Lora(rank=2), training=Training(batch_size=1), unified=16 * GIB)
    rows = [Row(tuple(range(1, 20)), 15)]
    forecast = setup.plan([StagePlan(0, rows, (), 1, Path())], probe=True, progress=silent)
    assert forecast.weights == str(held_packed(base.gguf_weights))
    assert forecast.needs[0].seconds is None
    assert held_packed(base.gguf_weights).bytes < forecast.needs[0].peak < forecast.memory == lent_memory(16 * GIB)


@pytest.mark.parametrize("method", ["surprisal", "summary"])
def test_no_compressor_loads_a_model(method: str, bare: Bare, tmp_path: Path) -> None:
    task = make_task(tmp_path / "task", bare())
    with (task / "task.toml").open("a", encoding="utf-8") as file:
        file.write(f'[compression]\nmethod = "{method}"\n')
    found = checked(task, 16 * GIB)
    assert 0 < found.stages[1].template_tokens < found.stages[0].template_tokens
    (said,) = [hint for hint in found.hints if method in hint]
    assert said == f'the lengths are those of [compression] method = "rules": "{method}" loads a model'


def test_the_weights_of_a_hub_id_are_not_downloaded(
    bare: Bare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, asked = bare(), list[Any]()

    def snapshot(name: str, **options: Any) -> str:
        asked.append(options["ignore_patterns"])
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    task = make_task(tmp_path / "task", "owner/name")
    assert checked(task, 16 * GIB).machine
    assert asked == [["*.safetensors"]]
    with pytest.raises(ModelError, match=r"no model\*\.safetensors"):
        find_base("owner/name", tmp_path)
    assert asked[1:] == [None]


def test_weights_that_are_here_are_not_read(tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task(tmp_path / "task", tiny_base.folder)
    for name in ("pilocal.base.load.load_base", "pilocal.base.base.remembered_sha256"):
        monkeypatch.setattr(name, lambda path, *_, **__: pytest.fail(f"reads {path}") if is_large(path) else "0" * 64)
    assert checked(task, 16 * GIB).advice is None


def is_large(path: Any) -> bool:
    return not isinstance(path, Path) or path.suffix == ".safetensors"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"model_type": "gemma9"}, "this architecture is not supported; got 'gemma9'"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "this kind cannot be exported; got 'longrope'"),
        ({"quantization": {"bits": 4}}, "config.json quantization: needs bits and a group_size; got {'bits': 4}"),
        ({"quantization": "4bit"}, "config.json quantization: needs bits and a group_size; got '4bit'"),
        ({"num_hidden_layers": None}, "num_hidden_layers must be a whole number above 0"),
    ],
)
def test_a_base_that_could_not_be_used_is_refused_all_the_same(
    changes: dict[str, Any], line: str, bare: Bare, tmp_path: Path
) -> None:
    task = make_task(tmp_path / "task", bare(**changes))
    with pytest.raises(PilocalError) as caught:
        checked(task, 64 * GIB)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", ["32", "big", "0GB", "-4GB", "3.5GB", "32TB", "", "1000000GB", "٣٢GB"])
def test_what_is_no_size_is_one_line(size: str, tmp_path: Path) -> None:
    with pytest.raises(click.BadParameter) as caught:
        cli.main(["check", str(tmp_path), "--machine", size], standalone_mode=False)
    said = f"Invalid value for '--machine': {size!r} is no size of memory: write whole gigabytes, such as 32GB"
    assert caught.value.format_message() == said


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"gap": True}, "--gap: with --machine nothing is loaded, and nothing is kept; leave --machine or --gap out"),
        ({"run": "run"}, "--run: with --machine nothing is loaded, and nothing is kept; leave --machine or --run out"),
        ({"backend": Backend(name=TORCH)}, "--machine: it is a Mac's unified memory, which MLX trains in; got "),
        ({"machine": 0}, "--machine: must be above 0 bytes; got 0; give what the Mac has, such as 32GB"),
    ],
)
def test_what_another_machine_cannot_be_asked_is_one_line(options: dict[str, Any], line: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        pilocal.check(tmp_path, **{"machine": 32 * GIB, **options})
    assert str(caught.value).startswith(line)
    assert not list(tmp_path.iterdir())


def test_every_answer_is_that_machine_s(bare: Bare, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task, page = make_task(tmp_path / "task", bare()), tmp_path / "check.html"
    options = ["check", str(task), "--schedule", str(task / "schedule.toml"), "--machine"]
    cli.main([*options, "4 gib", "--html", str(page)], standalone_mode=False)
    shown = capsys.readouterr().out
    said = " ".join(shown.split())
    assert re.search(r"fits no: \d", said)
    assert (
        "GiB at the peak, of 2.7 GiB that Metal lends a training on a Mac with 4 GB; its weights alone take 4.2 GiB"
        in said
    )
    assert "takes not known: only a step on the machine itself tells" in said
    assert "--gap, without --machine, asks it" in said
    assert [line.split()[-1] for line in shown.splitlines() if re.match(r"\s+\d  [01]\.", line)] == ["no"] * 3
    assert "two to three times as fast" not in said  # a hint on this machine
    cli.main([*options, "16GB", "--json"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert (found["machine"], found["memory"], found["advice"]) == (16 * GIB, lent_memory(16 * GIB), None)
    assert [stage["fits"] for stage in found["stages"]] == [True] * 3
    written = page.read_text(encoding="utf-8")
    again = ["pilocal", *options, "4GB", "--html", "check.html"]
    assert again in commands_of(Page(written))
    assert "fits into 4 GB" in written
    assert "the sizes of the base, which was not loaded" in written


def test_a_check_of_this_machine_says_nothing_of_another(tiny_base: Base, tmp_path: Path) -> None:
    task = make_task(tmp_path / "task", tiny_base.folder)
    found = pilocal.check(task, schedule=task / "schedule.toml", probe=False)
    assert found.machine is None
    assert "fits into" not in make_check(found)
    assert "--machine" not in make_check(found)


def test_what_is_kept_below_the_adapter_is_a_quarter_of_what_the_base_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    import mlx.core as mx

    monkeypatch.setattr("pilocal.training.mlx.frozen_layers.machine_memory", lambda: 10 * GIB)
    monkeypatch.setattr(mx, "get_active_memory", lambda: 6 * GIB)
    assert Below(None, 0, ()).room == GIB
    monkeypatch.setattr(mx, "get_active_memory", lambda: 12 * GIB)
    assert Below(None, 0, ()).room == 0


def test_the_guide_s_table_of_bases_is_what_is_predicted() -> None:
    text = (Path(__file__).parent.parent / "examples" / "guides" / "macbook.md").read_text(encoding="utf-8")
    assert text.split("<!-- bases -->\n")[1].split("<!-- /bases -->")[0] == bases_table()
