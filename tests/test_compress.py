"""Claims about shortening a template."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilocal.compress import CompressedTemplate, Tools, compress_template
from pilocal.compress.outline import Outline
from pilocal.compress.protect import check_texts
from pilocal.compress.rules import Rules, removals
from pilocal.errors import InputError
from pilocal.starter.episodes import invent
from pilocal.task import Compression

TAUS = tuple(n / 20 for n in range(21))

LINES = st.sampled_from(
    [
        "# Title",
        "## Part",
        "Rules:",
        "1. Always answer in one line.",
        "2. Never say why. Use {name}.",
        "- lamp BAK",
        "  - indented entry",
        "* fan DUL",
        "",
        "---",
        "```bash\nls -l\n\nwc -l\n```",
        "```",
        "<USER>:",
        "<AGENT>:",
        "Please note that this is only a friendly remark. It helps. Have a look at 'this thing'!",
        "Words and  more words \u2028 in a line long enough to be taken apart when its turn has come at last, ok?",
        "\tTabs\tand trailing spaces   ",
        "Ünïcödé, 漢字 und `code with spaces` stand here.",
    ]
)
TEMPLATES = st.lists(LINES, max_size=14).map("\n".join)


def words(text: str) -> int:
    return len(text.split())


def letters_in_pairs(text: str) -> int:
    """A counter that, like byte pairs, may count more after a removal."""
    return (len(text) + 1) // 2 + text.count("e") % 3


@pytest.fixture(scope="module")
def starter_tokens() -> Callable[[str], int]:
    from tokenizers import Tokenizer

    import pilocal.starter

    tokenizer = Tokenizer.from_file(str(Path(pilocal.starter.__file__).parent / "model" / "tokenizer.json"))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def tools(count: Callable[[str], int] = words, base: str = "words") -> Tools:
    def needless(*_: object) -> NoReturn:
        raise AssertionError("rules needs no model")

    return Tools(count_tokens=count, base_id=base, folder=Path(), load_model=needless, download=needless)


def compress(template: str, tau: float, count: Callable[[str], int] = words, **settings: Any) -> str:
    return Rules(Compression(**settings), tools(count)).compress(template, tau)


@settings(max_examples=60)
@given(template=TEMPLATES, taus=st.lists(st.floats(0, 1), min_size=2, max_size=5))
@pytest.mark.parametrize("count", [words, len, letters_in_pairs])
def test_a_smaller_tau_never_has_more_tokens(count: Callable[[str], int], template: str, taus: list[float]) -> None:
    rules = Rules(Compression(), tools(count))
    texts = [rules.compress(template, tau) for tau in sorted(taus)]
    for smaller, larger in pairwise(texts):
        assert count(smaller) <= count(larger)


@settings(max_examples=60)
@given(template=TEMPLATES, tau=st.floats(0, 1))
def test_the_budget_is_never_exceeded(template: str, tau: float) -> None:
    for count in (words, len):
        text = compress(template, tau, count)
        assert count(text) <= tau * count(template)


@settings(max_examples=60)
@given(template=TEMPLATES, tau=st.floats(0, 1), part=st.floats(0, 1))
def test_texts_are_nested(template: str, tau: float, part: float) -> None:
    outer = iter(compress(template, tau).split())
    assert all(word in outer for word in compress(template, tau * part).split())


@settings(max_examples=100)
@given(template=TEMPLATES)
def test_the_outline_loses_nothing(template: str) -> None:
    outline = Outline(template)
    assert outline.text(set()).split() == template.split()
    assert sorted(word for unit in outline.units for word in unit.words) == list(range(len(outline.words)))
    steps = removals(outline, Compression())
    assert sorted(word for step in steps for word in step) == list(range(len(outline.words)))


@given(template=TEMPLATES)
def test_tau_1_is_the_template_and_tau_0_is_nothing(template: str) -> None:
    assert compress(template, 1.0) == template
    assert compress(template, 0.0) == ""


def test_courtesies_go_before_rules() -> None:
    template = "You sort mail into boxes.\nPlease be kind to the sender. Never open a parcel.\nThe day is long."
    assert compress(template, 0.85) == "You sort mail into boxes.\nNever open a parcel.\nThe day is long."
    assert compress(template, 0.6) == "You sort mail into boxes.\nNever open a parcel."


def test_a_heading_goes_with_the_last_thing_under_it() -> None:
    template = "You sort mail.\n\n## Colours\n\n- red is urgent\n- blue is late\n\n## Rules\n\n1. Never open a parcel."
    text = compress(template, 0.55)
    assert "Colours" not in text and "red" not in text
    assert text.endswith("## Rules\n\n1. Never open a parcel.")


def test_no_heading_is_left_alone() -> None:
    template = invent(5).template
    for tau in TAUS:
        lines = compress(template, tau).split("\n")
        for line, following in pairwise([*lines, ""]):
            if line.startswith("The codes for each"):
                assert following.startswith("- "), (tau, line)


def test_lists_shrink_from_their_ends_at_the_same_pace() -> None:
    template = (
        "Codes:\n" + "\n".join(f"- a{n}" for n in range(10)) + "\n\nMore:\n" + "\n".join(f"* b{n}" for n in range(5))
    )
    text = compress(template, 0.5)
    assert [text.count("- a"), text.count("* b")] == [5, 2]
    assert "- a0\n- a1\n- a2\n- a3\n- a4\n\nMore:" in text


def test_a_code_fence_is_never_cut() -> None:
    fence = "```python\nfor i in range(3):\n\n    print(i)\n```"
    template = f"Write code like this.\n\n{fence}\n\nIt must run. Days are long. Birds sing loudly."
    texts = {compress(template, tau) for tau in TAUS}
    assert len(texts) > 4
    assert all(fence in text or "print" not in text for text in texts)
    assert any(fence in text and text != template for text in texts)


def test_what_holds_a_text_to_keep_outlives_everything() -> None:
    template = "You sort mail.\nNever open a parcel 12.\nPlease greet {user name} first.\nAlways answer."
    for tau in TAUS[4:]:
        assert "{user name}" in compress(template, tau, keep=("{user name}",))
    assert compress(template, 0.35, keep=("{user name}",)) == "Please greet {user name} first."
    assert compress(template, 0.15, keep=("{user name}",)) == "{user name}"


def test_what_holds_a_text_of_drop_first_goes_first() -> None:
    template = "You sort mail.\nNever open a parcel 12.\nPlease be kind."
    assert compress(template, 0.7, drop_first=("parcel",)) == "You sort mail.\nPlease be kind."


def test_keep_wins_over_drop_first() -> None:
    template = "One thing here.\nOther thing there."
    assert compress(template, 0.5, keep=("Other",), drop_first=("thing there",)) == "Other thing there."


def test_every_unknown_text_of_the_settings_is_reported() -> None:
    with pytest.raises(InputError) as caught:
        check_texts("Hello there.", Compression(keep=("{name}",), drop_first=("bye",)))
    assert str(caught.value).splitlines() == [
        "[compression] keep: this text is not in the template; got '{name}'; correct it",
        "[compression] drop_first: this text is not in the template; got 'bye'; correct it",
    ]


def test_a_worked_dialogue_goes_before_the_instructions() -> None:
    template = (
        "<USER>:\nYou answer with a command. You must not explain it.\n\n<AGENT>:\nOk.\n\n<USER>:\nHow many files are?"
        "\n\n<AGENT>:\nls | wc -l\n\n<USER>:\nA new question:"
    )
    text = compress(template, 0.65)
    assert (
        text
        == "<USER>:\nYou answer with a command. You must not explain it.\n\n<AGENT>:\nOk.\n\n<USER>:\nA new question:"
    )


def test_sections_named_like_speakers_are_no_dialogue() -> None:
    template = "Input:\nA word.\n\nOutput:\nAlways its number 7.\n\nSystem:\nThe system is slow today."
    assert "Always its number 7." in compress(template, 0.6)


@pytest.mark.parametrize("seed", range(5, 9))
def test_the_realised_ratio_is_close_on_invented_templates(seed: int, starter_tokens: Callable[[str], int]) -> None:
    template = invent(seed).template
    whole = starter_tokens(template)
    for tau in (0.75, 0.5, 0.25):
        assert tau - 0.06 <= starter_tokens(compress(template, tau, starter_tokens)) / whole <= tau


def test_the_realised_ratio_is_close_on_agent_prompts(starter_tokens: Callable[[str], int]) -> None:
    if "PILOCAL_PROMPTS" not in os.environ:
        pytest.skip("PILOCAL_PROMPTS names no folder of prompts")
    prompts = [path.read_text() for path in sorted(Path(os.environ["PILOCAL_PROMPTS"]).glob("*.txt"))]
    assert prompts
    for template in prompts:
        whole = starter_tokens(template)
        for tau in (0.75, 0.5, 0.25):
            assert tau - 0.06 <= starter_tokens(compress(template, tau, starter_tokens)) / whole <= tau


def cached(
    folder: Path, count: Callable[[str], int] = words, tokenizer: str = "words"
) -> tuple[CompressedTemplate, ...]:
    return compress_template(invent(5).template, (1.0, 2 / 3, 0.0), Compression(), tools(count, tokenizer), folder)


def test_a_compressed_template_is_readable_and_says_what_it_is(tmp_path: Path) -> None:
    whole, middle, empty = cached(tmp_path)
    assert (whole.text, whole.ratio) == (invent(5).template, 1.0)
    assert (empty.text, empty.tokens, empty.ratio) == ("", 0, 0.0)
    assert (tmp_path / "tau-0.6667.md").read_text() == middle.text
    facts = json.loads((tmp_path / "tau-0.6667.json").read_text())
    assert {key: facts[key] for key in ("tau", "compressor", "tokens", "ratio")} == {
        key: value for key, value in dataclasses.asdict(middle).items() if key not in ("text", "stays")
    }
    assert middle.ratio == words(middle.text) / words(whole.text) <= 2 / 3


def test_a_cached_template_is_not_made_again(tmp_path: Path) -> None:
    before = cached(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(times) == 6
    assert cached(tmp_path) == before
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == times


@pytest.mark.parametrize("broken", ["", "{", "[]", "{}", '{"key": 1}'])
def test_a_damaged_sidecar_is_made_again(tmp_path: Path, broken: str) -> None:
    before = cached(tmp_path)
    sidecar = tmp_path / "tau-0.6667.json"
    good = sidecar.read_text()
    sidecar.write_text(broken)
    assert cached(tmp_path) == before
    assert sidecar.read_text() == good


def test_a_changed_text_is_made_again(tmp_path: Path) -> None:
    before = cached(tmp_path)
    (tmp_path / "tau-0.6667.md").write_text("something else")
    assert cached(tmp_path) == before
    assert (tmp_path / "tau-0.6667.md").read_text() == before[1].text


def test_another_tokenizer_makes_other_entries(tmp_path: Path) -> None:
    before = cached(tmp_path)
    assert cached(tmp_path, len, "characters")[1].tokens > before[1].tokens


def test_line_ends_survive_the_cache(tmp_path: Path) -> None:
    for _ in range(2):
        (result,) = compress_template("One.\r\nTwo.\r\n", (1.0,), Compression(), tools(), tmp_path)
        assert result.text == "One.\r\nTwo.\r\n"


def test_taus_that_differ_late_have_their_own_files(tmp_path: Path) -> None:
    results = compress_template("a b c d", (0.50001, 0.50002), Compression(), tools(), tmp_path)
    assert [result.tau for result in results] == [0.50001, 0.50002]
    assert len(list(tmp_path.glob("*.md"))) == 2
