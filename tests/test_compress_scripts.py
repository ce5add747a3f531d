"""Claims about templates of many scripts and forms: each tau is met, or a warning names it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
import regex
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from pilocal.base.base import Base
from pilocal.base.language_model import BaseModel
from pilocal.cli import cli
from pilocal.compress import TOLERANCE, CompressedTemplate, Tools, compress_template
from pilocal.compress.borders import is_border, pieces, structure
from pilocal.compress.llmlingua2 import place_levels
from pilocal.compress.outline import Outline
from pilocal.compress.protect import Place
from pilocal.compress.removal import WordRemoval, remove
from pilocal.compress.rules import Rules, removals
from pilocal.flow.listeners import Listeners
from pilocal.flow.opening import open_task
from pilocal.prompt.tokens import token_counter
from pilocal.starter.episodes import invent
from pilocal.task import Compression
from tests import texts
from tests.test_compress import TEMPLATES, words
from tests.test_flow import make_task

FOLDER = Path(__file__).parent / "templates"
FORMS = {path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.txt"))}
BAR = (0.9, 0.67, 0.5, 0.33, 0.1)
GRID = tuple(n / 40 for n in range(1, 40))
METHODS = ("rules", "surprisal")
SPACELESS = [name for name, text in FORMS.items() if max(map(len, text.split())) > 100]


class Levels(WordRemoval):
    """LLMLingua-2's way from judged words to a text, with a level drawn for every character."""

    name = "levels"

    def scores(self, outline: Outline) -> Sequence[float]:
        """Return a level for each word."""
        return self.part_scores(outline.template, outline.spans)

    def part_scores(self, template: str, places: Sequence[Place]) -> Sequence[float]:
        """Return a level for each place."""
        draw = Random(0)
        return place_levels(template, places, [(char, draw.randrange(100)) for char in template if char.strip()])


@pytest.fixture(scope="module")
def tools(starter: Base) -> Tools:
    model = BaseModel(starter)
    model.close = lambda: None  # type: ignore[method-assign]  # every template is read with it
    return Tools(
        count_tokens=cache(token_counter(starter.tokenizer)),
        base_id="starter",
        folder=starter.folder,
        load_model=lambda: model,
        download=NotImplemented,
    )


def counting(count: Callable[[str], int]) -> Tools:
    """Return tools without a base."""
    return Tools(count_tokens=count, base_id="", folder=Path(), load_model=NotImplemented, download=NotImplemented)


def shorten(
    template: str, method: str, taus: Sequence[float], tools: Tools, folder: Path, **lists: Any
) -> tuple[CompressedTemplate, ...]:
    return compress_template(template, taus, Compression(method=method, **lists), tools, folder)


def clusters(text: str) -> list[str]:
    """Return the grapheme clusters of a text, as another program finds them, without spaces."""
    return [cluster for cluster in regex.findall(r"\X", text) if cluster.strip()]


def is_part(inner: Sequence[str], outer: Sequence[str]) -> bool:
    """Tell whether `outer` has all of `inner`, in its order."""
    rest = iter(outer)
    return all(each in rest for each in inner)


def test_the_templates_are_of_many_scripts_and_forms() -> None:
    assert len(FORMS) >= 20
    assert all(len(text) >= 80 for text in FORMS.values())
    assert {"chinese", "thai", "json-minified", "emoji-only"} <= set(SPACELESS)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("form", FORMS)
def test_every_tau_is_met(form: str, method: str, tools: Tools, tmp_path: Path) -> None:
    results = shorten(FORMS[form], method, BAR, tools, tmp_path)
    assert [round(result.ratio, 3) for result in results if result.is_off] == []
    assert all(0 < result.ratio <= result.tau for result in results)


@pytest.mark.parametrize("form", FORMS)
def test_every_tau_is_met_by_judged_words(form: str, tools: Tools) -> None:
    levels, whole = Levels(Compression(), tools), tools.count_tokens(FORMS[form])
    for tau in BAR:
        assert tau - TOLERANCE <= tools.count_tokens(levels.compress(FORMS[form], tau)) / whole <= tau


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("form", FORMS)
def test_texts_are_nested_and_no_cluster_is_cut(form: str, method: str, tools: Tools, tmp_path: Path) -> None:
    results = shorten(FORMS[form], method, (1.0, *reversed(GRID)), tools, tmp_path)
    for more, fewer in pairwise(results):
        assert fewer.tokens <= more.tokens
        assert is_part(clusters(fewer.text), clusters(more.text)), fewer.tau


@pytest.mark.parametrize("count", [words, len])
@settings(max_examples=60)
@given(template=TEMPLATES, tau=st.floats(0.01, 0.99))
def test_what_meets_tau_is_removed_as_before(count: Callable[[str], int], template: str, tau: float) -> None:
    outline, config = Outline(template), Compression()
    plain = remove(outline, removals(outline, config), tau, count)
    if count(plain) and count(plain) >= (tau - TOLERANCE) * count(template):
        assert Rules(config, counting(count)).compress(template, tau) == plain


@pytest.mark.parametrize("seed", range(5))
def test_long_templates_with_spaces_keep_whole_words(seed: int, tools: Tools, tmp_path: Path) -> None:
    template = invent(seed).template
    for method in METHODS:
        for result in shorten(template, method, GRID, tools, tmp_path / method):
            assert is_part(result.text.split(), template.split())


@pytest.mark.parametrize("form", ["json-minified", "json-chinese"])
@pytest.mark.parametrize("method", METHODS)
def test_json_stays_json(form: str, method: str, tools: Tools, tmp_path: Path) -> None:
    for result in shorten(FORMS[form], method, GRID[4:], tools, tmp_path):
        assert json.loads(result.text).keys() <= json.loads(FORMS[form]).keys()


