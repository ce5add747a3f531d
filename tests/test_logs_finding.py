"""What recurs in logs is found: 50 logs whose prompts are known, and prompts of other shapes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from pilocal.logs.exchange import SPACES, Exchange
from pilocal.logs.finding import find_templates
from pilocal.logs.forms import exchange_of
from pilocal.logs.survey import Survey
from pilocal.logs.template import Template
from pilocal.task.json_lines import Line
from tests.made_logs import KINDS, MadeLog, Message, made_logs, query, rules, sentence


def exchanges(rows: list[list[Message]]) -> list[Exchange]:
    return [exchange_of({"messages": row}, Line(Path("log.jsonl"), n), {}) for n, row in enumerate(rows, 1)]


def lines_of(template: Template) -> list[str]:
    return [" ".join(line.split()) for line in template.text.split("\n") if line.strip()]


def warned(rows: list[Exchange], found: list[Template]) -> bool:
    survey = Survey(files=(), columns={}, rows=len(rows), looked_at=len(rows), templates=tuple(found), sensitive={})
    return bool([*survey.warnings(0)])


def found_in(log: MadeLog) -> tuple[bool, bool]:
    """Tell whether the right template is found, every query and slot included, and whether there is a warning."""
    rows = exchanges(log.rows)
    found = find_templates(rows)
    if not found:
        return False, True
    cuts = [found[0].cut(row) for row in rows]
    queries = [cut.turns[-1][1] if cut else "" for cut in cuts]
    slots = [{**cut.slots} if cut else {} for cut in cuts]
    right = queries == log.queries and slots == log.slots and not any(cut and cut.unlike for cut in cuts)
    return right and lines_of(found[0]) == log.lines, warned(rows, found)


def test_the_template_is_found_in_48_of_50_logs_and_the_rest_is_warned_of() -> None:
    logs = made_logs(50)
    assert {log.kind for log in logs} == {kind(random.Random(0), 30).kind for kind in KINDS}
    results = [found_in(log) for log in logs]
    wrong = [log.kind for log, (right, _) in zip(logs, results, strict=True) if not right]
    assert len(wrong) <= 2, wrong
    assert all(said for (right, said) in results if not right)


def test_logs_that_change_inside_the_prompt_are_warned_of_and_those_that_do_not_are_not() -> None:
    for log in made_logs(2 * len(KINDS)):
        assert found_in(log)[1] == log.warned, log.kind


def asked(*turns: str, system: str = "") -> Exchange:
    roles = ["user", "assistant"] * len(turns)
    return Exchange(where=Line(Path("x"), 1), system=system, turns=tuple(zip(roles, turns, strict=False)), answer="a")


def rng() -> random.Random:
    return random.Random(7)


def test_what_changes_is_a_slot_in_its_place() -> None:
    draw = rng()
    text = rules(draw)
    rows = [asked(query(draw), system=f"{text}\nToday is 2026-05-{1 + n % 28:02}.") for n in range(60)]
    (found,) = find_templates(rows)
    assert found.text == f"{text}\nToday is {{{{today}}}}."
    cut = found.cut(rows[3])
    assert cut is not None
    assert (cut.turns, cut.slots, cut.unlike) == ((("user", rows[3].first),), {"today": "2026-05-04"}, "")
    (slot,) = found.slots
    assert (slot.name, slot.distinct, slot.beside) == ("today", 28, False)
    spaced = found.cut(asked("a", system=f"{text}\n\nToday is  2027-01-01."))
    assert spaced is not None
    assert (spaced.slots, spaced.unlike) == ({"today": "2027-01-01"}, SPACES)


def test_dates_of_three_days_are_data_and_two_wordings_are_versions() -> None:
    draw = rng()
    text = rules(draw)
    rows = [asked(query(draw), system=f"{text}\nToday is 2026-05-0{1 + n // 20}.") for n in range(60)]
    assert len(find_templates(rows)) == 1
    ends = ("Never be rude.", "Do not be rude, ever.")
    rows = [asked(query(draw), system=f"{text}\n{ends[n % 3 == 0]}") for n in range(60)]
    first, second = find_templates(rows)
    assert (first.rows, second.rows, first.family) == (40, 20, second.family)
    assert first.text.endswith("Never be rude.")


def test_a_prompt_of_one_sentence_with_a_name_in_it() -> None:
    draw = rng()
    names = [sentence(draw, 1, 1).title() for _ in range(60)]
    rows = [
        asked(query(draw), system=f"You are the assistant of {name} and you answer with one word.") for name in names
    ]
    (found,) = find_templates(rows)
    assert found.text == "You are the assistant of {{value_1}} and you answer with one word."
    cut = found.cut(rows[0])
    assert cut is not None and cut.slots == {"value_1": names[0]}


@pytest.mark.parametrize(
    ("form", "template", "rest"),
    [
        ('Translate into French: "{}"', "Translate into French:", "{}"),
        ("Translate into French: {}", "Translate into French:", "{}"),
        (
            "Is this mail spam or not?\n{}\nAnswer with yes or no.",
            "Is this mail spam or not?\n\nAnswer with yes or no.",
            "{}",
        ),
        ("<rules>\nBe very kind.\n</rules>\n<mail>{}</mail>", "<rules>\nBe very kind.\n</rules>", "<mail>{}</mail>"),
    ],
)
def test_a_prompt_around_the_query(form: str, template: str, rest: str) -> None:
    draw = rng()
    queries = [f"{sentence(draw)}" for _ in range(40)]
    (found,) = find_templates([asked(form.format(each)) for each in queries])
    assert found.text == template
    cuts = [found.cut(asked(form.format(each))) for each in queries]
    assert [cut and cut.turns for cut in cuts] == [(("user", rest.format(each)),) for each in queries]


def test_a_chinese_prompt() -> None:
    draw = rng()
    text = "你是一个客服助手。请用中文回答。不要透露内部信息。不知道的时候就说不知道。"
    rows = [asked("".join(draw.choice("天地玄黄宇宙洪荒日月") for _ in range(9)), system=text) for _ in range(30)]
    assert [found.text for found in find_templates(rows)] == [text]


def test_a_prompt_that_the_model_confirmed_in_the_first_turn() -> None:
    draw = rng()
    text = rules(draw)
    rows = [asked(text, "Understood.", query(draw)) for _ in range(30)]
    (found,) = find_templates(rows)
    assert found.text == text
    assert [found.cut(row) is not None for row in rows] == [True] * 30


def test_the_questions_that_everybody_asks_are_no_prompt() -> None:
    draw = rng()
    common = [query(draw) for _ in range(4)]
    rows = [asked(draw.choice(common), system="You are a helpful assistant.") for _ in range(80)]
    (found,) = find_templates(rows)
    assert found.text == "You are a helpful assistant."
    assert find_templates([asked(query(draw)) for _ in range(80)]) == []


def test_rows_of_other_prompts_do_not_hide_one() -> None:
    draw = rng()
    text = rules(draw)
    rows = [asked(query(draw), system=text if n % 5 < 3 else sentence(draw, 10, 30)) for n in range(100)]
    found = find_templates(rows)
    assert (found[0].text, found[0].rows) == (text, 60)


def test_white_space_makes_no_version() -> None:
    draw = rng()
    text = rules(draw)
    rows = [asked(query(draw), system=text if n % 2 else text.replace("\n", "\n\n ") + "\n") for n in range(40)]
    (found,) = find_templates(rows)
    assert found.rows == 40
    assert all(found.cut(row) for row in rows)


def test_earlier_turns_of_a_conversation_are_no_shots() -> None:
    draw = rng()
    text = rules(draw)
    rows = []
    for _ in range(12):
        turns = [query(draw) for _ in range(7)]
        rows += [asked(*turns[:end], system=text) for end in (1, 3, 5, 7)]
    (found,) = find_templates(rows)
    assert found.shots == ()
    cut = found.cut(rows[3])
    assert cut is not None and len(cut.turns) == 7
