"""Slots: what changes inside the template, in records, in every stage's rows, and in what is exported."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pilocal import Run
from pilocal.base.base import Base
from pilocal.bench.prompts import read_prompts
from pilocal.compress import CompressedTemplate, Tools, compress_template, compression_facts
from pilocal.errors import ExportError, InputError, PilocalError, RunError
from pilocal.export.card import Facts, Kind, card
from pilocal.export.llama_server import write_llama_server
from pilocal.export.ollama import write_ollama
from pilocal.flow.opening import open_run, open_task
from pilocal.flow.plan import plan_run
from pilocal.prompt.preamble import Preamble
from pilocal.prompt.render import Message, render
from pilocal.prompt.tokens import prompt_tokens, tokenize
from pilocal.retrieve import contradictions
from pilocal.run_folder.hashes import fingerprint
from pilocal.run_folder.shipped import read_shipped
from pilocal.server.request import SLOTS
from pilocal.server.routing import FULL_PROMPT, INTERNALIZED
from pilocal.task import Compression, Example, load_task
from pilocal.training.mlx.batches import make_batch
from pilocal.training.row_order import shared_prefix
from tests import test_residue
from tests.test_flow import flow, make_task
from tests.test_residue_served import route, routed
from tests.test_train import assert_exact, trainable

TEMPLATE = (
    "Answer with the code of the colour.\n- red ZOR\n- blue MIP\n- green KEL\nPlease be kind. Say nothing else.\n"
    "Today is {{today}}; {{ user }} asks.\n"
)
DAYS = ("2026-11-28", "2026-11-29")


def dated(folder: Path, base: Path | str, template: str = TEMPLATE, **more: Any) -> Path:
    """A task whose template has slots, and whose records have values for them."""
    make_task(folder, base)
    (folder / "template.md").write_text(template)
    for split in ("train", "valid", "test"):
        path = folder / f"{split}.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()]
        for number, record in enumerate(records):
            record["slots"] = {"user": ("Ann", "Bo", "Cid")[number % 3], "today": DAYS[number % 2]} | more
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def change(folder: Path, line: int, slots: Any, split: str = "train") -> None:
    path = folder / f"{split}.jsonl"
    lines = path.read_text().splitlines()
    record = json.loads(lines[line - 1]) | {"slots": slots}
    lines[line - 1] = json.dumps(record)
    path.write_text("\n".join(lines) + "\n")


# Records


@pytest.mark.parametrize(
    ("slots", "said"),
    [
        ({"user": "Ann"}, r"no value for the slot today of the template; add \"slots\": \{\"today\": \"\.\.\.\"\}"),
        (None, "no value for the slot today of the template"),
        ({"user": "Ann", "today": 7}, "the value of the slot today must be text; got 7; write it as text, in quotes"),
        ({"user": "Ann", "today": None}, "the value of the slot today must be text"),
        ({"user": "Ann", "today": "x", "tody": "y"}, "no slot of this name; got 'tody'; did you mean today"),
        ({"user": "Ann", "today": "x", "query": "y"}, "no slot of this name; got 'query'; this name means the query"),
        (["today"], "slots must be an object"),
    ],
)
@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_slot_that_is_missing_unknown_or_no_text_is_one_line(
    split: str, slots: Any, said: str, tmp_path: Path
) -> None:
    folder = dated(tmp_path / "task", "starter")
    change(folder, 2, slots, split)
    with pytest.raises(InputError, match=said) as caught:
        load_task(folder)
    assert str(caught.value).startswith(f"{folder / split}.jsonl:2: ") and "\n" not in str(caught.value)


def test_records_without_any_values_are_one_line_for_each_file(tmp_path: Path) -> None:
    folder = make_task(tmp_path / "task", "starter")
    (folder / "template.md").write_text(TEMPLATE)
    with pytest.raises(PilocalError) as caught:
        load_task(folder)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3 and "8 more like it, the last on line 9" in lines[0]
    assert "write \\{{today}} there" in lines[0]


def test_a_template_without_slots_takes_no_values(tmp_path: Path) -> None:
    folder = make_task(tmp_path / "task", "starter")
    change(folder, 1, {"today": "x"})
    with pytest.raises(InputError, match=r"train.jsonl:1: the template has no slot of this name; got 'today'"):
        load_task(folder)


@pytest.mark.parametrize("template", ["{{passages}}", "\n - {{today}}\n{{user}}."])
def test_a_template_of_slots_alone_is_refused(template: str, tmp_path: Path) -> None:
    folder = dated(tmp_path / "task", "starter", template)
    with pytest.raises(PilocalError, match=r"template.md:\d: nothing but slots"):
        load_task(folder)


def test_values_are_in_the_order_of_the_template_without_white_space_around_them(tmp_path: Path) -> None:
    folder = dated(tmp_path / "task", "starter")
    change(folder, 1, {"user": " Ann\r\nLee\n", "today": ""})
    task = load_task(folder)
    assert task.slots == ("today", "user")
    assert list(task.train[0].slots.items()) == [("today", ""), ("user", "Ann\nLee")]
    assert "slots" not in task.train[0].extra
    assert task.train[0].facts["slots"] == {"today": "", "user": "Ann\nLee"}


LITERAL = [r"Write \{{name}}.", "Write {name}, {{{name}}}, {{#if}}, {{ a b }} or {{query}}."]


@pytest.mark.parametrize("template", LITERAL)
def test_braces_can_be_written_that_are_no_slot(template: str, tmp_path: Path) -> None:
    folder = make_task(tmp_path / "task", "starter")
    (folder / "template.md").write_text(template)
    task = load_task(folder)
    assert task.slots == () and task.template == template.replace("\\", "")
    folder = dated(tmp_path / "dated", "starter", f"{template} {TEMPLATE}", name="x")
    with pytest.raises(PilocalError, match=r"no slot of this name.*got 'name'"):
        load_task(folder)
    dated(tmp_path / "again", "starter", f"{template} {TEMPLATE}")
    task = load_task(tmp_path / "again")
    system = render(task.template, [], task.train[0])["messages"][0]["content"]
    assert system.startswith(f"{task.template[: len(template)]} Answer".replace("\\", ""))
    assert system.endswith("Today is 2026-11-28; Ann asks.")


def test_a_value_that_looks_like_a_slot_is_text() -> None:
    example = Example(id="1", query="q", answer="a", slots={"a": "{{b}}", "b": r"\{{a}}"})
    assert render("{{a}} {{b}}", [], example)["messages"][0]["content"] == r"{{b}} \{{a}}"


def test_the_same_query_with_another_value_is_another_row(tmp_path: Path) -> None:
    folder = dated(tmp_path / "task", "starter")
    first = json.loads((folder / "train.jsonl").read_text().splitlines()[0])
    with (folder / "test.jsonl").open("a") as file:
        file.write(json.dumps(first | {"answer": "KEL", "slots": {"today": "2027-01-01", "user": "Ann"}}) + "\n")
    task = load_task(folder)
    assert contradictions([*task.train, *task.test]) == {}
    with (folder / "test.jsonl").open("a") as file:
        file.write(json.dumps(first) + "\n")
    with pytest.raises(InputError, match="queries that also appear in an earlier split: 1"):
        load_task(folder)


# Rows


def test_a_value_stands_in_its_place_or_before_what_the_user_says_first() -> None:
    history = (("user", "hello"), ("assistant", "hi"))
    example = Example(id="1", query="q", answer="a", history=history, slots={"today": "Monday", "user": "Ann"})
    shot = Example(id="2", query="s", answer="t", slots={"today": "Sunday", "user": "Bo"})
    messages = render("It is {{today}}.", [shot], example)["messages"]
    assert [message["content"] for message in messages] == [
        "It is Monday.",
        "today: Sunday\nuser: Bo\n\ns",
        "t",
        "user: Ann\n\nhello",
        "hi",
        "q",
        "a",
    ]
    bare = render("", [], example)["messages"]
    assert bare[0]["content"] == "today: Monday\nuser: Ann\n\nhello"
    asked: list[Message] = messages[3:-1]
    asked = [{"role": "user", "content": "hello"}, *asked[1:]]
    told = Preamble("It is {{today}}.", 1).of(asked, lambda *_: [shot], example.slots)
    assert told == messages[:-1]


def tools(folder: Path, written: str = "") -> Tools:
    scribe: Any = SimpleNamespace(surprisal=lambda text: [], rewrite=lambda *_: written, close=lambda: None)
    return replace(test_residue.tools(folder), load_model=lambda: scribe)


def shortened(folder: Path, taus: tuple[float, ...], written: str = "", **how: Any) -> tuple[CompressedTemplate, ...]:
    return compress_template(TEMPLATE.strip(), taus, Compression(**how), tools(folder, written), folder / "templates")


@pytest.mark.parametrize("method", ["rules", "surprisal"])
@pytest.mark.parametrize("place", range(3))
def test_no_compressor_drops_a_slot_before_the_rest_of_its_sentence(method: str, place: int, tmp_path: Path) -> None:
    lines = TEMPLATE.strip().split("\n")
    lines = [*lines[:-1][:place], lines[-1], *lines[:-1][place:]]
    taus = (0.9, 0.7, 0.5, 0.4)
    made = compress_template("\n".join(lines), taus, Compression(method=method), tools(tmp_path), tmp_path / "made")
    assert all("{{today}}" in each.text and "{{ user }}" in each.text for each in made)
    assert made[-1].tokens < made[0].tokens < test_residue.count(TEMPLATE)


def test_a_summary_that_leaves_a_slot_out_gets_it_back(tmp_path: Path) -> None:
    (made,) = shortened(tmp_path, (0.6,), "Write one code. It is {{today}}.", method="summary")
    assert made.text == "Write one code. It is {{today}}.\n{{ user }}"


def test_a_rung_may_leave_a_slot_out_but_has_none_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "0.6.md").write_text("One code.\nIt is {{today}}.\n")
    (made,) = shortened(tmp_path, (0.6,), method="ladder", ladder="mine")
    assert made.text.startswith("One code.")
    (tmp_path / "mine" / "0.6.md").write_text("One code.\nIt is {{tody}}.\n")
    with pytest.raises(InputError, match=r"0\.6\.md:2: .*no slot of this name; got 'tody'; did you mean today"):
        shortened(tmp_path, (0.5999,), method="ladder", ladder="mine")


def test_without_slots_every_key_is_what_it_was(tmp_path: Path) -> None:
    """The settings of an example and of the compression are told as before there were slots."""
    assert "slots" not in Example(id="1", query="q", answer="a").facts
    template, config = "Be brief. Be kind.", Compression()
    (made,) = compress_template(template, (0.5,), config, tools(tmp_path), tmp_path)
    facts = compression_facts((0.5,), config, tools(tmp_path))
    assert json.loads((tmp_path / "tau-0.5000.json").read_text())["key"] == fingerprint(template, facts, 0.5)
    assert made.text


@pytest.fixture(scope="module")
def finished(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = dated(tmp_path_factory.mktemp("slots") / "task", tiny_base.folder)
    with (folder / "task.toml").open("a") as file:
        file.write('[compression]\nmethod = "ladder"\nladder = "mine"\n')
    (folder / "mine").mkdir()
    (folder / "mine" / "0.5.md").write_text("Answer with the code.\n{{user}} asks.\n")
    flow(folder)
    return folder


def test_no_row_of_any_stage_lacks_a_value(finished: Path) -> None:
    with open_run(finished / "run") as context:
        for stage, split in ((stage, split) for stage in range(3) for split in ("train", "valid", "test")):
            for record, example in zip(context.records(stage, split), getattr(context.task, split), strict=True):
                system = [turn["content"] for turn in record["messages"] if turn["role"] == "system"]
                query = record["messages"][-2]["content"]
                lines = [f"{name}: {value}" for name, value in example.slots.items()]
                if stage == 0:
                    assert system[0].endswith(f"Today is {example.slots['today']}; {example.slots['user']} asks.")
                    assert query == example.query
                elif stage == 1:
                    assert [text.strip() for text in system] == [
                        f"Answer with the code.\n{example.slots['user']} asks."
                    ]
                    assert query == f"{lines[0]}\n\n{example.query}"
                else:
                    assert not system and query == "\n".join(lines) + f"\n\n{example.query}"


def test_rows_with_other_values_share_what_stands_before_the_first_slot_and_train_exactly(
    finished: Path, tiny_base: Base
) -> None:
    with open_run(finished / "run") as context:
        rows = context.rows(0, "train")[:4]
    length = shared_prefix(rows)
    system = Message(role="system", content=TEMPLATE[: TEMPLATE.index("{{")])
    before = prompt_tokens([system, Message(role="user", content="x")], tiny_base.tokenizer)
    assert 20 < length <= len(before)
    model = trainable(tiny_base)
    for share in (True, False):
        assert_exact(model, make_batch(rows, length, share=share))


def test_an_old_caller_with_a_new_date_gets_the_tokens_that_training_rows_have_for_it(
    finished: Path, tiny_base: Base
) -> None:
    """From the old prompt, from the field and from the stated form; the full prompt as in the first stage."""
    shipped, values = read_shipped(finished / "run"), {"today": "2031-02-03", "user": "Zoë van Dyk"}
    query = {"role": "user", "content": "tell red"}
    asked = Example(id="", query="tell red", answer="x", slots=values)
    trained = tokenize(render("", [], asked), tiny_base.tokenizer)
    wanted = list(trained.tokens[: trained.offset])
    with routed(shipped) as router, open_run(finished / "run") as context:
        template = context.task.template
        full = render(template, [context.task.train[i] for i in (4, 0)], asked)["messages"]
        filled = full[0]["content"]
        assert filled.endswith("Today is 2031-02-03; Zoë van Dyk asks.")
        old: list[list[Any]] = [
            full[:-1],
            [full[0], query],
            [{"role": "system", "content": filled.replace("\n", "\r\n  ")}, query],
            [{"role": "user", "content": f"{filled}\n\ntell red"}],
        ]
        for chat in old:
            found = route(router, chat)
            assert (found.arm, found.prompt, found.near_miss) == (INTERNALIZED, wanted, False)
            assert found.saved_tokens > 0
        stated = route(router, [{"role": "user", "content": "today: 2031-02-03\nuser: Zoë van Dyk\n\ntell red"}])
        assert (stated.prompt, stated.arm, stated.saved_tokens) == (wanted, INTERNALIZED, 0)
        body = {"messages": [query], SLOTS: dict(reversed(values.items()))}
        given = router.route("/v1/chat/completions", body, full_prompt=False)
        assert given.prompt == wanted and SLOTS not in given.body
        whole = router.route("/v1/chat/completions", body, full_prompt=True)
        assert whole.arm == FULL_PROMPT and whole.body["messages"][0]["content"] == filled
        shots = [(turn["role"], turn["content"]) for turn in whole.body["messages"][1:-1]]
        assert len(shots) == 4 and shots[0][1].startswith("today: ")
        again = router.with_full_prompt(given)
        assert again and again.prompt == whole.prompt


def test_a_program_gives_the_values_and_is_told_which_are_missing(finished: Path) -> None:
    said = [json.loads(line)["shipped"] for line in (finished / "run" / "answers.jsonl").read_text().splitlines()]
    tests = load_task(finished).test
    with Run(finished / "run") as run:
        assert [run.answer(example.query, slots=example.slots) for example in tests] == said
        with pytest.raises(InputError, match="slots: no value for the slot today"):
            run.answer("tell red")
        with pytest.raises(InputError, match="did you mean user"):
            run.answer("tell red", slots={"usr": "x"})


def test_what_is_shipped_has_the_names_and_the_template_s_hash(finished: Path, tmp_path: Path) -> None:
    shipped = read_shipped(finished / "run")
    assert shipped.slots == ("today", "user") and shipped.template == TEMPLATE.strip()
    assert [example.slots for example in shipped.examples()] == [e.slots for e in load_task(finished).train]
    assert not shipped.residue and shipped.residue.user_turn == "today: ...\nuser: ...\n\nthe query"
    bench = read_prompts(tmp_path, shipped, 3)
    assert min(map(len, bench.bare)) > 15
    path = tmp_path / "export"
    path.mkdir()
    damaged = replace(shipped, folder=path, template=shipped.template + " ")
    damaged.save(shipped.examples())
    with pytest.raises(RunError, match="damaged: template and template_sha256 do not fit"):
        read_shipped(tmp_path)


def test_other_programs_are_told_the_form(finished: Path, tiny_base: Base) -> None:
    shipped = read_shipped(finished / "run")
    facts = Facts(task="tiny", base="base", residue=shipped.residue)
    text = card(facts, Kind(library="x", tags=[], what="A file", how=facts.chat))
    assert "```text\ntoday: ...\nuser: ...\n\nthe query\n```" in text and "Send the query alone" not in text
    assert eval(facts.chat) == [{"role": "user", "content": "today: ...\nuser: ...\n\nthe query"}]
    stays = card(
        Facts(task="t", base="b", residue=Preamble("It is {{today}}.", 0, ("today", "user"))),
        Kind(library="x", tags=[], what="A file", how=""),
    )
    assert "this system message, with a value for each slot" in stays and "\nuser: ...\n\nthe query" in stays
    modelfile, readme = write_ollama(shipped, tiny_base.tokenizer, facts)
    assert "# A request says:\n# today: ...\n# user: ...\n#\n# the query\n" in modelfile.read_text()
    assert "ollama run tiny 'today: ...\nuser: ...\n\nthe query'" in readme.read_text()
    script, requests = write_llama_server([shipped], [4])
    assert "# Slots that every request fills: today, user." in script.read_text()
    (message,) = json.loads(requests.read_text())["requests"]["tiny"]["messages"]
    assert message["content"] == "today: ...\nuser: ...\n\nthe query"
    with pytest.raises(ExportError, match="a Modelfile cannot fill in slots; got 'today'"):
        write_ollama(replace(shipped, residue_template="It is {{today}}."), tiny_base.tokenizer, facts)


def test_check_counts_the_tokens_of_the_values(finished: Path) -> None:
    with open_task(finished, finished / "schedule.toml", None) as context:
        plan = plan_run(context, probe=False, gap=True)
        bare = [render("", [], replace(each, slots={})) for each in context.task.train]
        tokens = [len(prompt_tokens(one["messages"][:-1], context.base.tokenizer)) for one in bare]
    assert plan.stages[-1].prompt_tokens > sum(tokens) / len(tokens) + 10
    assert [hint for hint in plan.hints if "are the values of its slots: today, user" in hint]
    assert plan.gap and plan.gap.entries[-1].entry == "Today is {{today}}; {{ user }} asks."