def test_a_template_of_code_keeps_the_marks_of_its_fence(tools: Tools, tmp_path: Path) -> None:
    lines = FORMS["code-fence"].strip().split("\n")
    for result in shorten(FORMS["code-fence"], "rules", GRID[4:], tools, tmp_path):
        first, *body, last = result.text.split("\n")
        assert (first, last) == ("```python", "```")
        assert body[:-1] == lines[1 : len(body)]


@pytest.mark.parametrize("method", METHODS)
def test_texts_to_keep_outlive_the_rest_of_a_text_without_spaces(method: str, tools: Tools, tmp_path: Path) -> None:
    template = "你是图书馆的助手。读者的名字是{用户名}、回答里不要出现。历史在一号、科学在二号。不要说客气话。"
    for result in shorten(template, method, GRID, tools, tmp_path, keep=("用户",)):
        assert not set("{}用户名") & set(result.text) or "{用户名}" in result.text
        assert "{用户名}" in result.text or result.tau < 0.25


def test_texts_to_drop_first_go_first_from_a_text_without_spaces() -> None:
    template = "你是图书馆的助手、只回答编号。请不要说客气话。历史在一号、科学在二号。小说在三号。"
    text = Rules(Compression(drop_first=("客气",)), counting(len)).compress(template, 0.81)
    assert text == template.replace("请不要说客气话。", "")


def test_sentences_go_before_clauses_and_clauses_before_characters() -> None:
    template = "甲甲甲甲、乙乙乙乙。丙丙丙丙。丁丁丁丁、戊戊戊戊。"
    rules = Rules(Compression(), counting(len))
    assert rules.compress(template, 0.6) == "甲甲甲甲、乙乙乙乙。丙丙丙丙。"
    assert rules.compress(template, 0.8) == "甲甲甲甲、乙乙乙乙。丙丙丙丙。丁丁丁丁、"
    assert rules.compress("甲乙丙丁戊己庚辛壬癸", 0.7) == "甲乙丙丁戊己庚"


def test_the_least_surprising_sentences_go_first(tools: Tools, tmp_path: Path) -> None:
    orders = [shorten(FORMS["chinese"], method, (0.67,), tools, tmp_path / method)[0].text for method in METHODS]
    assert FORMS["chinese"].startswith(orders[0])
    assert not FORMS["chinese"].startswith(orders[1])


def test_borders_are_where_another_program_sees_them() -> None:
    draw = Random(0)
    chars = [*texts.MARKS, *texts.INVISIBLE, *texts.EMOJI, *texts.LETTERS, *texts.CONTROL, *"각각ᄀᄀ가각กำเก็ບຳक्षि"]
    for _ in range(2000):
        text = "".join(draw.choices(chars, k=8))
        ends = {match.end() for match in regex.finditer(r"\X", text)}
        assert {at for at in range(1, len(text)) if is_border(text, at)} <= ends, ascii(text)


@given(text=st.text(max_size=60) | st.text('{}[]",:\\ua1<>`.。\n ', max_size=60))
def test_parts_are_all_of_the_text(text: str) -> None:
    for places in (pieces(text, []), sorted(place for part in structure(text, []) for place in part)):
        assert not places or "".join(text[start:end] for start, end in places) == text


@pytest.mark.parametrize("depth", [30, 900, 20_000])
def test_deep_json_is_no_trouble(depth: int, tmp_path: Path) -> None:
    template = '{"a":[' * depth + '"一二三四五。六七八九十。"' + "]}" * depth
    (result,) = shorten(template, "rules", (0.5,), counting(len), tmp_path)
    assert len(result.text) <= len(template) / 2


def check(folder: Path, *options: str) -> list[str]:
    """Return what `pilocal check` warns of."""
    found = CliRunner().invoke(cli, ["check", str(folder), "--no-probe", "--json", *options], catch_exceptions=False)
    assert found.exit_code == 0
    return [line for line in found.stderr.splitlines() if line.startswith("warning: ")]


def test_check_and_run_name_every_stage_that_misses_its_tau(tmp_path: Path, tiny_base: Base) -> None:
    folder = make_task(tmp_path / "task", tiny_base.folder)
    assert check(folder, "--schedule", str(folder / "schedule.toml")) == []
    (folder / "template.md").write_text("`answer with the name of the colour`")
    (line,) = check(folder)
    assert line.startswith(f"warning: {folder / 'template.md'}: rules misses tau by more than 0.1")
    assert ": stage 1 has 0.000 for tau 0.6667, stage 2 has 0.000 for tau 0.3333; take other taus" in line
    said: list[str] = []
    with open_task(folder, folder / "schedule.toml", None, Listeners(warn=said.append)) as context:
        assert context.templates and context.templates
    assert [text.count("stage") for text in said] == [1]
    ran = CliRunner().invoke(cli, ["compress", str(folder)], catch_exceptions=False)
    assert [line] == [each for each in ran.stderr.splitlines() if each.startswith("warning: ")]
    look = CliRunner().invoke(cli, ["compress", str(folder), "--tau", "0.5", "--tau", "0.05"], catch_exceptions=False)
    assert "warning: rules misses tau by more than 0.1: 0.000 for tau 0.5\n" in look.stderr


def test_a_chinese_template_falls_in_steps(tmp_path: Path, tiny_base: Base) -> None:
    folder = make_task(tmp_path / "task", tiny_base.folder)
    shutil.copyfile(FOLDER / "chinese.txt", folder / "template.md")
    for method in METHODS:
        (folder / "task.toml").write_text((folder / "task.toml").read_text().split("[compression]")[0])
        with (folder / "task.toml").open("a") as file:
            file.write(f'[compression]\nmethod = "{method}"\n')
        assert check(folder) == []
