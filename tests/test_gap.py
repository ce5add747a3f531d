"""What `pilocal check` says about the prompt: the gap, and the census of the template's entries."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pilocal
from pilocal.base.base import Base
from pilocal.base.load import load_base
from pilocal.chart import LONGEST_NAME
from pilocal.flow.gap import EntryFacts, Gap
from pilocal.training.mlx import teacher as mlx_teacher
from pilocal.training.mlx.forward import cut_prefix, read_prefix, windows, within
from tests.forked import pilocal as command
from tests.test_chart import texts
from tests.test_flow import make_task

GAP = Path(__file__).parent.parent / "examples" / "smart-home-gap"


KEPT = {
    "reset",
    "close",
    "raise",
    "clean",
    "start",
    "lock",
    "check",
    "kettle",
    "fan",
    "radio",
    "door",
    "camera",
    "vent",
}
KEPT |= {"garden", "hall", "library", "study", "cellar", "pantry", "stairs", "lamp", "garage", "attic"}
"""Some words of the smart home; no training query names the last three."""


@pytest.fixture
def small_house(tmp_path: Path) -> Path:
    """The smart home with a gap: some entries of each list, and the queries that name no others."""
    folder = shutil.copytree(GAP, tmp_path / "house", ignore=shutil.ignore_patterns("run"))
    lines = (folder / "template.md").read_text().splitlines()
    dropped = {line.split()[1] for line in lines if re.fullmatch(r"- \w+ [A-Z]{3}", line)} - KEPT
    text = "\n".join(line for line in lines if not (line.startswith("- ") and line.split()[1] in dropped))
    (folder / "template.md").write_text(text + "\n")
    for split in ("train", "valid", "test"):
        records = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]
        fitting = [one for one in records if not dropped & set(re.findall(r"\w+", one["query"]))]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in fitting))
    return folder


def test_the_census_names_the_entries_that_no_training_query_touches(small_house: Path, tmp_path: Path) -> None:
    plan = pilocal.check(small_house, run=tmp_path / "run", probe=False, gap=True)
    gap = plan.gap
    assert gap is not None
    assert gap.full < 0.1 < 1 < gap.bare
    assert {entry.split()[0] for entry in gap.untouched} == {"lamp", "garage", "attic"}
    worth = {facts.entry: facts.nats for facts in gap.entries}
    assert worth["reset KUV"] > 1
    assert worth["Begin the answer with the word note."] > 1
    assert abs(worth["lamp NIZ"]) < 0.1
    assert any("3 entries of the template are in no training query" in hint for hint in plan.hints)
    shown = texts(tmp_path / "run" / "census.svg")
    assert plan.picture == tmp_path / "run" / "census.svg"
    assert {facts.entry[: LONGEST_NAME // 2] for facts in gap.entries} <= {text[: LONGEST_NAME // 2] for text in shown}
    apart, others = (shown.index(title) for title in ("no training query names them", "the other entries"))
    assert set(gap.untouched) <= set(shown[:apart])  # the names of bars come before their title
    assert not set(gap.untouched) & set(shown[apart:others])
    kept = json.loads((tmp_path / "run" / "census.json").read_text())
    assert kept["bare"] == gap.bare
    assert [facts["entry"] for facts in kept["entries"]] == [facts.entry for facts in gap.entries]


def test_both_backends_take_the_same_census_and_read_of_each_template_what_is_new(
    small_house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = list[int]()

    def counted(model: Any, prefix: Any, before: Any = ()) -> Any:
        read.append(prefix.size)
        return read_prefix(model, prefix, before)

    monkeypatch.setattr(mlx_teacher, "read_prefix", counted)
    found = [
        pilocal.check(small_house, probe=False, gap=True, backend=pilocal.Backend(name=name, device=device)).gap
        for name, device in (("mlx", None), ("torch", "cpu"))
    ]
    for one, other in zip(*(gap.entries for gap in found if gap), strict=True):
        assert (one.entry, one.queries) == (other.entry, other.queries)
        assert one.nats == pytest.approx(other.nats, abs=1e-3)
    assert len(read) > 10
    assert sum(read) < 0.7 * len(read) * max(read)


@pytest.mark.parametrize("fixture", ["tiny_base", "tiny_gemma3_base", "tiny_gemma4_shared_base", "sliding_base"])
def test_a_beginning_is_cut_and_gone_on_from_exactly(fixture: str, request: pytest.FixtureRequest) -> None:
    import mlx.core as mx

    model = load_base(request.getfixturevalue(fixture))
    tokens = mx.array([(7 * place) % 2000 for place in range(90)])
    whole = read_prefix(model, tokens)
    longer = read_prefix(model, mx.concatenate([tokens[:60], tokens[:50] + 1]))
    cut = cut_prefix(model, longer, 60)
    assert cut
    found = read_prefix(model, tokens[60:], cut)
    for one, other, window in zip(found, whole, windows(model.model), strict=True):
        assert one.end == other.end == 90
        seen, wanted = (within(past, window) for past in (one, other))
        assert seen and wanted
        assert mx.allclose(seen.keys, wanted.keys, atol=1e-4) and mx.allclose(seen.values, wanted.values, atol=1e-4)
    windowed = any(window for window in windows(model.model))
    again = cut_prefix(model, found, 40)
    assert bool(again) == (not windowed)  # of what a window has let go nothing can be cut


def facts(**changes: Any) -> Gap:
    entries = (EntryFacts(entry="lamp NIZ", nats=0.0, queries=0), EntryFacts(entry="Be brief.", nats=1.0, queries=None))
    return replace(Gap(examples=4, full=0.1, bare=3.0, entries=entries), **changes)


def test_what_follows_is_said_in_one_line_each() -> None:
    (hint,) = facts().hints
    assert hint == "1 entry of the template is in no training query, 'lamp NIZ'; `pilocal synth` makes some"
    assert facts(entries=()).hints == []
    assert "nothing to gain" in facts(bare=0.11, entries=()).hints[0]
    assert "even with the prompt" in facts(full=2.5, entries=()).hints[0]


def test_check_prints_the_census_unless_it_is_told_not_to(tiny_base: Base, tmp_path: Path) -> None:
    folder = make_task(tmp_path / "task", tiny_base.folder)
    done = command("check", folder)
    assert done.returncode == 0, done.stderr
    assert "Census of the template" in done.stdout
    assert max(len(line) for line in done.stdout.splitlines() if not line.startswith("hint: ")) <= 80
    assert "picture" not in done.stdout
    kept = command("check", folder, "--no-probe", "--gap", "--run", tmp_path / "run")
    assert "picture of all entries: run/census.svg" in kept.stdout
    assert "red ZOR" in texts(tmp_path / "run" / "census.svg")
    for option in ("--no-gap", "--no-probe"):
        assert "Census" not in command("check", folder, option).stdout
    result = json.loads(command("check", folder, "--no-probe", "--gap", "--json").stdout)
    assert {facts["entry"] for facts in result["gap"]["entries"]} >= {"red ZOR", "green KEL", "Please be kind."}


def test_the_census_counts_every_turn_that_is_learned(small_house: Path) -> None:
    train = small_house / "train.jsonl"
    talk = [("user", "reset the lamp"), ("assistant", "NIZ"), ("user", "clean the attic"), ("assistant", "QUD")]
    record = {"messages": [{"role": role, "content": text} for role, text in talk]}
    train.write_text(train.read_text() + json.dumps(record) + "\n")
    gap = pilocal.check(small_house, probe=False, gap=True).gap
    assert gap is not None
    assert {entry.split()[0] for entry in gap.untouched} == {"garage"}
