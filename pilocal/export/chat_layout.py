"""A tokenizer's chat template in Go's template language, which Ollama renders chats with.

What stands around queries, answers and system message is read off the chat template by rendering probes. Other probes
then compare both: a layout that would render one chat differently is refused, not guessed. This finds Llama 3's headers
(with the date that later versions print), ChatML, and the brackets of Llama 2 and Mistral.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from pilocal.errors import ExportError, InputError
from pilocal.prompt.render import Message
from pilocal.prompt.tokens import layout_of

SYSTEM, QUERIES, ANSWERS = "pilocal-system", ("pilocal-query-0", "pilocal-query-1"), ("pilocal-answer-0",)
"""Texts of the first probes that no chat template contains."""
TEXTS = ("turn on the light", "SELECT *\nFROM a\n\n  WHERE b = 'c';", 'a "b" {{ .System }} %d', "café 日本 😀", "0")
"""Texts of the probes that compare. None begins or ends blank: Ollama cannot trim, as many chat templates do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The fixed texts of a chat whose last turn is a query; BOS is not part of them."""

    opening: str
    """Before the first query of a chat without system message."""
    system_start: str
    """Before the system message; when `system_last`, what is added to the texts before the last query."""
    system_end: str
    """Between the system message and a query."""
    query_end: str
    """After a query, up to where the model speaks."""
    last_end: str
    """Added after the last query, such as an empty block of thoughts."""
    answer_start: str
    """Added before the answer of an earlier turn."""
    answer_end: str
    """Between an answer and the next query."""
    system_last: bool
    """Whether the system message stands before the last query, as Mistral has it, not before the first."""

    def render(self, chat: Sequence[Message]) -> str:
        """Return a chat as the Go template renders it."""
        system = "".join(message["content"] for message in chat if message["role"] == "system")
        turns = [message for message in chat if message["role"] != "system"]
        shown = f"{self.system_start}{system}{self.system_end}" if system else ""
        parts = [self.opening if self.system_last or not system else shown]
        for message in turns[:-1]:
            if message["role"] == "assistant":
                parts += [self.answer_start, message["content"], self.answer_end]
            else:
                parts += [message["content"], self.query_end]
        parts += [shown if self.system_last else "", turns[-1]["content"], self.query_end, self.last_end]
        return "".join(parts)

    def go(self) -> str:
        """Return it in Go's template language, with Ollama's variables."""
        system = f"{self.system_start}{{{{ $.System }}}}{self.system_end}"
        is_last = "eq (len (slice $.Messages $i)) 1"
        speak = f"{{{{ if {is_last} }}}}{self.last_end}{{{{ end }}}}" if self.last_end else ""
        if self.system_last:
            start, last = self.opening, f"{{{{ if and $.System ({is_last}) }}}}{system}{{{{ end }}}}"
        else:
            start = "{{ if .System }}" + system + "{{ else }}" + self.opening + "{{ end }}"
            last = ""
        return (
            start
            + '{{ range $i, $turn := .Messages }}{{ if eq $turn.Role "user" }}'
            + last
            + "{{ $turn.Content }}"
            + self.query_end
            + speak
            + '{{ else if eq $turn.Role "assistant" }}'
            + self.answer_start
            + "{{ $turn.Content }}"
            + self.answer_end
            + "{{ end }}{{ end }}"
        )


def read_layout(tokenizer: Any, *, adds_bos: bool) -> Layout:
    """Return the layout of a tokenizer's chat template; `adds_bos` tells whether BOS comes without being written.

    Raises ExportError when the chat template cannot be put in this form, or BOS would be missing or there twice.
    """
    render = _renderer(tokenizer, adds_bos)
    opening, query_end = _split(render([_user(QUERIES[0])]), QUERIES[0])
    system_start, system_end, _ = _split(render([_system(SYSTEM), _user(QUERIES[0])]), SYSTEM, QUERIES[0])
    long = [_user(QUERIES[0]), _assistant(ANSWERS[0]), _user(QUERIES[1])]
    _, turned, answer_end, _ = _split(render(long), QUERIES[0], ANSWERS[0], QUERIES[1])
    whole = render([_system(SYSTEM), *long])
    system_last = whole.find(SYSTEM) > whole.find(ANSWERS[0])
    layout = Layout(
        opening=opening,
        system_start=system_start.removeprefix(opening) if system_last else system_start,
        system_end=system_end,
        query_end=min(query_end, turned, key=len),
        last_end=query_end.removeprefix(turned) if len(query_end) > len(turned) else "",
        answer_start=turned.removeprefix(query_end) if len(turned) > len(query_end) else "",
        answer_end=answer_end,
        system_last=system_last,
    )
    if any("{" in text for text in astuple(layout) if isinstance(text, str)):
        raise _refusal("it writes a brace")
    for chat in probes():
        if layout.render(chat) != render(chat):
            raise _refusal(f"it differs on a chat of {', '.join(message['role'] for message in chat)}")
    return layout


def probes() -> Iterator[list[Message]]:
    """Yield chats of one to three queries, with and without system message, that end in a query."""
    for length in (1, 3, 5):
        for first in range(len(TEXTS)):
            texts = [TEXTS[(first + i) % len(TEXTS)] for i in range(length)]
            turns = [_assistant(text) if i % 2 else _user(text) for i, text in enumerate(texts)]
            yield turns
            yield [_system(TEXTS[first - 1]), *turns]


def _renderer(tokenizer: Any, adds_bos: bool) -> Callable[[list[Message]], str]:
    def render(chat: list[Message]) -> str:
        try:
            text = layout_of(tokenizer).text(chat)
        except InputError as error:
            raise _refusal(error.problem) from None
        if not adds_bos:
            return text
        if not text.startswith(tokenizer.bos_token):
            raise _refusal("it begins without the BOS that the GGUF file adds")
        return text.removeprefix(tokenizer.bos_token)

    return render


def _split(text: str, *marks: str) -> list[str]:
    """Return what stands around the marks, each of which stands once, in this order."""
    parts = []
    for mark in marks:
        if text.count(mark) != 1:
            raise _refusal("it does not show every message once, in order")
        part, _, text = text.partition(mark)
        parts.append(part)
    return [*parts, text]


def _refusal(got: str) -> ExportError:
    fix = "serve it with `pilocal serve`, or write a Modelfile by hand"
    return ExportError("chat template", "cannot be said in Ollama's template language", got=got, fix=fix)


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _system(text: str) -> Message:
    return {"role": "system", "content": text}
