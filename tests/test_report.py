"""The report: what is on the page, and that nothing on it comes from elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import pilocal
from pilocal.errors import InputError
from pilocal.evaluate.arms import ARMS
from pilocal.flow.listeners import Listeners
from pilocal.flow.opening import open_task
from pilocal.flow.run import run_task
from pilocal.report.page import LARGEST
from pilocal.report.theme import DARK, LIGHT, OF_CHARTS, SURFACES, TEXT, style_sheet
from pilocal.run_folder.log import StepLine
from tests.reports import Page, change, copy_of, page_of

MARKUP = "</script><img src=x onerror=alert(1)> \"'&lt;--><!-- </style></title> \x00\u202e"
"""What must be text wherever it stands."""


@pytest.fixture
def run(reported: Path, tmp_path: Path) -> Path:
    return copy_of(reported, tmp_path)


def test_a_run_ends_with_its_report(reported: Path) -> None:
    path = reported / "run" / "report.html"
    written = path.read_bytes()
    assert "report.html" not in json.dumps(json.loads((reported / "run" / "run.json").read_text())["steps"])
    assert pilocal.Run(reported / "run").report() == path
    assert path.read_bytes() == written
    changed = path.stat().st_mtime_ns
    flow = Listeners(warn=list[str]().append)
    run_task(reported, reported / "schedule.toml", reported / "run", until="evaluate", listeners=flow)
    assert path.stat().st_mtime_ns == changed
    assert not list(path.parent.glob(".report*"))


def test_the_page_has_the_scores_the_training_the_gate_and_where_it_comes_from(reported: Path) -> None:
    run = reported / "run"
    page = page_of(run)
    metrics, state = (json.loads((run / name).read_text()) for name in ("metrics.json", "run.json"))
    (scores,) = [
        picture["aria-label"] for picture in page.all("svg") if picture["aria-label"].startswith("Scores over")
    ]
    for arm in ARMS:
        assert page.text.count(arm.title) >= 2
        assert arm.title in scores
        assert f"{metrics['arms'][arm.name]['score']:.3f}" in page.text
        assert " to ".join(f"{bound:.3f}" for bound in metrics["arms"][arm.name]["interval"]) in page.text
    assert page.texts["h1"] == ["tiny"]
    assert page.texts["h2"][:3] == ["Score over prompt tokens", "What it saves", "The arms"]
    assert {f"stage {number}" for number in range(3)} <= set(page.texts["th"])
    assert {"passes", "refused"} & set(page.texts["span"])
    for word in (
        *state["versions"].values(),
        *state["inputs"].values(),
        state["base_sha256"],
        *metrics["retention"]["worst"]["query"].split(),
    ):
        assert word in page.text
    said = list[str]()
    with open_task(reported, reported / "schedule.toml", run, Listeners(warn=said.append)):
        assert [line for line in said if "more than one answer" in line]
    assert state["warnings"] == said
    assert set(said) <= set(page.texts["li"])


def test_nothing_on_the_page_comes_from_elsewhere(reported: Path) -> None:
    path = pilocal.Run(reported / "run").report()
    text = path.read_text(encoding="utf-8")
    assert len(text.encode()) < LARGEST / 4
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)|<script|<iframe|javascript:", text)
    page = Page(text)
    assert not {"script", "img", "iframe", "object", "embed", "base", "form", "image", "foreignobject"} & {
        name for name, _ in page.elements
    }
    for name, attributes in page.elements:
        assert not [key for key in attributes if key.startswith("on") or key in ("src", "srcset", "action")]
        for key in ("href", "xlink:href"):
            assert attributes.get(key, "#").startswith(("#", "data:,")), name
    (policy,) = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv")]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'")


def test_everything_is_named_for_those_who_do_not_see_it(reported: Path) -> None:
    page = page_of(reported / "run")
    levels = [int(name[1]) for name, _ in page.elements if re.fullmatch(r"h\d", name)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    pictures = page.all("svg")
    assert len(pictures) >= 2
    assert all(picture["role"] == "img" and len(picture["aria-label"]) > 30 for picture in pictures)
    assert len(page.all("figure")) == len(pictures) == len(page.all("figcaption"))
    assert len(page.all("table")) == len(page.all("caption")) > 5
    assert all(head.get("scope") in ("col", "row") for head in page.all("th"))
    for region in [each for _, each in page.elements if each.get("role") == "region"]:
        assert region["aria-label"]
        assert region["tabindex"] == "0"
    names = [each["id"] for _, each in page.elements if "id" in each]
    assert len(names) == len(set(names)) > 10
    used = re.findall(r'(?:href="|url\()#([\w-]+)', (reported / "run" / "report.html").read_text())
    assert set(used) <= set(names)
    assert page.all("html") == [{"lang": "en"}]


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return float(0.2126 * red + 0.7152 * green + 0.0722 * blue)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("surface", SURFACES)
def test_letters_and_lines_stand_out_in_both_themes(theme: Mapping[str, str], surface: str) -> None:
    for name in TEXT:
        dark, light = sorted((luminance(theme[name]), luminance(theme[surface])))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, name


def test_every_colour_is_one_of_the_two_themes(reported: Path) -> None:
    assert LIGHT.keys() == DARK.keys() == set(TEXT) | set(SURFACES) | {"line"}
    assert set(OF_CHARTS.values()) <= LIGHT.keys()
    rules = style_sheet()
    assert set(re.findall(r"var\(--(\w+)\)", rules)) <= LIGHT.keys()
    assert not re.findall(r"#[0-9a-f]{3,6}\b", rules[rules.index("*") :])
    text = pilocal.Run(reported / "run").report().read_text()
    pictures = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert all("var(--series0)" in picture and "var(--ink)" in picture for picture in pictures)
    assert not re.findall(r"#[0-9a-fA-F]{6}\b(?!\w)(?=[;\"])", "".join(pictures))


def test_what_comes_from_a_run_is_text_and_never_markup(run: Path) -> None:
    arms = [arm.name for arm in ARMS]
    lines = [json.loads(line) for line in (run / "answers.jsonl").read_text().splitlines()]
    for number, line in enumerate(lines):
        line.update(query=MARKUP, answer=MARKUP, **{arm: f"{MARKUP}{number}{arm}" for arm in arms})
    (run / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    entry = {"entry": MARKUP, "requests": 1} | dict.fromkeys(("base_full_prompt", "internalized"), 1.0)
    change(run / "metrics.json", lambda metrics: metrics.update(entries=[entry]))
    change(run / "metrics.json", lambda metrics: metrics["retention"]["worst"].update(query=MARKUP))
    census = {"examples": 1, "full": 0.1, "bare": 1.0, "entries": [{"entry": MARKUP, "nats": 1.0, "queries": 0}]}
    (run / "census.json").write_text(json.dumps(census))
    change(run / "run.json", lambda state: state["task"].update(name=MARKUP))
    change(run / "run.json", lambda state: state.update(warnings=[MARKUP]))
    change(run / "export" / "artefacts.json", lambda forms: forms.update({MARKUP: next(iter(forms.values()))}))
    page = page_of(run)
    seen = MARKUP.replace("\x00", "\ufffd")
    assert page.texts["h1"] == [seen]
    assert seen in page.texts["li"]
    assert sum(seen in cell for cell in page.texts["th"]) >= 2
    assert sum(seen in said for said in page.texts["dd"]) == len(lines) * (len(arms) + 1)
    assert not page.all("img") + page.all("script")
    assert not [each for _, each in page.elements if any(key.startswith("on") for key in each)]
    kept = {
        "html",
        "head",
        "meta",
        "title",
        "link",
        "style",
        "body",
        "header",
        "main",
        "section",
        "footer",
        "h1",
        "h2",
        "h3",
        "p",
    }
    kept |= {
        "div",
        "span",
        "code",
        "pre",
        "dl",
        "dt",
        "dd",
        "ol",
        "ul",
        "li",
        "figure",
        "figcaption",
        "table",
        "caption",
        "thead",
    }
    kept |= {"tbody", "tr", "th", "td", "svg", "g", "defs", "path", "use", "text", "tspan", "clippath", "rect"}
    assert {name for name, _ in page.elements} <= kept


def test_answers_that_differ_from_the_full_prompts_come_first(run: Path) -> None:
    arms = [arm.name for arm in ARMS]
    lines = []
    for number in range(60):
        said = dict.fromkeys(arms, "same") | {"base_query_only": "other"}
        said |= {"shipped": f"lost {number}"} if number % 10 == 9 else {}
        lines.append({"id": str(number), "query": f"query {number}", "answer": "same"} | said)
    (run / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = page_of(run)
    shown = [item for item in page.texts["li"] if item.startswith("query ")]
    assert len(shown) == 20
    assert [f"lost {number}" in shown[i] for i, number in enumerate(range(9, 60, 10))] == [True] * 6
    assert "The arms differ on 60 of 60 test queries. On 6 of them" in page.text
    first = shown[0]
    assert first.count("same") == 2  # the reference, and once for all arms that gave it
    assert "equals the reference" in first
    for line in lines:
        line.update(dict.fromkeys(arms, "same"))
    (run / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "All arms agree on all 60 test queries." in page_of(run).text


def test_money_is_the_price_of_the_tokens_that_are_saved(run: Path) -> None:
    arms = json.loads((run / "metrics.json").read_text())["arms"]
    saved = arms["base_full_prompt"]["prompt_tokens"] - arms["shipped"]["prompt_tokens"]
    assert "Money saved" not in page_of(run).text
    page = page_of(run, price=2.5)
    assert f"{saved * 2.5:,.2f}" in page.texts["dd"]
    assert f"pilocal report {run} --price 2.5" in page.texts["code"]
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="a price is a number from 0"):
            pilocal.Run(run).report(price=wrong)


def test_a_page_of_a_huge_run_stays_small(run: Path) -> None:
    arms = [arm.name for arm in ARMS]
    long = "<&\"'" * 25_000
    lines = [{"id": str(i), "query": long, "answer": long, **{arm: f"{arm}{long}" for arm in arms}} for i in range(40)]
    (run / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    scores = dict.fromkeys(("base_full_prompt", "internalized"), 0.5)
    entries = [{"entry": f"{i} {long[:2000]}", "requests": 2, **scores} for i in range(3000)]
    change(run / "metrics.json", lambda metrics: metrics.update(entries=entries))
    change(run / "run.json", lambda state: state.update(warnings=[long] * 500))
    (run / "entries.svg").write_text(f"<svg xmlns='http://www.w3.org/2000/svg'><text>{'x' * LARGEST}</text></svg>")
    known: dict[str, Any] = dict.fromkeys(("learning_rate", "gradient_norm", "padding", "seconds", "loss"), 0.1)
    known |= dict.fromkeys(("trained_tokens", "prompt_tokens", "computed_tokens", "peak_memory"), 10)
    log = "".join(StepLine(step=i, valid_loss=0.1, **known).as_json() + "\n" for i in range(1, 20_001))
    (run / "stages" / "2" / "metrics.jsonl").write_text(log)
    path = pilocal.Run(run).report()
    assert path.stat().st_size < LARGEST
    assert "20,000" in Page(path.read_text()).texts["td"]


def test_pictures_of_others_bring_in_nothing_but_shapes(run: Path) -> None:
    svg = (
        "<svg xmlns='http://www.w3.org/2000/svg' xmlns:xlink='http://www.w3.org/1999/xlink' onload='a()'>"
        "<script>alert(1)</script><foreignObject><p>hello</p></foreignObject><image href='http://a.b/c.png'/>"
        "<style>@import 'http://a.b'</style><use xlink:href='http://a.b#c'/><a href='javascript:a()'><text>b</text></a>"
        "<path id='p' d='M 0 0' style='fill: url(http://a.b)' onclick='a()'/><g clip-path='url(http://a.b)'/>"
        "<use xlink:href='#p' style='fill: #0a6ebd'/><text>kept &lt;b&gt;</text></svg>"
    )
    entry = {"entry": "red", "requests": 1, "base_full_prompt": 1.0, "internalized": 1.0}
    change(run / "metrics.json", lambda metrics: metrics.update(entries=[entry]))
    (run / "entries.svg").write_text(svg)
    text = pilocal.Run(run).report().read_text()
    (shown,) = [part for part in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL) if "need each entry" in part]
    inside = shown[shown.index(">") + 1 :]
    assert inside == (
        '<use></use><path id="entries-p" d="M 0 0"></path><g></g>'
        '<use href="#entries-p" style="fill: var(--series0)"></use><text>kept &lt;b&gt;</text></svg>'
    )
    for broken in ("<svg", "<html xmlns='http://www.w3.org/1999/xhtml'/>", ""):
        (run / "entries.svg").write_text(broken)
        assert "need each entry" not in "".join(each["aria-label"] for each in page_of(run).all("svg"))
