"""What stays of the prompt: every compressor leaves it, and everybody who asks the trained model puts it there once."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilocal import Run
from pilocal.base.base import Base
from pilocal.bench.prompts import read_prompts
from pilocal.compress import CompressedTemplate, Tools, compress_template, compression_facts
from pilocal.compress.outline import Outline
from pilocal.compress.removal import Cutter, lowest_first, may_go, remove
from pilocal.compress.rules import removals
from pilocal.errors import InputError
from pilocal.flow.listeners import Listeners
from pilocal.flow.opening import open_run, open_task
from pilocal.flow.plan import plan_run
from pilocal.flow.runner import run_steps
from pilocal.flow.steps import EVALUATE, STAGES
from pilocal.flow.steps.export import EXPORT
from pilocal.prompt.preamble import Preamble
from pilocal.prompt.tokens import prompt_tokens
from pilocal.run_folder.rows import read_records
from pilocal.run_folder.shipped import read_shipped
from pilocal.server.routing import FULL_PROMPT, INTERNALIZED
from pilocal.task import Compression
from tests.forked import pilocal
from tests.test_flow import make_task
from tests.test_residue_served import route, routed

LINES = (
    "# Codes\n- lamp NIZ\n- door VOL\n- fan KEL\n\nAlways write one code. Please be kind to everybody who asks.\nStop."
)
STAY = ("- door VOL", "Stop.")


def count(text: str) -> int:
    return len(text.split())


def tools(folder: Path, written: str = "") -> Tools:
    class Scribe:
        """Writes the same whatever it is asked, and finds every word as likely."""

        def surprisal(self, text: str) -> NoReturn:
            raise AssertionError

        def rewrite(self, prompt: str, max_tokens: int) -> str:
            return written

        def close(self) -> None:
            return None

    def no_download(name: str) -> NoReturn:
        raise AssertionError(name)

    return Tools(count_tokens=count, base_id="x", folder=folder, load_model=Scribe, download=no_download)


def shortened(folder: Path, taus: tuple[float, ...], **settings: Any) -> tuple[CompressedTemplate, ...]:
    written = settings.pop("written", "")
    return compress_template(LINES, taus, Compression(**settings), tools(folder, written), folder / "templates")


# Compressors


@pytest.mark.parametrize("tau", [0.0, 0.05, 0.3, 0.5, 0.8, 1.0])
def test_rules_leave_what_is_to_stay_and_meet_tau_with_the_rest(tau: float, tmp_path: Path) -> None:
    (found,) = shortened(tmp_path, (tau,), stay=STAY)
    assert all(text in found.text for text in STAY)
    assert found.ratio <= max(tau, found.stays)
    assert (found.text == "- door VOL\n\nStop.") == (tau <= found.stays)
    assert found.is_off == (abs(found.ratio - max(tau, found.stays)) > 0.1)
    assert shortened(tmp_path, (tau,), stay=STAY) == (found,)  # as it was kept


@given(st.sets(st.sampled_from([*LINES.split("\n")[:-1], "kind to", "write one"])), st.floats(0, 1))
def test_whatever_is_to_stay_is_there_at_every_tau(stay: set[str], tau: float) -> None:
    config, outline = Compression(stay=tuple(text for text in stay if text)), Outline(LINES)
    scored = lowest_first(outline, [float(len(word)) for word in outline.words], config)
    for steps in (removals(outline, config), scored):
        text = remove(outline, may_go(steps, outline, config), max(tau, 1e-6), count, Cutter(outline, config))
        assert all(each in text for each in config.stay)


def test_surprisal_leaves_what_is_to_stay(tiny_base: Base, tmp_path: Path) -> None:
    folder = make_task(tmp_path / "task", tiny_base.folder)
    with (folder / "task.toml").open("a") as file:
        file.write('[compression]\nmethod = "surprisal"\nstay = ["- blue MIP"]\n')
    with open_task(folder, folder / "schedule.toml", None) as context:
        texts = [template.text for template in context.templates]
        assert all("- blue MIP" in text for text in texts)
        assert texts[-1] == "- blue MIP" == context.residue.template


def test_a_summary_adds_what_is_to_stay_and_is_not_asked_where_nothing_else_fits(tmp_path: Path) -> None:
    some, least = shortened(tmp_path, (0.6, 0.1), method="summary", stay=STAY, written="Write one code, kindly.")
    assert some.text == "Write one code, kindly.\n- door VOL\nStop."
    assert least.text == "- door VOL\n\nStop."


def test_a_rung_of_a_ladder_must_have_what_is_to_stay(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "0.6.md").write_text("- door VOL\nOne code.\nStop.\n")
    some, none = shortened(tmp_path, (0.6, 0.0), method="ladder", ladder="mine", stay=STAY)
    assert (some.text.split("\n")[1], none.text) == ("One code.", "- door VOL\n\nStop.")
    (tmp_path / "mine" / "0.6.md").write_text("One code.\nStop.\n")
    with pytest.raises(InputError, match=r"protected text is missing; got '- door VOL'; .*\[compression\] stay"):
        shortened(tmp_path, (0.6, 0.0), method="ladder", ladder="mine", stay=STAY)


def test_a_text_that_is_not_in_the_template_cannot_stay(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\[compression\] stay: this text is not in the template; got 'window'"):
        shortened(tmp_path, (0.5,), stay=("window",))


def test_without_anything_to_stay_the_key_is_what_it_was(tmp_path: Path) -> None:
    facts = compression_facts((0.5,), Compression(), tools(tmp_path))
    assert set(facts[0]) == {"method", "keep", "drop_first", "ladder", "checkpoint"}
    assert "stay" in compression_facts((0.5,), Compression(stay=STAY), tools(tmp_path))[0]
    shortened(tmp_path, (0.5, 0.0))
    sidecar = json.loads((tmp_path / "templates" / "tau-0.5000.json").read_text())
    assert set(sidecar) == {"tau", "compressor", "tokens", "ratio", "key", "text_sha256"}
    assert (tmp_path / "templates" / "tau-0.0000.md").read_text() == ""


# A run from end to end

LAW = """\
until_tau = 0.3
until_shots = 1
[[stage]]
tau = 1.0
shots = 2
share = 0.5
[[stage]]
tau = 0.3
shots = 1
share = 0.5
"""


def make_staying(folder: Path, base: Base) -> Path:
    make_task(folder, base.folder)
    (folder / "schedule.toml").write_text(LAW)
    with (folder / "task.toml").open("a") as file:
        file.write('[compression]\nstay = ["Say nothing else."]\n')
    return folder


@pytest.fixture(scope="module")
def finished(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_staying(tmp_path_factory.mktemp("residue") / "task", tiny_base)
    with open_task(folder, folder / "schedule.toml", folder / "run") as context:
        run_steps(context, EVALUATE)
    return folder


def last_chats(folder: Path) -> list[list[Any]]:
    return [record["messages"][:-1] for record in read_records(folder / "run" / "stages" / "1", "test")]


def test_the_last_stage_is_what_every_arm_without_the_whole_prompt_is_asked_with(finished: Path) -> None:
    roles = [[turn["role"] for turn in chat] for chat in last_chats(finished)]
    assert roles == [["system", "user", "assistant", "user"]] * 3
    metrics = json.loads((finished / "run" / "metrics.json").read_text())
    with open_run(finished / "run") as context:
        assert context.residue == Preamble(last_chats(finished)[0][0]["content"], 1)
        assert context.residue.template.endswith("Say nothing else.")
        tokens = [len(prompt_tokens(chat, context.base.tokenizer)) for chat in last_chats(finished)]
        assert EXPORT.is_done(context) and EVALUATE.is_done(context)
    for arm in ("base_query_only", "internalized", "shipped", "direct_drop"):
        assert metrics["arms"][arm]["prompt_tokens"] == pytest.approx(sum(tokens) / 3)
    assert metrics["residue"]["shots"] == 1
    assert 0 < metrics["residue"]["template_tokens"] < 20


def test_what_is_shipped_knows_what_stays_and_a_program_sends_the_query_alone(finished: Path) -> None:
    shipped, chats = read_shipped(finished / "run"), last_chats(finished)
    assert shipped.residue == Preamble(chats[0][0]["content"], 1)
    said = [json.loads(line)["shipped"] for line in (finished / "run" / "answers.jsonl").read_text().splitlines()]
    with Run(finished / "run") as run:
        assert [run.answer(chat[-1]["content"]) for chat in chats] == said
        assert [run.answer([chat[-1]]) for chat in chats] == said


def test_the_server_asks_with_the_tokens_that_were_trained(finished: Path, tiny_base: Base) -> None:
    shipped = read_shipped(finished / "run")
    with routed(shipped) as router:
        for chat in last_chats(finished):
            (query,) = chat[-1:]
            found = route(router, [query])
            assert (found.arm, found.near_miss, found.saved_tokens) == (INTERNALIZED, False, 0)
            assert found.body["messages"] == chat
            assert found.prompt_tokens == len(prompt_tokens(chat, tiny_base.tokenizer))
            whole = route(router, [query], full_prompt=True)
            with open_run(finished / "run") as context:
                (full,) = [each for each in context.records(0, "test") if each["messages"][-2] == query]
            assert (whole.arm, whole.body["messages"]) == (FULL_PROMPT, full["messages"][:-1])
            for sent in (chat, full["messages"][:-1]):  # a caller who sends what stays, or an old one
                again = route(router, sent)
                assert (again.arm, again.body["messages"]) == (INTERNALIZED, chat)
                assert again.saved_tokens == len(prompt_tokens(sent, tiny_base.tokenizer)) - found.prompt_tokens


def test_the_bench_asks_with_it_where_only_the_export_is_left(finished: Path, tmp_path: Path) -> None:
    shipped = read_shipped(finished / "run")
    prompts = read_prompts(tmp_path, shipped, 3)
    bare = read_prompts(tmp_path, replace(shipped, residue_template="", residue_shots=0), 3)
    assert all(len(a) > len(b) + 10 for a, b in zip(prompts.bare, bare.bare, strict=True))
    assert prompts.full == bare.full


def test_check_and_the_table_say_what_stays(finished: Path) -> None:
    with open_task(finished, finished / "schedule.toml", None) as context:
        plan = plan_run(context, probe=False)
    said = [hint for hint in plan.hints if "stay in every request" in hint]
    assert len(said) == 1 and "and 1 shots" in said[0]
    done = pilocal("run", finished, "--schedule", finished / "schedule.toml")
    assert "tokens of the template and 1 shots that stay" in done.stdout
    lines = done.stdout.splitlines()
    assert max(len(line) for line in lines if not line.startswith("serve it with: ")) <= 80  # which names a path


@pytest.mark.parametrize("form", ["openai", "mlx"])
def test_another_trainer_is_told_what_to_ask_with(form: str, tiny_base: Base, tmp_path: Path) -> None:
    folder = make_staying(tmp_path / "task", tiny_base)
    done = pilocal("stages", folder, "--schedule", folder / "schedule.toml", "--format", form)
    assert done.returncode == 0, done.stderr
    how = (folder / "run" / form / "how.txt").read_text()
    said = re.search(r"the query after what stays of the prompt, as in (\S+\.jsonl)", how)
    assert said
    shown = json.loads((folder / "run" / form / said[1]).read_text().splitlines()[0])["messages"]
    assert len(shown) > 2
    assert "bare query" not in how


def test_a_schedule_that_leaves_nothing_where_something_is_to_stay_warns(tiny_base: Base, tmp_path: Path) -> None:
    folder, said = make_task(tmp_path / "task", tiny_base.folder), list[str]()
    (folder / "schedule.toml").write_text('decay = "drop"\nshots = 0\nuntil_tau = 0.01\n')
    with open_task(folder, folder / "schedule.toml", None, Listeners(warn=said.append)) as context:
        assert not context.residue
        assert context.templates[-1].text == ""
    assert [text for text in said if "rules leaves nothing of the template at tau 0.01" in text]


def test_nothing_stays_by_default(tiny_base: Base, tmp_path: Path) -> None:
    folder = make_task(tmp_path / "task", tiny_base.folder)
    with open_task(folder, folder / "schedule.toml", folder / "run") as context:
        run_steps(context, STAGES)
        assert not context.residue
        (record, *_) = context.records(2, "test")
    assert [turn["role"] for turn in record["messages"]] == ["user", "assistant"]
