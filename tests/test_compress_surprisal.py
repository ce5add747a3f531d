"""Claims about dropping what the base could have guessed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pilocal.base.base import Base
from pilocal.base.language_model import BaseModel
from pilocal.base.load import load_base
from pilocal.compress import CompressedTemplate, Tools, compress_template
from pilocal.compress.compressor import Span
from pilocal.compress.outline import Outline
from pilocal.compress.surprisal import word_surprisals
from pilocal.errors import InputError
from pilocal.prompt.tokens import token_counter
from pilocal.task import Compression

HOUSE = (Path(__file__).parent.parent / "examples" / "smart-home" / "template.md").read_text()
TAUS = (0.9, 0.75, 0.6, 0.45, 0.3, 0.15)
CODED = "Answer in one line.\n\n```sh\nls -l\nwc -l\n```\n\nGreet {user name} with `a b`, always. Say nothing else now."


@pytest.fixture(scope="module")
def model(starter: Base) -> BaseModel:
    return BaseModel(starter)


@pytest.fixture
def tools(model: BaseModel, starter: Base, monkeypatch: pytest.MonkeyPatch) -> Tools:
    monkeypatch.setattr(model, "close", lambda: None)  # the fixture lives on

    def download(name: str) -> Path:
        raise AssertionError(name)

    return Tools(
        count_tokens=token_counter(model.base.tokenizer),
        base_id="starter",
        folder=starter.folder,
        load_model=lambda: model,
        download=download,
    )


def shorten(
    template: str, tools: Tools, folder: Path, taus: tuple[float, ...] = TAUS, **settings: Any
) -> tuple[CompressedTemplate, ...]:
    return compress_template(template, taus, Compression(method="surprisal", **settings), tools, folder)


def test_surprisal_is_what_one_plain_pass_says(model: BaseModel, starter: Base) -> None:
    import mlx.core as mx

    tokenizer = model.base.tokenizer
    tokens = [tokenizer.bos_token_id, *tokenizer.encode(HOUSE, add_special_tokens=False)]
    logits_TV = np.asarray(load_base(starter)(mx.array(tokens)[None])[0].astype(mx.float32), dtype=np.float64)
    log_sum_T = np.log(np.exp(logits_TV - logits_TV.max(-1, keepdims=True)).sum(-1)) + logits_TV.max(-1)
    expected = [log_sum_T[i] - logits_TV[i, token] for i, token in enumerate(tokens[1:])]
    spans = model.surprisal(HOUSE)
    assert [span.surprisal for span in spans] == pytest.approx(expected, abs=1e-3)
    assert "".join(HOUSE[start:end] for start, end, _ in spans).split() == HOUSE.split()


def test_a_text_read_in_parts_has_the_same_surprisal(model: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = [span.surprisal for span in model.surprisal(HOUSE)]
    monkeypatch.setattr("pilocal.base.language_model.LOGITS_AT_ONCE", 2048 * 50)
    assert [span.surprisal for span in model.surprisal(HOUSE)] == pytest.approx(at_once, abs=2e-3)


def test_a_base_without_bos_takes_its_first_token_as_one_of_all(starter: Base, model: BaseModel) -> None:
    base = Base.at(starter.folder)
    base.tokenizer.bos_token = None
    bare = BaseModel(base)
    text = "Never open a parcel."
    spans = bare.surprisal(text)
    assert spans[0].surprisal == pytest.approx(math.log(2048))
    assert spans[0][:2] == model.surprisal(text)[0][:2]
    assert len(spans) == len(model.surprisal(text))
    assert bare.surprisal("") == []


def test_a_word_is_as_surprising_as_its_tokens_together(model: BaseModel) -> None:
    text = "Ünïcödé, 漢字 and\n\n- `code with spaces`\tstand {right here}."
    outline = Outline(text)
    sums = word_surprisals(outline, model.surprisal(text))
    spans = [span for span in model.surprisal(text) if text[span.start : span.end].strip()]
    assert sum(sums) == pytest.approx(sum(span.surprisal for span in spans) - dash(text, spans))
    assert len(spans) > len(sums) == len(outline.words)
    assert all(value > 0 for value in sums)


def dash(text: str, spans: Sequence[Span]) -> float:
    """Of a list mark nothing is counted: it goes with its entry."""
    return sum(value for start, end, value in spans if text[start:end].strip() == "-")


def test_the_most_predictable_words_go_first(tools: Tools, model: BaseModel, tmp_path: Path) -> None:
    text = "Put a comma between two codes, begin every answer with the word note and never open any parcel."
    scores = dict(zip(text.split(), word_surprisals(Outline(text), model.surprisal(text)), strict=True))
    for result in shorten(text, tools, tmp_path):
        left = set(result.text.split())
        assert left and left < set(scores)
        assert min(scores[word] for word in left) > max(scores[word] for word in set(scores) - left)


def test_the_budget_is_met_closely_and_never_exceeded(tools: Tools, tmp_path: Path) -> None:
    for result in shorten(HOUSE, tools, tmp_path):
        assert result.tau - 0.02 <= result.ratio <= result.tau
        assert result.compressor == "surprisal"


def test_a_lower_tau_keeps_some_of_the_words_of_a_higher_one(tools: Tools, tmp_path: Path) -> None:
    for more, fewer in pairwise(shorten(HOUSE, tools, tmp_path)):
        outer = iter(more.text.split())
        assert all(word in outer for word in fewer.text.split())
        assert fewer.tokens < more.tokens


def test_words_stay_whole_and_in_their_lines(tools: Tools, tmp_path: Path) -> None:
    known = {word: n for n, line in reversed(list(enumerate(HOUSE.split("\n")))) for word in line.split()}
    for result in shorten(HOUSE, tools, tmp_path):
        assert set(result.text.split()) <= set(known)
        assert all(line == line.rstrip() and line for line in result.text.split("\n"))


def test_code_and_placeholders_stay_whole_or_go_whole(tools: Tools, tmp_path: Path) -> None:
    texts = [result.text for result in shorten(CODED, tools, tmp_path, tuple(n / 20 for n in range(1, 20)))]
    for whole, part in (("```sh\nls -l\nwc -l\n```", "wc"), ("{user name}", "user"), ("`a b`", "a b")):
        assert all(whole in text or part not in text for text in texts)
        assert any(whole in text for text in texts)
        assert any(whole not in text for text in texts)


@pytest.mark.parametrize(("keep", "whole"), [("{", "{user name}"), ("```", "```sh\nls -l\nwc -l\n```"), ("Say", "Say")])
def test_what_is_to_be_kept_goes_last(tools: Tools, tmp_path: Path, keep: str, whole: str) -> None:
    for tau in (0.9, 0.6, 0.5):
        (result,) = shorten(CODED, tools, tmp_path, (tau,), keep=(keep,))
        assert whole in result.text


def test_what_is_to_be_dropped_first_goes_first(tools: Tools, tmp_path: Path) -> None:
    (result,) = shorten(HOUSE, tools, tmp_path, (0.97,), drop_first=("VUL", "ZEX"))
    assert "VUL" not in result.text
    assert "ZEX" not in result.text


def test_the_base_is_read_once_for_all_taus(
    tools: Tools, model: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    plain = model.surprisal

    def counted(text: str) -> Sequence[Span]:
        seen.append(text)
        return plain(text)

    monkeypatch.setattr(model, "surprisal", counted)
    shorten(HOUSE, tools, tmp_path)
    shorten(HOUSE, tools, tmp_path)
    assert seen == [HOUSE]


def test_a_template_beyond_the_context_is_one_clear_line(tools: Tools, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the template has \d+ tokens, the base's context 2048; shorten") as caught:
        shorten(HOUSE * 6, tools, tmp_path)
    assert "\n" not in str(caught.value)
