"""What stays of the prompt, where the trained model is asked: by the server, and by other programs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pilocal.base.base import Base
from pilocal.errors import ExportError
from pilocal.export.card import Facts, Kind, card
from pilocal.export.fused import export_fused
from pilocal.export.ollama import write_ollama
from pilocal.llamacpp.model import Model
from pilocal.prompt.preamble import Preamble
from pilocal.run_folder.shipped import Shipped
from pilocal.server.chat import PromptTokens
from pilocal.server.recognition import beyond
from pilocal.server.request import CHAT
from pilocal.server.routing import FULL_PROMPT, INTERNALIZED, Route, Router
from tests.served import TEMPLATE, make_run
from tests.serving import ask, post, running
from tests.test_export_ollama import ship

HALF = "Answer with the code of the colour.\n- red is ZOR"
"""What stays, in these tests: the first half of the template."""


@pytest.fixture(scope="module")
def base_gguf(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "base.gguf"
    export_fused(tiny_base, None, path, "f16")
    return path


class routed:
    """A router for one task, with the tokenizer of its file."""

    def __init__(self, shipped: Shipped) -> None:
        self._shipped = shipped
        self._model = Model(shipped.served_path, vocabulary_only=True)

    def __enter__(self) -> Router:
        tokens = PromptTokens(self._model.__enter__().tokenizer, self._shipped.served_path)
        return Router([self._shipped], tokens, context=512, fallback_share=0)

    def __exit__(self, *raised: object) -> None:
        self._model.__exit__(None, None, None)


def route(router: Router, chat: list[Any], *, full_prompt: bool = False, strength: float | None = None) -> Route:
    return router.route(CHAT, {"messages": chat}, full_prompt=full_prompt, strength=strength)


@pytest.fixture(scope="module")
def make_shipped(tiny_base: Base, tiny_adapter: Path, base_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("shipped")
    return lambda name, **changes: make_run(folder / name, tiny_base, tiny_adapter, gguf=base_gguf, **changes)


@pytest.fixture(scope="module")
def half(make_shipped: Any) -> Iterator[Router]:
    with routed(make_shipped("half", residue_template=HALF)) as router:
        yield router


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


QUERY = {"role": "user", "content": "tell me red"}
SHOT = [{"role": "user", "content": "what is red?"}, {"role": "assistant", "content": "ZOR"}]


def test_an_adapter_at_another_strength_is_asked_with_what_stays(half: Router) -> None:
    found = route(half, [QUERY], strength=0.5)
    assert (found.arm, found.strength) == (INTERNALIZED, 0.5)
    assert found.body["messages"] == route(half, [QUERY]).body["messages"] == [system(HALF), QUERY]


@pytest.mark.parametrize(
    "sent",
    [
        [QUERY],
        [system(HALF), QUERY],
        [system(HALF.replace("\n", "\r\n\n ")), QUERY],
        [system(TEMPLATE), QUERY],
        [{"role": "user", "content": f"{HALF}\n\n{QUERY['content']}"}],
        [{"role": "user", "content": f"{TEMPLATE}\n\n{QUERY['content']}"}],
        [system(TEMPLATE), *SHOT, QUERY],
    ],
)
def test_what_stays_is_there_once_whatever_a_caller_sends(sent: list[Any], half: Router) -> None:
    found = route(half, sent)
    assert found.arm == INTERNALIZED
    assert found.body["messages"] == [system(HALF), QUERY]


def test_context_of_the_caller_follows_what_stays(half: Router) -> None:
    for sent in ([system("Today is Monday."), QUERY], [system(f"{HALF}\nToday is Monday."), QUERY]):
        assert route(half, sent).body["messages"] == [system(f"{HALF}\n\nToday is Monday."), QUERY]
    turns = [{"role": "user", "content": "hm"}, {"role": "assistant", "content": "ZOR"}]
    assert route(half, turns).body["messages"] == [system(HALF), *turns]


@pytest.mark.parametrize("changed", [TEMPLATE.replace("MIP", "BAF"), TEMPLATE.replace("red", "rose")])
def test_a_changed_template_is_a_near_miss_though_its_beginning_stays(changed: str, half: Router) -> None:
    found = route(half, [system(changed), QUERY])
    assert (found.arm, found.near_miss) == (FULL_PROMPT, True)
    assert found.body["messages"] == [system(changed), QUERY]


def test_a_raw_prompt_may_hold_what_stays_but_not_the_template(half: Router) -> None:
    for prompt, arm in ((f"{HALF}<|eot_id|>\n\ntell me red", INTERNALIZED), (f"{TEMPLATE}\nred", FULL_PROMPT)):
        assert half.route("/v1/completions", {"prompt": prompt}, full_prompt=False).arm == arm


def test_shots_alone_may_stay(make_shipped: Any) -> None:
    with routed(make_shipped("shots", residue_shots=1)) as router:
        first = route(router, [QUERY])
        assert [turn["role"] for turn in first.body["messages"]] == ["user", "assistant", "user"]
        assert first.body["messages"][-1] == QUERY
        again = route(router, first.body["messages"])
        assert again.body["messages"] == first.body["messages"]
        assert route(router, [system(TEMPLATE), QUERY]).body["messages"] == first.body["messages"]
        other = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}, QUERY]
        assert route(router, other).body["messages"][-3:] == other


def test_where_nothing_stays_a_chat_goes_on_as_it_is(make_shipped: Any) -> None:
    shipped = make_shipped("nothing")
    assert "residue" not in (shipped.folder / "shipped.json").read_text()
    assert not shipped.residue
    with routed(shipped) as router:
        for sent in ([QUERY], [system("Today is Monday."), QUERY]):
            assert route(router, sent).body["messages"] is sent


def test_words_that_do_not_stay_are_what_is_left_of_the_template() -> None:
    assert beyond(TEMPLATE, HALF) == "blue is mip green is kel say nothing else"
    assert beyond(TEMPLATE, "") == beyond(TEMPLATE, "Quite another text.")
    assert beyond(TEMPLATE, TEMPLATE) == ""


def test_a_client_sends_the_query_alone_and_gets_the_answer_of_the_whole(make_shipped: Any, tmp_path: Path) -> None:
    import openai

    with_it = make_shipped("with", residue_template=HALF, residue_shots=1)
    without = make_shipped("without", template="Quite another text.")
    with routed(with_it) as router:
        wanted = route(router, [QUERY])
    with running([with_it.folder.parent, without.folder.parent], tmp_path) as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            said = ask(client, "with", [QUERY])
            assert said == ask(client, "without", list(wanted.body["messages"]))
        reply = post(server, {"model": "with", "messages": [QUERY], "max_tokens": 2})
        assert int(reply.headers["x-pilocal-prompt-tokens"]) == wanted.prompt_tokens
        assert reply.json()["usage"]["prompt_tokens"] == wanted.prompt_tokens


# Other programs

KIND = Kind(library="peft", tags=["lora"], what="An adapter", how="Load it.")


def test_a_card_says_what_to_send() -> None:
    text = card(Facts(task="t", base="b", residue=Preamble("Be ```brief```.\nStop.", 2)), KIND)
    assert "````text\nBe ```brief```.\nStop.\n````" in text
    assert "Before the query: 2 training examples" in text
    assert "Send the query alone" not in text
    assert Facts(task="t", base="b").chat == '[{"role": "user", "content": "the query"}]'
    chat = eval(Facts(task="t", base="b", residue=Preamble("Say 'a'\n", 0)).chat)
    assert chat == [system("Say 'a'\n"), {"role": "user", "content": "the query"}]


def test_a_modelfile_has_what_stays_and_refuses_what_it_cannot_say(starter: Base, tmp_path: Path) -> None:
    shipped = ship(tmp_path, starter, adapter="adapter.gguf", fused=None)
    write = partial(write_ollama, tokenizer=starter.tokenizer, facts=Facts(task="a", base="starter"))
    text = write(replace(shipped, residue_template="Be brief.\nStop."))[0].read_text()
    assert '\nSYSTEM """Be brief.\nStop."""\n' in text
    assert "SYSTEM" not in write(shipped)[0].read_text()
    with pytest.raises(ExportError, match="a Modelfile cannot choose shots for each query; got 1"):
        write(replace(shipped, residue_shots=1))
    with pytest.raises(ExportError, match="template: a Modelfile cannot hold three quotes"):
        write(replace(shipped, residue_template='Say """.'))
