"""What old callers send: the template in another form is taken out, a changed one never reaches the adapter alone."""

# ruff: noqa: RUF001
from __future__ import annotations

import json
import random
import re
import unicodedata
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import pytest

from pilocal.server.near_miss import NearMisses
from pilocal.server.prompt_stripping import Chat, KnownPrompt
from pilocal.server.wording import squeeze
from pilocal.task import Example
from tests.served import EXAMPLES, TEMPLATE

ROOT = Path(__file__).parent.parent
CHINESE = (
    "你把一种颜色变成它的互补色。只用一个词回答，不要解释。红色的互补色是绿色。蓝色的互补色是橙色。黄色的互补色是紫色。"
    "如果颜色不在列表里，就回答不知道。回答必须是英文小写。"
)
JAPANESE = (
    "あなたは色を番号に変えます。\n赤は3、青は7、緑は12です。\n番号だけを書き、説明はしないでください。ガイドに従います"
)
RULES = {
    "task": "colours",
    "rules": [{"from": "red", "to": "ZOR"}, {"from": "blue", "to": "MIP"}],
    "max": 3,
    "end": True,
}
TEMPLATES = {
    **{f"{path.parent.name}/{path.name}": path.read_text() for path in sorted(ROOT.glob("examples/*/template*.md"))},
    "colours": TEMPLATE,
    "list": "You turn a colour into its complement. Answer with one word.\n- red is opposite green\n- blue is opposite "
    "orange\n- yellow is opposite purple\n",
    "chinese": CHINESE,
    "japanese": JAPANESE,
    "json": json.dumps(RULES, separators=(",", ":")),
    "accents": "Réponds à chaque question en français.\nN'écris qu'un mot: le prénom de l'élève, à côté de 1,5 €.",
    "korean": "각 색을 숫자로 바꾸세요.\n빨강은 3, 파랑은 7입니다.\n숫자만 쓰세요.",
}
QUERIES = (
    "what is red?",
    "  indented\n\n\ttwice ",
    "naïve e\u0301 \u00a0red",
    "红色是什么？",
    "def f(x):\r\n    return x\n",
)
MONDAY, HELLO = "Today is Monday.", "Hello, my friend."


def variant(draw: random.Random, text: str) -> str:
    """The same text in another form."""
    lines = text.split("\n")
    at = draw.randrange(len(lines))
    forms: list[Callable[[], str]] = [
        lambda: text.replace("\n", "\r\n"),
        lambda: text.replace("\n", "\r"),
        lambda: text.replace("\n", "\u2028"),
        lambda: "\n".join(line + " " * draw.randrange(4) for line in lines),
        lambda: "\n".join(line + "\t" for line in lines),
        lambda: "\n".join("    " + line for line in lines),
        lambda: "\n".join(line.lstrip() for line in lines),
        lambda: "\n".join([*lines[:at], "", *lines[at:]]),
        lambda: "\n".join(line for number, line in enumerate(lines) if line.strip() or number != at),
        lambda: re.sub(r"\n\n+", "\n", text),
        lambda: text.replace("\n", "\n\n"),
        lambda: "\ufeff" + text,
        lambda: f"\n{text}\n\n",
        lambda: str.strip(text),
        lambda: unicodedata.normalize("NFD", text),
        lambda: unicodedata.normalize("NFC", text),
        lambda: text.replace(" ", "\u00a0"),
        lambda: text.replace(" ", "  "),
        lambda: text.replace(" ", " \u200b"),
        lambda: text.replace(" ", "\u202f", draw.randrange(9)),
        lambda: text.replace(" ", "\n", draw.randrange(9)),
    ]
    for form in draw.sample(forms, k=draw.randrange(1, 3)):
        text = form()
    return text


