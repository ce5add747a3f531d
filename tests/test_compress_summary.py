"""Claims about letting the base rewrite the template, with a small Llama that really learned its answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pilocal.base.base import Base
from pilocal.base.blas import load_fast_blas
from pilocal.base.language_model import BaseModel
from pilocal.compress import CompressedTemplate, Span, Tools, compress_template
from pilocal.compress.summary import request
from pilocal.errors import InputError, ModelError, PilocalError
from pilocal.prompt.render import Message, Record
from pilocal.prompt.tokens import token_counter, tokenize
from pilocal.task import Compression
from tests.tiny import make_base

MAIL = "You sort mail into boxes.\nPlease be kind to the sender, {name}.\nNever open a parcel.\nThe day is long."
LESS_MAIL = "You sort mail into boxes.\nPlease be kind to the sender, {name}.\nNever open a parcel."
SHORT = "Sort mail. Open no parcel."
LONGER = "Sort the mail. Never open a parcel."
TALK = "Answer in one line.\nPut a comma between two codes."
WINDY = f"{TALK}\nOf course, please answer in one line and put a comma between two codes, as you were told."
MUTE = "Write the answer on one line and nothing else."
HOUSE = "Every request is for a house. Turn it into codes.\nEach request names one action and one device."
HOUSE_ONCE = "Every request is for a house, turn it into codes. Each names one action and one device."
HOUSE_TWICE = "Turn requests into codes. Each names one action."
NOTE = "Begin the answer with the word note and greet {name} at once."
NOTED = "Begin with note, greet."
TAU, SMALLER = 0.6, 0.5


def lessons(count: Callable[[str], int]) -> dict[str, str]:
    """What the small base learns to write, by what it is asked."""
    asked = [
        (MAIL, MAIL, TAU, (), SHORT),
        (MAIL, MAIL, TAU, ("{name}",), SHORT),
        (NOTE, NOTE, TAU, ("{name}",), NOTED),
        (NOTED, NOTE, TAU, ("{name}",), NOTED),
        (TALK, TALK, TAU, (), WINDY),
        (WINDY, TALK, TAU, (), WINDY),
        (MUTE, MUTE, TAU, (), ""),
        (HOUSE, HOUSE, TAU, (), HOUSE_ONCE),
        (HOUSE_ONCE, HOUSE, TAU, (), HOUSE_TWICE),
    ]
    return {request(text, int(tau * count(whole)), kept): said for text, whole, tau, kept, said in asked}


@pytest.fixture(scope="module")
def scribe(starter: Base, tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A Llama in floats, trained until it writes what `lessons` says."""
    load_fast_blas()
    import mlx.core as mx
    import mlx.nn as nn
    from mlx.nn.utils import value_and_grad
    from mlx.optimizers import Adam
    from mlx.utils import tree_flatten
    from mlx_lm.utils import load_model

    folder = tmp_path_factory.mktemp("bases") / "scribe"
    base = make_base(folder, starter.folder, quantized=False, dtype="float32", rope_scaling=None)
    tokenizer = base.tokenizer
    rows = []
    for asked, said in lessons(token_counter(tokenizer)).items():
        turns = [Message(role="user", content=asked), Message(role="assistant", content=said or " ")]
        rows.append(tokenize(Record(messages=turns), tokenizer))
    model, _ = load_model(folder)
    width = max(len(row.tokens) for row in rows)
    tokens_BT = mx.array([[*row.tokens, *[0] * (width - len(row.tokens))] for row in rows])
    asked_BT = mx.array([[row.offset <= t + 1 < len(row.tokens) for t in range(width - 1)] for row in rows])

    def loss(model: Any) -> Any:
        losses = nn.losses.cross_entropy(model(tokens_BT[:, :-1]), tokens_BT[:, 1:])
        return (losses * asked_BT).sum() / asked_BT.sum()

    optimizer, step = Adam(1e-3), value_and_grad(model, loss)
    for _ in range(150):
        value, gradients = step(model)
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)
        if value.item() < 0.02:
            break
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())), {"format": "mlx"})
    return base


@pytest.fixture
def tools(scribe: Base) -> Tools:

    def download(name: str) -> Path:
        raise AssertionError(name)

    return Tools(
        count_tokens=token_counter(scribe.tokenizer),
        base_id="scribe",
        folder=scribe.folder,
        load_model=lambda: BaseModel(scribe),
        download=download,
    )


def rewrite(
    template: str, tools: Tools, folder: Path, taus: tuple[float, ...] = (TAU,), **settings: Any
) -> list[CompressedTemplate]:
    return list(compress_template(template, taus, Compression(method="summary", **settings), tools, folder))


