"""Claims about compressors inside a run: what is recorded, what is skipped, what is freed, and the preview of one."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from pilocal.base.base import Base
from pilocal.cli import cli
from pilocal.compare.arms import DEFAULT_ARMS, parse_arm
from pilocal.compress.protect import protected_texts
from pilocal.compress.template import COMPRESSORS
from pilocal.errors import InputError
from pilocal.flow.context import Context
from pilocal.flow.opening import open_task
from pilocal.flow.runner import run_steps, step_named
from pilocal.task import METHODS
from tests.test_flow import flow, make_task


def house(tmp_path: Path, base: Base, settings: str) -> Path:
    folder = make_task(tmp_path / "task", base.folder)
    with (folder / "task.toml").open("a") as file:
        file.write(f"[compression]\n{settings}\n")
    return folder


def key(folder: Path, settings: str) -> str:
    toml = folder / "task.toml"
    toml.write_text(toml.read_text().split("[compression]")[0] + f"[compression]\n{settings}\n")
    with open_task(folder, folder / "schedule.toml", None) as context:
        return step_named("compress").key(context)


def loaded_models() -> int:
    gc.collect()
    return sum(type(thing).__module__ == "mlx_lm.models.llama" for thing in gc.get_objects())


def no_model(*_: object) -> None:
    raise AssertionError("the base was loaded")


def test_the_settings_name_every_compressor_and_no_other() -> None:
    assert tuple(COMPRESSORS) == METHODS


def test_every_compressor_is_an_arm_of_a_comparison() -> None:
    for name in COMPRESSORS:
        assert parse_arm(f"{name}@0.3").compressor == name
    assert {"rules@0.3", "surprisal@0.6"} <= set(DEFAULT_ARMS)
    assert all(parse_arm(name).name == name for name in DEFAULT_ARMS)


def test_the_run_folder_says_which_compressor_made_what(tmp_path: Path, tiny_base: Base) -> None:
    folder = house(tmp_path, tiny_base, 'method = "surprisal"')
    assert flow(folder, "compress") == {"compress": True}
    facts = json.loads((folder / "run" / "templates" / "tau-0.5000.json").read_text())
    assert facts["compressor"] == "surprisal"
    assert 0.3 < facts["ratio"] <= 0.5
    text = (folder / "run" / "templates" / "tau-0.5000.md").read_text()
    assert 0 < len(text) < len((folder / "template.md").read_text())


def test_a_second_run_loads_no_model(tmp_path: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = house(tmp_path, tiny_base, 'method = "surprisal"')
    flow(folder, "compress")
    monkeypatch.setattr("pilocal.flow.context.BaseModel", no_model)
    assert flow(folder, "compress") == {"compress": False}
    (folder / "run" / "run.json").write_text('{"steps": {}}')
    assert flow(folder, "compress") == {"compress": True}  # what lies there is read again
    (folder / "run" / "templates" / "tau-0.5000.md").unlink()
    with pytest.raises(AssertionError, match="the base was loaded"):
        flow(folder, "compress")


def test_the_base_is_freed_before_the_next_step(tmp_path: Path, tiny_base: Base) -> None:
    folder = house(tmp_path, tiny_base, 'method = "surprisal"')
    before = loaded_models()
    with open_task(folder, folder / "schedule.toml", folder / "run") as context:
        run_steps(context, step_named("compress"))
        assert loaded_models() == before


def test_every_setting_that_decides_the_texts_is_in_the_key(
    tmp_path: Path, tiny_base: Base, tiny_tied_base: Base
) -> None:
    folder = house(tmp_path, tiny_base, "")
    (folder / "mine").mkdir()
    (folder / "mine" / "0.5.md").write_text("Answer with the code.")
    settings = (
        *(f'method = "{name}"' for name in METHODS if name != "ladder"),
        'method = "ladder"\nladder = "mine"',
        'method = "llmlingua2"\ncheckpoint = "owner/other"',
        'method = "surprisal"\nkeep = ["red"]',
        'method = "surprisal"\ndrop_first = ["red"]',
    )
    keys = [key(folder, text) for text in settings]
    assert len(set(keys)) == len(settings)
    assert keys == [key(folder, text) for text in settings]
    assert key(folder, 'method = "llmlingua2"\ndevice = "cpu"') == key(folder, 'method = "llmlingua2"')
    (folder / "mine" / "0.5.md").write_text("Answer with a code.")
    assert key(folder, settings[4]) not in keys
    toml = folder / "task.toml"
    toml.write_text(toml.read_text().replace(str(tiny_base.folder), str(tiny_tied_base.folder)))
    assert not {key(folder, text) for text in settings} & set(keys)


def test_a_gap_in_the_ladder_ends_the_run_before_any_work(tmp_path: Path, tiny_base: Base) -> None:
    folder = house(tmp_path, tiny_base, 'method = "ladder"\nladder = "mine"')
    with pytest.raises(InputError, match=r"mine: no such folder; create it"):
        flow(folder, "compress")
    (folder / "mine").mkdir()
    (folder / "mine" / "0.3.md").write_text("Answer with the code.")
    with pytest.raises(InputError, match=r"mine: a gap: no file for tau 0\.5; there is 0\.3\.md; write 0\.5\.md"):
        flow(folder, "compress")
    (folder / "mine" / "0.3.md").rename(folder / "mine" / "0.5.md")
    assert flow(folder, "compress") == {"compress": True}


def test_a_look_prints_the_text_and_keeps_nothing(
    tmp_path: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_task(tmp_path / "task", tiny_base.folder)
    before = sorted(tmp_path.rglob("*"))
    options = ["compress", str(folder), "--compressor", "surprisal", "--tau", "0.6", "--tau", "0.3"]
    look = CliRunner().invoke(cli, options, catch_exceptions=False)
    assert look.exit_code == 0
    assert sorted(tmp_path.rglob("*")) == before
    made = CliRunner().invoke(cli, [*options, "--json"], catch_exceptions=False)
    larger, smaller = json.loads(made.stdout)["templates"]
    assert (larger["tau"], smaller["tau"], smaller["compressor"]) == (0.6, 0.3, "surprisal")
    assert 0 < smaller["ratio"] <= 0.3 < larger["ratio"] <= 0.6
    assert look.stdout == f"{larger['text']}\n{smaller['text']}\n"
    assert look.stderr.startswith(f"surprisal at tau 0.6: {larger['tokens']} tokens, a share of {larger['ratio']:.3f}")
    monkeypatch.setattr(Context, "taus", [1.0, 0.5])
    other = CliRunner().invoke(cli, [*options[:4], "--json"], catch_exceptions=False)
    assert [text["tau"] for text in json.loads(other.stdout)["templates"]] == [1.0, 0.5]


def test_a_look_has_no_run_folder(tmp_path: Path, tiny_base: Base) -> None:
    folder = make_task(tmp_path / "task", tiny_base.folder)
    with pytest.raises(InputError, match="a preview with --compressor or --tau keeps nothing; leave it out"):
        CliRunner().invoke(
            cli, ["compress", str(folder), "--tau", "0.5", "--run", str(tmp_path / "run")], catch_exceptions=False
        )


def test_what_is_protected_reaches_to_the_ends_of_its_code_or_placeholder() -> None:
    template = "Greet {user name} twice, {{team}}.\n\n```sh\nls -l\n\nwc\n```\n\nRun `git log` and {user name} again."
    assert protected_texts(template, ("{",)) == ("{user name}", "{{team}}")
    assert protected_texts(template, ("```",)) == ("```sh\nls -l\n\nwc\n```",)
    assert protected_texts(template, ("wc", "log", "twice")) == ("twice", "```sh\nls -l\n\nwc\n```", "`git log`")
    assert protected_texts(template, ()) == ()