def laid_out(draw: random.Random, text: Callable[[], str], query: str) -> tuple[Chat, Chat]:
    """A chat with one or two copies of the template, and what is left of it."""
    asked = {"role": "user", "content": query}

    def system(*texts: str) -> dict[str, str]:
        return {"role": "system", "content": "\n".join(texts)}

    def user(*texts: str) -> dict[str, str]:
        return {"role": "user", "content": "\n".join((*texts[:-1], "", texts[-1]) if len(texts) > 1 else texts)}

    kept = system(MONDAY)
    return draw.choice(
        [
            ([system(text()), asked], [asked]),
            ([system(text()), kept, asked], [kept, asked]),
            ([system(text(), MONDAY), asked], [kept, asked]),
            ([system(MONDAY, text()), asked], [kept, asked]),
            ([system(HELLO, text(), MONDAY), asked], [system(HELLO, "", MONDAY), asked]),
            ([system(text()), system(text()), asked], [asked]),
            ([system(text(), text()), asked], [asked]),
            ([system(text()), user(text(), query)], [asked]),
            ([user(text(), query)], [asked]),
            ([user(text(), text(), query)], [asked]),
            ([user(text(), MONDAY, query)], [user(MONDAY, query)]),
            (
                [{"role": "user", "content": f"{MONDAY}\n{text()}\n{query}"}],
                [user(MONDAY, query)],
            ),
        ]
    )


