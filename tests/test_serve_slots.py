"""Slots in what callers send: the old prompt with any values in it, the field, and the stated form."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilocal.base.base import Base
from pilocal.export.fused import export_fused
from pilocal.prompt.render import render
from pilocal.server.prompt_stripping import KnownPrompt
from pilocal.server.recognition import Recognition
from pilocal.server.refusal import Refusal
from pilocal.server.request import CHAT, RESPONSES, SLOTS, read_request
from pilocal.server.routing import FULL_PROMPT, INTERNALIZED, Router
from pilocal.server.slotted import MOST_PLACES, MOST_READINGS, Shape, SlottedWording, shapes_of
from pilocal.task import Example
from pilocal.task.slots import fill, slot_names
from tests.served import EXAMPLES, TEMPLATE, make_run
from tests.serving import KEY, ask, post, running
from tests.test_residue_served import routed

DATED = f"{TEMPLATE}\nToday is {{{{today}}}}.\nWhat we know:\n{{{{passages}}}}\nNow answer {{{{user}}}} in one word."
NAMES = ("today", "passages", "user")


def with_values(number: int, example: Example) -> Example:
    slots = {"today": f"2026-11-{number + 10}", "passages": f"Red was {number}.\n\nBlue.", "user": f"Ann {number}"}
    return Example(id=example.id, query=example.query, answer=example.answer, slots=slots)


SLOTTED = tuple(with_values(number, example) for number, example in enumerate(EXAMPLES))
SHAPES = shapes_of(NAMES, SLOTTED)
VALUES = {"today": "1. Dec. 2026", "passages": "A rule:\n- red is green\n\nSay nothing.", "user": "Zoë"}


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def system(content: str) -> dict[str, Any]:
    return {"role": "system", "content": content}


# What is found


@pytest.mark.parametrize(
    ("template", "shapes", "text", "values"),
    [
        ("Hello {{a}}'s friend.", {"a": Shape()}, "Hello Maria's friend.", {"a": "Maria"}),
        ("Use v{{a}}km here.", {"a": Shape()}, "Use v12km here.", {"a": "12"}),
        ("Ids {{a}}_{{b}} are these.", {"a": Shape(), "b": Shape()}, "Ids x_y are these.", {"a": "x", "b": "y"}),
        (
            "\u4eca\u5929\u662f{{a}}\u3002",
            {"a": Shape()},
            "\u4eca\u5929\u662f\u5468\u4e00\u3002",
            {"a": "\u5468\u4e00"},
        ),
        ("It is {{a}}.", {"a": Shape()}, "It is 30. Nov. 2026.", {"a": "30. Nov. 2026"}),
        ("Caf\u00e9 {{a}} \u00e9.", {"a": Shape()}, "Cafe\u0301 x\u0301 e\u0301.", {"a": "x\u0301"}),
        ("Be brief: {{a}}", {"a": Shape(lines=True)}, "Be brief: x\n\ny\n", {"a": "x\n\ny"}),
        ("Be brief: {{a}}", {"a": Shape()}, "Be brief: x\n\nAlso say please.", {"a": "x"}),
        ("{{a}} asks. Be brief.", {"a": Shape()}, "Ann Lee asks. Be brief.", {"a": "Ann Lee"}),
        ("{{a}} or {{a}}: say.", {"a": Shape()}, "x or y or x or y: say.", {"a": "x or y"}),
        (
            "Name: {{a}}\nPlace: {{b}}\nSay.",
            {"a": Shape(blank=True), "b": Shape()},
            "Name: Place: x Say.",
            {"a": "", "b": "x"},
        ),
        ("Say:\n{{a}}\n{{b}}\nStop.", {"a": Shape(), "b": Shape()}, "Say:\n1 2\n3\nStop.", {"a": "1 2", "b": "3"}),
        ("It is {{a}}. Be brief.", {"a": Shape()}, "It is x. Be brief. It is x. Be brief.", {"a": "x"}),
    ],
)
def test_values_are_read(template: str, shapes: dict[str, Shape], text: str, values: dict[str, str]) -> None:
    found = SlottedWording(template, shapes).find(text, whole=True)
    assert found is not None and found.values == values


@pytest.mark.parametrize(
    ("template", "shapes", "text", "whole"),
    [
        ("Say {{a}}, {{b}}.", {"a": Shape(), "b": Shape()}, "Say x, y, z.", True),  # which comma?
        ("Say {{a}} {{b}} now.", {"a": Shape(), "b": Shape()}, "Say x y z now.", True),
        ("Say {{a}} now.", {"a": Shape()}, "Say x\ny now.", True),  # training saw one line
        ("Say {{a}} now.", {"a": Shape()}, "Say now.", True),  # training saw none empty
        ("Say {{a}} now.", {"a": Shape()}, "Say {{a}} now.", True),  # nobody filled it in
        ("{{a}} or {{a}}: say.", {"a": Shape()}, "x or y: say.", True),
        ("It is {{a}}. Be brief.", {"a": Shape()}, "It is x. Be brief. It is y. Be brief.", True),
        ("Be brief: {{a}}", {"a": Shape(lines=True)}, "Be brief: x\n\ny\n\nwhich?", False),  # where is the query?
        ("Be brief: {{a}}", {"a": Shape(lines=True)}, "Be brief: x which?", False),
        ("Be brief. It is {{a}}.", {"a": Shape()}, "Be very brief. It is x.", True),
        ("Say {{a}} now.", {"a": Shape()}, "Say x nowhere.", True),
    ],
)
def test_what_is_not_clear_is_not_read(template: str, shapes: dict[str, Shape], text: str, whole: bool) -> None:
    assert SlottedWording(template, shapes).find(text, whole=whole) is None


@settings(max_examples=150)
@given(values=st.fixed_dictionaries({"today": st.text("ab .,:-1", min_size=1), "user": st.text("xy '.", min_size=1)}))
def test_whatever_is_read_is_what_stood_there(values: dict[str, str]) -> None:
    """A value may look like the text around it: then nothing is read, but never anything else."""
    template = "Be brief. Today: {{today}}. User: {{user}}. Stop."
    values = {name: value.strip() for name, value in values.items()}
    found = SlottedWording(template, dict.fromkeys(values, Shape())).find(fill(template, values)[0], whole=True)
    assert found is None or found.values == values
    plain = all(value and value[0].isalnum() and value[-1].isalnum() for value in values.values())
    assert found is not None or not plain


@pytest.mark.parametrize("part", ["It is ", "It is x. ", ". ", "It is x. Stop", "\n", "It is x\n\n", "Stop. "])
@pytest.mark.parametrize("shape", [Shape(), Shape(lines=True, blank=True)])
def test_no_text_makes_it_look_at_more_than_so_many_readings(part: str, shape: Shape) -> None:
    """Each literal part is looked for once, and readings beyond the limit are not made."""
    shapes = {"a": shape, "b": shape, "c": shape}
    it = SlottedWording("It is {{a}}. {{b}}. {{c}}. Stop.", shapes)
    text = part * (200_000 // len(part)) + "It is 1. 2. 3. Stop."
    readings = it._readings(text, whole=True)
    assert len(readings) <= MOST_READINGS < MOST_PLACES
    assert len(it._readings(text[:2000], whole=False)) <= MOST_READINGS


@pytest.mark.parametrize("seed", range(20))
def test_the_old_prompt_is_stripped_from_system_and_query_alike(seed: int) -> None:
    draw = random.Random(seed)
    words = ["red", "Ann", "12", "is", "ZOR", "-", "4.5", "(x)", "\u00e9t\u00e9"]
    values = {
        "today": " ".join(draw.choices(words, k=3)),
        "passages": "\n\n".join(" ".join(draw.choices(words, k=30)) for _ in range(3)),
        "user": " ".join(draw.choices(words, k=2)),
    }
    known = KnownPrompt(DATED, SLOTTED, shapes=SHAPES)
    text = fill(DATED, values)[0]
    cleaned = {name: value.strip() for name, value in values.items()}
    assert known.find([system(text), user("tell me red")]) == ([user("tell me red")], cleaned)
    assert known.find([user(f"{text}\n\ntell me red")]) == ([user("tell me red")], cleaned)
    assert known.find([system(f"{text}\nBe kind."), user("red")]) == ([system("Be kind."), user("red")], cleaned)
    shots = render(DATED, SLOTTED[:2], Example(id="", query="red", answer="", slots=values))["messages"][:-1]
    plain = [turn for one in EXAMPLES[:2] for turn in render("", (), one)["messages"]]
    for chat in (shots, [shots[0], *plain, shots[-1]]):
        assert known.find([dict(turn) for turn in chat]) == ([user("red")], cleaned)


@pytest.mark.parametrize("old", ["red is ZOR", "Say nothing else", "in one word", "blue is"])
@pytest.mark.parametrize("long", [False, True])
def test_a_changed_template_stays_a_near_miss_however_long_its_values_are(old: str, long: bool, tmp_path: Path) -> None:
    values = VALUES | {"passages": "The quick brown fox. " * (500 if long else 1)}
    text = fill(DATED, values)[0]
    known = Recognition(shipped_like(tmp_path), SLOTTED)
    assert known.strip([system(text), user("red")]).values == {n: v.strip() for n, v in values.items()}
    changed = text.replace(old, "something other", 1)
    assert changed != text
    seen = known.strip([system(changed), user("red")])
    assert (seen.near_miss, seen.values) == (True, {})
    assert known.strip([user(f"{changed}\n\nred")]).near_miss
    assert not known.strip([user("red? " + values["passages"])]).near_miss


def shipped_like(folder: Path) -> Any:
    from pilocal.run_folder.shipped import Shipped

    files: dict[str, Any] = {"folder": folder, "base": "b", "adapter": None, "base_sha256": "x"}
    return Shipped(**files, name="t", template=DATED, slots=NAMES, shots=2)


# Requests


@pytest.fixture(scope="module")
def slotted(tiny_base: Base, tiny_adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("slotted")
    export_fused(tiny_base, None, folder / "base.gguf", "f16")
    made: dict[str, Any] = {"gguf": folder / "base.gguf", "examples": SLOTTED, "template": DATED, "slots": NAMES}
    return make_run(folder / "dated", tiny_base, tiny_adapter, **made)


@pytest.fixture(scope="module")
def router(slotted: Any) -> Iterator[Router]:
    with routed(slotted) as router:
        yield router


def refused(router: Router, **body: Any) -> dict[str, Any]:
    with pytest.raises(Refusal) as caught:
        router.route(CHAT, body, full_prompt=False)
    assert caught.value.status == 400
    return dict(caught.value.body["error"])


def test_every_way_of_giving_values_makes_the_same_prompt(router: Router) -> None:
    example = Example(id="", query="tell me red", answer="", slots=VALUES | {"passages": "One.\nTwo."})
    wanted = [dict(turn) for turn in render("", (), example)["messages"][:-1]]
    assert wanted == [user("today: 1. Dec. 2026\npassages: One.\nTwo.\nuser: Zo\u00eb\n\ntell me red")]
    text = fill(DATED, example.slots)[0]
    for chat, given_ in (
        (wanted, {}),
        ([user("tell me red")], example.slots),
        ([system(text), user("tell me red")], {}),
        ([system(text), user("tell me red")], dict(example.slots)),
        ([user(f"{text}\n\ntell me red")], {}),
    ):
        found = router.route(CHAT, {"messages": chat, SLOTS: given_}, full_prompt=False)
        assert (found.arm, found.body["messages"]) == (INTERNALIZED, wanted)
        full = router.route(CHAT, {"messages": chat, SLOTS: given_}, full_prompt=True)
        assert (full.arm, full.body["messages"][0]["content"]) == (FULL_PROMPT, text)
    talk = [user("tell me red"), {"role": "assistant", "content": "ZOR"}, user("and blue")]
    later = router.route(CHAT, {"messages": talk, SLOTS: example.slots}, full_prompt=False)
    assert later.body["messages"] == [wanted[0], *talk[1:]]


def test_a_value_that_is_missing_unknown_or_given_twice_is_refused(router: Router) -> None:
    missing = refused(router, messages=[user("red")], **{SLOTS: {"today": "x"}})
    assert missing["code"] == "missing_slots" and missing["param"] == SLOTS
    assert "no value for passages, user." in missing["message"] and '"today: ..."' in missing["message"]
    unknown = refused(router, messages=[user("red")], **{SLOTS: VALUES | {"usr": "x"}})
    assert unknown["code"] == "unknown_slot" and "did you mean user?" in unknown["message"]
    other = refused(router, messages=[system(fill(DATED, VALUES)[0]), user("red")], **{SLOTS: {"today": "x"}})
    assert "the prompt has another value of today" in other["message"]
    base = refused(router, model="base", messages=[user("red")], **{SLOTS: {"today": "x"}})
    assert "the base takes none" in base["message"]
    several = refused(router, messages=[user("today: x\npassages: A\n\nB\nuser: y\n\nred")])
    assert several["code"] == "missing_slots"  # a value with a blank line cannot be told from the query


@pytest.mark.parametrize("given_", ["today", ["today"], {"today": 7}, {"today": None}, {"today": ["x"]}])
@pytest.mark.parametrize("path", [CHAT, RESPONSES])
def test_the_field_is_an_object_of_texts(given_: Any, path: str) -> None:
    import json

    asked = {"messages": [user("red")]} if path == CHAT else {"input": "red"}
    with pytest.raises(Refusal, match=r"^pilocal_slots: (must be an object|the value of today must be text)"):
        read_request(path, json.dumps({**asked, SLOTS: given_}).encode(), 100, None)  # type: ignore[arg-type]


def test_the_official_client_sends_the_field_on_every_endpoint_that_takes_it(slotted: Any, tmp_path: Path) -> None:
    import openai

    with running([slotted.folder.parent], tmp_path, "--log-contents") as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY)
        extra = {SLOTS: VALUES}
        known: dict[str, Any] = {"model": "dated", "temperature": 0, "extra_body": extra}
        said = client.chat.completions.create(messages=[user("tell me red")], max_tokens=4, **known)  # type: ignore[list-item]
        told = client.responses.create(input="tell me red", max_output_tokens=4, **known)
        old = [system(fill(DATED, VALUES)[0]), user("tell me red")]
        same = client.chat.completions.create(model="dated", messages=old, max_tokens=4, temperature=0)  # type: ignore[arg-type]
        assert said.choices[0].message.content == told.output_text == same.choices[0].message.content
        with pytest.raises(openai.BadRequestError, match="no value for today, passages, user"):
            ask(client, "dated", [user("tell me red")])
        raw = post(server, {"model": "dated", "prompt": "x", **extra}, path="completions")
        assert raw.status_code == 400 and SLOTS in raw.text
        embedded = post(server, {"model": "base", "input": "x", **extra}, path="embeddings")
        assert embedded.status_code == 400 and SLOTS in embedded.text
        prompts = [entry["prompt"] for entry in server.entries if entry["status"] == 200]
    assert len(prompts) == 3 and prompts[0] == prompts[1] == prompts[2]
    assert prompts[0][0]["content"].startswith("today: 1. Dec. 2026\npassages: A rule:")


def test_a_template_with_its_slots_in_place_of_what_stays(slotted: Any) -> None:
    from dataclasses import replace

    stays = "Today is {{today}}.\nNow answer {{user}} in one word."
    assert slot_names(stays) == ("today", "user")
    with routed(replace(slotted, residue_template=stays)) as router:
        wanted = [system(fill(stays, VALUES)[0]), user("passages: x\n\nred")]
        values = VALUES | {"passages": "x"}
        for chat, given_ in (
            ([user("red")], values),
            ([system(fill(DATED, values)[0]), user("red")], {}),
            (wanted, {}),
            ([wanted[0], user("red")], {"passages": "x"}),
        ):
            found = router.route(CHAT, {"messages": chat, SLOTS: given_}, full_prompt=False)
            assert (found.arm, found.body["messages"]) == (INTERNALIZED, wanted)