def refusal(kind: type[PilocalError], *arguments: Any, **settings: Any) -> str:
    with pytest.raises(kind) as caught:
        rewrite(*arguments, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_base_writes_the_text(tools: Tools, tmp_path: Path) -> None:
    (result,) = rewrite(MAIL, tools, tmp_path)
    assert (result.text, result.compressor) == (SHORT, "summary")
    assert result.ratio == tools.count_tokens(SHORT) / tools.count_tokens(MAIL) <= TAU


def test_what_is_to_be_kept_and_got_lost_is_added(tools: Tools, tmp_path: Path) -> None:
    (result,) = rewrite(MAIL, tools, tmp_path, keep=("{",))
    assert result.text == SHORT + "\n{name}"


def test_it_refuses_when_what_was_lost_does_not_fit_any_more(tools: Tools, tmp_path: Path) -> None:
    tokens, budget = tools.count_tokens(NOTED + "\n{name}"), int(TAU * tools.count_tokens(NOTE))
    assert tools.count_tokens(NOTED) <= budget < tokens
    said = refusal(ModelError, NOTE, tools, tmp_path, keep=("{",))
    assert f"the base wrote {tokens} tokens for a budget of {budget}, with '{{name}}', which it had left out" in said


def test_a_text_that_is_too_long_is_shortened_again(tools: Tools, tmp_path: Path) -> None:
    assert tools.count_tokens(HOUSE_ONCE) > TAU * tools.count_tokens(HOUSE)
    assert rewrite(HOUSE, tools, tmp_path)[0].text == HOUSE_TWICE


def test_it_refuses_to_lengthen(tools: Tools, tmp_path: Path) -> None:
    whole = tools.count_tokens(TALK)
    assert refusal(ModelError, TALK, tools, tmp_path) == (
        f"compressor summary at tau 0.6: the base wrote {whole} tokens or more for a budget of {int(TAU * whole)}; "
        "take another compressor, such as rules or surprisal, or a base that follows instructions better"
    )


def test_next_to_nothing_is_no_rewriting(tools: Tools, tmp_path: Path) -> None:
    assert "the base wrote only 0 tokens for a budget of" in refusal(ModelError, MUTE, tools, tmp_path)


class Fickle:
    """A language model that answers these prompts alone: no real one can be relied on to write more for less."""

    def __init__(self, answers: dict[str, str]) -> None:
        self.answers = answers

    def rewrite(self, prompt: str, max_tokens: int) -> str:
        return self.answers[prompt]

    def surprisal(self, text: str) -> list[Span]:
        raise AssertionError(text)

    def close(self) -> None:
        self.answers = {}


def test_no_text_grows_on_the_way_down(tools: Tools, tmp_path: Path) -> None:
    whole = tools.count_tokens(MAIL)
    assert tools.count_tokens(SHORT) < tools.count_tokens(LONGER) <= SMALLER * whole
    said = {request(MAIL, int(TAU * whole), ()): SHORT, request(MAIL, int(SMALLER * whole), ()): LONGER}
    tools = replace(tools, load_model=lambda: Fickle(said))
    assert [result.text for result in rewrite(MAIL, tools, tmp_path, (TAU, SMALLER))] == [LONGER, LONGER]
    assert rewrite(MAIL, tools, tmp_path, (TAU,))[0].text == SHORT


def test_what_is_to_be_dropped_first_is_not_shown_to_the_base(tools: Tools, tmp_path: Path) -> None:
    said = {request(LESS_MAIL, int(TAU * tools.count_tokens(MAIL)), ()): LONGER}
    tools = replace(tools, load_model=lambda: Fickle(said))
    assert rewrite(MAIL, tools, tmp_path, drop_first=("day",))[0].text == LONGER


def test_what_is_to_be_kept_must_fit(tools: Tools, tmp_path: Path) -> None:
    said = refusal(InputError, MAIL, tools, tmp_path, (0.1,), keep=("Please be kind to the sender, {name}.",))
    assert said.startswith("[compression] keep: the texts to keep do not fit tau ")


def test_a_template_that_fills_the_context_is_refused(tools: Tools, tmp_path: Path) -> None:
    assert "fills the base's context; shorten the template" in refusal(InputError, MAIL * 40, tools, tmp_path)


def test_a_second_run_loads_no_model(tools: Tools, tmp_path: Path) -> None:
    before = rewrite(MAIL, tools, tmp_path)
    assert rewrite(MAIL, replace(tools, load_model=NotImplemented), tmp_path) == before