def edited(draw: random.Random, text: str) -> str:
    """A text that says something else, though little was changed."""
    parts = re.findall(r"\w+|\W+" if " " in text else r".", text)
    places = [number for number, part in enumerate(parts) if part[0].isalnum()]
    at, other = draw.sample(places, 2)
    lines = text.rstrip("\n").split("\n")
    sentences = re.split(r"(?<=[.!?。！？,，])", text)
    digits = [found.start() for found in re.finditer(r"\d", text)]
    number = draw.choice(digits) if digits else 0
    one, two = draw.choice(range(len(lines))), draw.choice(range(len(lines)))
    gone = draw.randrange(len(sentences))
    swapped = [*lines]
    swapped[one], swapped[two] = lines[two], lines[one]
    changed = [*parts]
    changed[at], changed[other] = parts[other], parts[at]
    return draw.choice(
        [
            "".join([*parts[:at], "purple" if " " in text else "紫", *parts[at + 1 :]]),
            "".join([*parts[:at], f"not {parts[at]}" if " " in text else f"不{parts[at]}", *parts[at + 1 :]]),
            "".join([*parts[:at], *parts[at + 1 :]]),
            "".join([*parts[:at], parts[at] + "s", *parts[at + 1 :]]),
            "".join(changed),
            f"{text[:number]}{(int(unicodedata.digit(text[number], 0)) + 1) % 10}{text[number + 1 :]}"
            if digits
            else "",
            "\n".join(swapped),
            "\n".join(lines[:one] + lines[one + 1 :]),
            "".join(sentences[:gone] + sentences[gone + 1 :]),
            text[: len(text) * 9 // 10],
            text.replace(".", "!", 1),
        ]
    )


@cache
def known(name: str) -> tuple[KnownPrompt, NearMisses]:
    return KnownPrompt(TEMPLATES[name], EXAMPLES), NearMisses(TEMPLATES[name])


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_that_means_the_same_is_taken_out_and_nothing_else(name: str) -> None:
    draw = random.Random(name)
    for _ in range(200):
        query = draw.choice(QUERIES)
        chat, left = laid_out(draw, lambda: variant(draw, TEMPLATES[name]), query)
        prompt, near = known(name)
        assert prompt.strip(chat) == left, chat
        assert not near.found_in(left)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_changed_template_is_a_near_miss(name: str) -> None:
    draw = random.Random(name)
    prompt, near = known(name)
    whole = squeeze(TEMPLATES[name])
    seen = 0
    while seen < 200:
        text = edited(draw, TEMPLATES[name])
        # A line put before or behind is context; and swapping equal words changes nothing.
        if not text or whole in squeeze(text) or len(squeeze(text)) < 0.7 * len(whole):
            continue
        chat, _ = laid_out(draw, partial(variant, draw, text), draw.choice(QUERIES))
        assert near.found_in(prompt.strip(chat)), chat
        seen += 1


def test_a_word_more_in_the_line_of_the_template_s_end_or_beginning_is_another_template() -> None:
    for name, template in TEMPLATES.items():
        prompt, near = known(name)
        text = template.strip()
        end = f"{text} not" if text[-1].isalnum() else f"{text}5" if text[-1] == "." else f"{text},"
        for changed in (f"Never {text}", f"x{text}", f"{text}.5", end):
            for role in ("system", "user"):
                chat = [{"role": role, "content": f"{changed}\n\n"}, {"role": "user", "content": "red"}]
                assert prompt.strip(chat) == chat, changed
                assert near.found_in(chat)


def test_two_templates_of_one_make_are_not_one_another() -> None:
    prompt, near = known("smart-home/template.md")
    other = re.sub(r"(?m)^(- \w+) \w+$", r"\1 XXX", TEMPLATES["smart-home/template.md"])
    chat = [{"role": "system", "content": other}, {"role": "user", "content": "dim the lamp"}]
    assert prompt.strip(chat) == chat
    assert near.found_in(chat)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_bare_query_and_a_foreign_system_message_are_no_near_misses(name: str) -> None:
    prompt, near = known(name)
    texts = [*QUERIES, MONDAY, "You are a helpful assistant.", "Answer in French.", ""]
    texts += [path.read_text() for path in sorted(ROOT.glob("pilocal/*/README.md"))]
    texts += [
        f"What does '{line}' mean?" for line in TEMPLATES[name].split("\n") if len(line) < 0.3 * len(TEMPLATES[name])
    ]
    texts += [each["query"] for each in rows(name)]
    for text in texts:
        chat = [{"role": "user", "content": text}]
        assert prompt.strip(chat) is chat
        assert not near.found_in(chat), text
        if len(text) < 100:
            assert not near.found_in([{"role": "system", "content": text}, *chat])


def rows(name: str) -> list[dict[str, str]]:
    path = ROOT / "examples" / name.split("/", maxsplit=1)[0] / "test.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def test_what_cannot_be_told_apart_stays_and_is_a_near_miss() -> None:
    prompt, near = known("colours")
    ask, done = {"role": "user", "content": "red"}, {"role": "assistant", "content": "I see."}
    for chat in (
        [{"role": "user", "content": TEMPLATE}],
        [{"role": "system", "content": TEMPLATE}],
        [{"role": "user", "content": TEMPLATE}, done, ask],
        [{"role": "user", "content": f"red\n\n{TEMPLATE}"}],
        [{"role": "user", "content": f"{TEMPLATE[:-10]}\n\nred"}],
        [{"role": "system", "content": f"{TEMPLATE}"}, {"role": "user", "content": f"{TEMPLATE.upper()}\n\nred"}],
    ):
        assert near.found_in(prompt.strip(chat)), chat


def test_shots_are_taken_out_in_another_form_as_well() -> None:
    prompt, _ = known("colours")
    ask = {"role": "user", "content": "what is red?"}
    shots = [
        {"role": "user", "content": "what  is\r\nred? "},
        {"role": "assistant", "content": "\ufeffZOR\n"},
        {"role": "user", "content": "and blue?"},
        {"role": "assistant", "content": "MIP"},
    ]
    system = {"role": "system", "content": TEMPLATE.replace("\n", "\r\n")}
    assert prompt.strip([system, *shots, ask]) == [ask]
    assert prompt.strip([system, *shots[:2], {"role": "assistant", "content": "KEL"}, ask])[0]["content"] == "KEL"
    assert prompt.strip([system, *shots]) == shots[2:]
    assert prompt.strip([*shots, ask]) == [*shots, ask]


def test_shots_of_several_turns_are_taken_out_whole() -> None:
    history = (("user", "red"), ("assistant", "ZOR"))
    prompt = KnownPrompt("Add.", [Example(id="1", query="again", answer="ZOR", history=history)])
    turns = [*history, ("user", "again"), ("assistant", "ZOR"), ("user", "blue")]
    chat = [{"role": role, "content": text} for role, text in (("system", "Add."), *turns)]
    assert prompt.strip(chat) == [{"role": "user", "content": "blue"}]


def test_every_character_is_the_same_in_every_canonical_form() -> None:
    for code in range(0x20, 0x10000):
        text = chr(code)
        if 0xD800 <= code < 0xE000 or unicodedata.is_normalized("NFD", text):
            continue
        texts = {squeeze(f"a {form} b") for form in (text, *(unicodedata.normalize(f, text) for f in ("NFC", "NFD")))}
        assert len(texts) == 1, hex(code)


def test_white_space_counts_only_between_words() -> None:
    assert squeeze('{"a": [1, 2]}') == squeeze('{\n\t"a":[1,2]\n}')
    assert squeeze("只用 一个\n词") == squeeze("只用一个词")
    assert squeeze("every one") != squeeze("everyone")
    assert squeeze("12 3") != squeeze("123")
    assert squeeze(" \n\ufeff") == ""
