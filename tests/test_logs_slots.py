"""What changes inside logged prompts: found, named, written as slots, and put back to the byte."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilocal.logs.exchange import OTHER_TEMPLATE, SPACES, TOO_LONG, UNCLEAR, VARIANT, Exchange, LeftOut
from pilocal.logs.finding import find_templates
from pilocal.logs.frame import QUERY, Frame
from pilocal.logs.template import Part, Template
from pilocal.prompt.render import render
from pilocal.server.prompt_stripping import KnownPrompt
from pilocal.server.slotted import shapes_of
from pilocal.task import Example, Task, load_task
from pilocal.task.slots import fill, read_template
from tests.made_logs import DAYS, KINDS, NAMES, Message, date, made_logs, query, rules, said, sentence, texts, user
from tests.test_cli import pilocal
from tests.test_logs_finding import asked, warned
from tests.test_logs_folder import SPLITS, answered, chat, kept, left_out, lines, made, rng, write

SLOTTED = [number for number, log in enumerate(made_logs(len(KINDS))) if any(log.slots)]

DRAW = rng()
RULES = rules(DRAW, 5)


def of_rows(task: Task) -> list[Example]:
    return [example for split in SPLITS for example in getattr(task, split) if not example.id.startswith("shot-")]


def system_of(messages: list[Message]) -> str:
    return next((message["content"] for message in messages if message["role"] == "system"), "")


def row_of(example: Example) -> int:
    return int(example.extra["source"].rpartition(":")[2]) - 1


@pytest.mark.parametrize("number", SLOTTED)
def test_template_and_slots_together_are_the_logged_prompt_and_the_server_reads_it_so(
    number: int, tmp_path: Path
) -> None:
    log = made_logs(len(KINDS))[number]
    made(tmp_path / "task", write(tmp_path / "log.jsonl", log.rows))
    task = load_task(tmp_path / "task")
    known = KnownPrompt(task.template, task.train, shapes=shapes_of(task.slots, task.train))
    assert len(of_rows(task)) > 20
    for example in of_rows(task):
        *sent, _ = log.rows[row_of(example)]
        assert example.slots == log.slots[row_of(example)]
        rendered = system_of([{**message} for message in render(task.template, (), example)["messages"]])
        assert rendered == (system_of(sent) or rendered)
        assert rendered in "\n\n".join(message["content"] for message in sent)
        assert known.find(sent) == ([user(log.queries[row_of(example)])], example.slots)


def test_a_task_with_slots_passes_check_and_its_shots_have_values(tmp_path: Path) -> None:
    draw = rng()
    text = rules(draw, 8)
    shots = [user("solved already?"), {"role": "assistant", "content": "yes"}]
    rows = [chat(f"{text}\nToday is {date(draw)}.", *shots, user(query(draw)), said(draw)) for _ in range(40)]
    result = made(tmp_path / "task", write(tmp_path / "log.jsonl", rows))
    assert "slots: {{today}}; their values are in the records" in result.output
    assert "what changes is a slot: {{today}}, " in result.output
    (shot,) = [record for record in lines(tmp_path / "task" / "train.jsonl") if record.get("id") == "shot-1"]
    assert shot["slots"]["today"].startswith("2026-")
    done = pilocal("check", tmp_path / "task", "--json", "--no-probe", "--no-gap")
    assert done.returncode == 0, done.stderr


def found_in(
    prompt: Callable[[int], str], turn: Callable[[int], str] | None = None, count: int = 80
) -> tuple[Template, list[Exchange]]:
    """Find the only template of system messages, or of turns of the user."""
    if turn:
        rows = [asked(turn(number), system=prompt(number)) for number in range(count)]
    else:
        rows = [asked(query(DRAW), system=prompt(number)) for number in range(count)]
    (found,) = find_templates(rows)
    return found, rows


def name() -> str:
    return f"{DRAW.choice(NAMES)} {DRAW.choice(NAMES)}"


@pytest.mark.parametrize(
    ("prompt", "ends"),
    [
        (lambda n: f"\nToday is {DAYS[n % 7]}, {1 + n % 28} May 2026. Be kind.", "\nToday is {{today}}. Be kind."),
        (lambda n: f"\nHeute ist der {1 + n % 28}. Mai 2026. Bitte.", "\nHeute ist der {{today}}. Bitte."),
        (lambda n: f"\n今天是2026年{1 + n % 12}月{1 + n % 28}日。", "\n今天是{{today}}。"),
        (lambda n: f"\nIt is {1 + n % 12}:{10 + n % 50} PM on May {1 + n % 28}.", "\nIt is {{time}} on {{today}}."),
        (lambda n: f"\nBirthday: {date(DRAW)}", "\nBirthday: {{birthday}}"),
        (lambda n: f"\nLocale: {('de', 'en')[n % 2]}\nEnd.", "\nLocale: {{locale}}\nEnd."),
        (
            lambda n: f'\n{{"user": "{name()}", "id": {1000 + n}, "on": "{date(DRAW)}"}}',
            '\n{"user": "{{user}}", "id": {{id}}, "on": "{{today}}"}',
        ),
        (
            lambda n: f"\n<user>{name()}</user>\n<documents>\n{texts(DRAW, 4)}\n</documents>\nNow answer.",
            "\n<user>{{user}}</user>\n<documents>\n{{documents}}\n</documents>\nNow answer.",
        ),
        (
            lambda n: f"\n# Customer\n- Name: {name()}\n- Orders: {n}\n\n# Search results\n{texts(DRAW, 4)}\n\n# End.",
            "\n# Customer\n- Name: {{name}}\n- Orders: {{orders}}\n\n# Search results\n{{search_results}}\n\n# End.",
        ),
        (lambda n: f"\nThe user is called {('Ann', 'Bo', 'Cid')[n % 3]}.", "\nThe user is called {{user}}."),
        (lambda n: f"\nMessage: {name()}.", "\nMessage: {{message_value}}."),
        (lambda n: f"\nContext: The {sentence(DRAW, 30, 40)}.", "\nContext: {{context}}"),
        (
            lambda n: f"\nToday is {date(DRAW)}.\n{('Be formal and polite.', 'Be casual, never too polite.')[n % 2]}",
            "\nToday is {{today}}.\n{{value_1}}",
        ),
    ],
)
def test_what_changes_is_named(prompt: Callable[[int], str], ends: str) -> None:
    found, rows = found_in(lambda number: RULES + prompt(number))
    assert found.text == RULES + ends
    for row in rows:
        cut = found.cut(row)
        assert cut is not None
        template, names = read_template(found.text, Path("template.md"))
        assert set(names) == cut.slots.keys()
        assert (fill(template, cut.slots)[0], cut.unlike) == (row.system, "")


def test_slots_at_the_edges_and_one_value_in_two_places() -> None:
    def prompt(number: int) -> str:
        who = f"{NAMES[number % 13]} {number}"
        return f"{who} asks.\n{RULES}\nTell {who} so on {date(DRAW)}"

    found, rows = found_in(prompt)
    assert found.text == f"{{{{value_1}}}} asks.\n{RULES}\nTell {{{{value_1}}}} so on {{{{today}}}}"
    cut = found.cut(rows[7])
    assert cut is not None and cut.slots["value_1"] == "Hiro 7"
    with pytest.raises(LeftOut, match=UNCLEAR):
        found.cut(asked("a", system=rows[7].system.replace("Tell Hiro 7", "Tell Bo 7")))


@pytest.mark.parametrize(
    ("line", "beside"),
    [
        (lambda n: f"Row: {DRAW.choice(NAMES)} | {n} | {DRAW.choice('abc')} |", True),
        (lambda n: f"Talk to {DRAW.choice(NAMES)} {DRAW.choice(DAYS)} about it.", True),
        (lambda n: f"{date(DRAW)}\n{name()}\nde-DE", True),
        (lambda n: f"Talk to {name()} about it.", False),
        (lambda n: f"Now is {DRAW.choice(DAYS)}, {date(DRAW)}.", False),
    ],
)
def test_slots_side_by_side_are_one_and_a_warning_says_so(line: Callable[[int], str], beside: bool) -> None:
    found, rows = found_in(lambda number: f"{RULES}\n{line(number)}\nStop.")
    (slot,) = found.slots
    assert slot.beside is beside
    assert all((cut := found.cut(row)) and not cut.unlike for row in rows)
    assert warned(rows, [found])


def test_text_that_looks_like_a_slot_is_escaped(tmp_path: Path) -> None:
    text = RULES + "\nWrite {{name}}, \\{{name}}, {{{name}}} and {{query}} as they stand."
    for folder, more in (("none", ""), ("some", "\nUse {%s} and {{%s}}.")):
        rows = [
            answered(text + (more % (date(DRAW), name()) if more else ""), f"{n} {query(DRAW)}", "a") for n in range(40)
        ]
        made(tmp_path / folder, write(tmp_path / "log.jsonl", rows))
        task = load_task(tmp_path / folder)
        assert task.slots == (("today", "value_1") if more else ())
        for example in of_rows(task):
            rendered = render(task.template, (), example)["messages"][0]["content"]
            assert rendered == rows[row_of(example)][0]["content"]


@settings(max_examples=200)
@given(
    before=st.text("{}\\ xq.\n", max_size=12),
    between=st.text("{}\\ xq.\n", max_size=12),
    value=st.text("{}\\x \n", max_size=8),
)
def test_whatever_stands_around_a_slot_is_read_back(before: str, between: str, value: str) -> None:
    """But for a brace or a backslash right beside it, which belongs to the value."""
    if before.endswith(("{", "\\")) or between.startswith("}") or between.endswith(("{", "\\")):
        return
    template = Part((before, between, "."), ("a", "b")).written()
    assert fill(template, {"a": value, "b": "x"})[0] == f"{before}{value}{between}x."
    alone, names = read_template(Part((before,)).written(), Path("x"))
    assert (alone, names) == (before, ())


def test_values_that_are_empty_or_missing_with_their_line() -> None:
    found, rows = found_in(lambda n: f"Be brief.\nNote: {sentence(DRAW) if n % 3 else ''}\n{RULES}")
    assert found.text == f"Be brief.\nNote: {{{{note}}}}\n{RULES}"
    assert all((cut := found.cut(row)) and not cut.unlike for row in rows)
    found, rows = found_in(lambda n: "\n".join(["Be brief.", *([f"Note: {sentence(DRAW)}"] if n % 3 else []), RULES]))
    assert found.text == f"Be brief.\n{{{{note}}}}\n{RULES}"
    cuts = [found.cut(row) for row in rows]
    assert {cut.slots["note"][:5] for cut in cuts if cut} == {"", "Note:"}
    assert [cut and cut.unlike for cut in cuts] == ["" if number % 3 else SPACES for number in range(80)]


def test_a_value_with_the_templates_own_text_is_read_where_that_is_clear() -> None:
    def prompt(number: int) -> str:
        more = " Place: x" if number % 40 == 0 else ""
        return f"{RULES}\nName: {name()}\nPlace: Rome{number}{more}\nStop."

    found, rows = found_in(prompt)
    assert found.text.endswith("Name: {{name}}\nPlace: {{place}}\nStop.")
    cut = found.cut(rows[40])
    assert cut is not None and cut.slots["place"] == "Rome40 Place: x"
    found, rows = found_in(lambda n: prompt(n).replace("\nPlace", " Place"))
    assert found.text.endswith("Name: {{name}} Place: {{place}}\nStop.")
    with pytest.raises(LeftOut) as left:
        found.cut(rows[40])
    assert (left.value.reason, left.value.detail[:12]) == (UNCLEAR, "name may be ")
    found, rows = found_in(lambda n: f"{RULES}\nName: {name()} Place: Rome{n}{' Place: x' if n % 4 else ''} Stop it.")
    assert all(found.cut(row) for row in rows)  # where many are not clear, the line is one slot


def test_more_ways_to_read_a_prompt_than_are_looked_at_are_not_clear() -> None:
    frame = Frame(("Be kind to ", " and ", " and ", " here."), ("a", "b", "c"))
    assert frame.match("Be kind to x and y and z here.") == {"a": "x", "b": "y", "c": "z"}
    with pytest.raises(LeftOut, match=UNCLEAR):
        frame.match(f"Be kind to x{' and y' * 2000} here.")


PROMPT = "You answer for Ivory Ltd.\nUse nothing but the context.\nNever guess a price or a date."


@pytest.mark.parametrize(
    ("turn", "text", "holds"),
    [
        (
            "{prompt}\n\nContext: {texts}\n\nQuestion: {query}\nAnswer:",
            "\n\nContext: {{context}}\n\nQuestion:",
            "context",
        ),
        ("{prompt}\n\nContext:\n---\n{texts}\n---\n\n{query}", "\n\nContext:\n---\n{{context}}\n---", "context"),
        ("{prompt}\n\n<context>\n{texts}\n</context>\n\n{query}", "\n\n<context>\n{{context}}\n</context>", "context"),
        (
            "{prompt}\n\nPassages:\n{texts}\n\nNow answer this question with the passages above alone:\n{query}",
            "\n\nPassages:\n{{passages}}\n\nNow answer this question with the passages above alone:",
            "passages",
        ),
        ("{prompt}\nToday is {date}.\nUser: {name}\n\n{query}", "\nToday is {{today}}.\nUser: {{user}}", "today user"),
        ("{prompt}\nUser: {name}\nQuestion: {query}", "\nUser: {{user}}\nQuestion:", "user"),
        ("{prompt}\n\nFrom: {name}\nSubject: {query}\n\n{texts}", "", ""),
        ("{prompt}\n\nProduct: {name}\nProblem: {texts}", "", ""),
        ("{prompt}\nUser: {query}\nAssistant:", "", ""),
    ],
)
def test_passages_and_dates_beside_a_query_are_slots_and_the_fields_of_a_form_are_the_query(
    turn: str, text: str, holds: str
) -> None:
    def filled(number: int) -> str:
        values = {"prompt": PROMPT, "texts": texts(DRAW, 4), "date": date(DRAW), "name": name()}
        return turn.format(query=f"What of {sentence(DRAW, 4, 8)}?", **values)

    found, rows = found_in(lambda number: "", filled)
    assert found.text == PROMPT + text
    for row in rows:
        cut = found.cut(row)
        assert cut is not None
        assert sorted(cut.slots) == holds.split()
        asks = cut.turns[0][1]
        assert asks in row.first
        assert (asks.startswith("What of ") and "\n" not in asks) if holds else "What of" in asks or "Product" in asks


def test_passages_without_a_prompt_beside_them() -> None:
    found, rows = found_in(lambda n: RULES, lambda n: f"Context: {texts(DRAW, 3)}\n\nQuestion: {query(DRAW)}")
    assert found.text == f"{RULES}\n\nContext: {{{{context}}}}\n\nQuestion:"
    assert all((cut := found.cut(row)) and not cut.unlike for row in rows)


def test_a_value_longer_than_the_context_leaves_its_row_out(tmp_path: Path) -> None:
    rows = [answered(f"{RULES}\nContext:\n{texts(DRAW, 2)}", f"{n} {query(DRAW)}", "a") for n in range(60)]
    rows.append(answered(f"{RULES}\nContext:\n{sentence(DRAW, 3000, 3000)}", "and this?", "a"))
    made(tmp_path / "task", write(tmp_path / "log.jsonl", rows))
    (line,) = [line for line in lines(tmp_path / "task" / "left_out.jsonl") if not line["kept"]]
    assert (line["line"], line["reason"]) == (61, TOO_LONG)


def test_rows_that_are_not_the_template_to_the_byte_are_listed(tmp_path: Path) -> None:
    def prompt(number: int) -> str:
        text = f"{RULES}\nName: {name()} Place: Rome{number}{' Place: x' if number == 9 else ''}\nStop."
        return text.replace("\n", "\n\n", 1) if number % 30 == 0 else text

    rows = [answered(prompt(n), f"{n} {query(DRAW)}", "a") for n in range(60)]
    made(tmp_path / "task", write(tmp_path / "log.jsonl", rows))
    listed = {line["line"]: (line["reason"], line["kept"]) for line in lines(tmp_path / "task" / "left_out.jsonl")}
    assert listed == {1: (SPACES, True), 31: (SPACES, True), 10: (UNCLEAR, False)}
    task = load_task(tmp_path / "task")
    for example in of_rows(task):
        rendered = render(task.template, (), example)["messages"][0]["content"]
        assert (rendered == rows[row_of(example)][0]["content"]) is (row_of(example) % 30 > 0)


def test_the_same_query_with_other_values_is_another_row(tmp_path: Path) -> None:
    rows = [answered(f"{RULES}\nToday is 2026-05-{1 + n % 28:02}.", f"day {n // 2}?", f"a{n}") for n in range(60)]
    made(tmp_path / "task", write(tmp_path / "log.jsonl", rows))
    assert len(kept(tmp_path / "task")) == 60
    assert load_task(tmp_path / "task").slots == ("today",)


def test_variants_are_taken_where_they_have_the_same_slots(tmp_path: Path) -> None:
    def prompt(number: int) -> str:
        ends = ("Never be rude.", "Never be rude.", "Do not be rude, ever.", "Shout at everybody.")[number % 4]
        today = f"\nToday is {date(DRAW)}." if number % 4 < 3 else ""
        return f"{RULES}{today}\nHere are rules.\n{ends}"

    rows = [answered(prompt(n), f"{n} {query(DRAW)}", "a") for n in range(80)]
    made(tmp_path / "task", write(tmp_path / "log.jsonl", rows), "--variants")
    task = load_task(tmp_path / "task")
    assert task.template.endswith("Today is {{today}}.\nHere are rules.\nNever be rude.")
    assert len(of_rows(task)) == 60
    listed = lines(tmp_path / "task" / "left_out.jsonl")
    assert {line["line"] % 4 for line in listed if line["reason"] == VARIANT and line["kept"]} == {3}
    (detail,) = {line["detail"] for line in listed if line["reason"] == OTHER_TEMPLATE and not line["kept"]}
    assert detail.startswith("a variant, template ") and detail.endswith(" of other slots: today")
    assert left_out(tmp_path / "task") == {OTHER_TEMPLATE: 20}


def test_secrets_in_slots_are_seen_and_taken_out(tmp_path: Path) -> None:
    rows = [
        answered(f"{RULES}\nMail: ann{n}@example.org\nPassword: hunter{n}22\nBoss: b@example.org", f"{n} x", "a")
        for n in range(40)
    ]
    log = write(tmp_path / "log.jsonl", rows)
    result = made(tmp_path / "kept", log)
    assert "kept, an e-mail address: 40" in result.output
    assert "kept, a password: 40" in result.output
    made(tmp_path / "clean", log, "--redact")
    task = load_task(tmp_path / "clean")
    assert task.slots == ("mail", "password")
    assert {json.dumps(example.slots) for example in of_rows(task)} == {
        json.dumps({"mail": "[e-mail address]", "password": "[password]"})
    }
    assert "b@example" not in task.template


def test_a_frame_reads_the_query_as_long_as_it_can_be() -> None:
    frame = Frame(("Say {today} ", " now.\n", "\nStop."), ("today", QUERY))
    assert frame.match("Say {today} x now.\na now.\nStop.\nStop.") == {"today": "x", "query": "a now.\nStop."}
    assert Frame(("a ", "\n\n", ""), ("b", QUERY)).match("a b c\n\nd\n\ne") == {"b": "b c", "query": "d\n\ne"}
    assert Frame(("",)).match("x") is None
    assert Frame(("",)).match(" \n") == {}
    assert Frame(("is ", " now"), ("a",)).match("is nowhere now") == {"a": "nowhere"}
