"""Reads tool calls out of what a model writes, whole or as it comes.

`family_of` tells from the chat template how calls are written. `CallStream` turns pieces of an answer's text into
OpenAI's deltas; `parse` reads a whole answer in the same way. The text must hold what the family's `shown` names, also
where it is a control token. Beside the calls stands the content: what is no call of one of the request's functions
stays there as it was written. White space next to a call goes with it.
"""

from __future__ import annotations

import re
import string
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from pilocal.server.call_reader import ARGUMENTS, CallReader
from pilocal.server.partial_json import BLANKS
from pilocal.server.tool_family import HERMES, LLAMA, Family

ID_LETTERS, ID_LENGTH = string.ascii_letters + string.digits, 24
NAME = r"[A-Za-z0-9_-]{1,64}"
HEAD = re.compile(rf"({NAME})(\[CALL_ID\][A-Za-z0-9]{{1,64}})?(\[ARGS\])?[{BLANKS}]*")
"""What Mistral's newer models write before the arguments."""
HEAD_ENDS = ("", *(mark[start:] for mark in ("[CALL_ID]0", "[ARGS]") for start in range(len(mark))))
"""What a beginning of a head may lack."""
BARE_KEYS = (None, "name", "type", "id", *ARGUMENTS)
"""The keys of an object that is a call without a mark; with any other it is content, and need not be held back."""
AFTER: Mapping[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "hermes": (BLANKS, ("</tool_call>",), ("<tool_call>",)),
    "llama": (" \t\r", ("\n", ";"), ("<|python_tag|>",)),
}
"""What may follow the object of a call: white space, what ends the call, and what begins another."""
AFTER_LISTED = (BLANKS, (",", "]"), ())
Delta = dict[str, Any]
"""A piece of a streamed answer, as OpenAI has it."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a function."""

    id: str
    name: str
    arguments: str
    """JSON, as the model wrote it; of a call that is cut off, its beginning."""

    @property
    def message(self) -> dict[str, Any]:
        """The call as OpenAI's messages have it."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


def new_id(random: Random) -> str:
    """Return an id for a call."""
    return "call_" + "".join(random.choices(ID_LETTERS, k=ID_LENGTH))


def parse(
    family: Family,
    text: str,
    names: Collection[str],
    random: Random,
    **options: Any,
) -> tuple[str, list[ToolCall]]:
    """Return the content of an answer and its calls to functions of these names; `options` are `CallStream`'s."""
    stream = CallStream(family, names, random, **options)
    return join([*stream.feed(text), *stream.end()])


def join(deltas: Iterable[Mapping[str, Any]]) -> tuple[str, list[ToolCall]]:
    """Return the content and the calls that deltas amount to.

    >>> join([{"content": "a"}, {"content": "b"}])
    ('ab', [])
    """
    content, calls = "", list[ToolCall]()
    for delta in deltas:
        content += delta.get("content", "")
        for piece in delta.get("tool_calls", ()):
            function = piece["function"]
            if piece["index"] == len(calls):
                calls.append(ToolCall(piece["id"], function["name"], ""))
            last = calls[-1]
            calls[-1] = ToolCall(last.id, last.name, last.arguments + function["arguments"])
    return content, calls


class CallStream:
    """Turns the text of an answer into OpenAI's deltas, however it is cut.

    Content is passed on as soon as it cannot be the beginning of a call. A call comes when it is complete, so that a
    malformed one can stay content. Where a grammar sees to it that calls are well-formed, `eager` passes their
    arguments on as they come; a call that breaks off then keeps what it has.
    """

    def __init__(
        self,
        family: Family,
        names: Collection[str],
        random: Random,
        *,
        eager: bool = False,
        parallel: bool = True,
    ) -> None:
        """Take the names of the functions that may be called.

        Without `parallel`, an answer ends with its first call.
        """
        self._family = family
        self._names = frozenset(names)
        self._random = random
        self._eager = eager
        self._parallel = parallel
        self.calls = 0
        """How many calls there are so far."""
        self.is_over = False
        """Whether what follows is left out, so that the answer need not go on."""
        self._input: deque[str] = deque()
        self._deltas: list[Delta] = []
        self._pieces: list[str] = []  # of the last delta's content, or of its arguments
        self._step: Callable[[str], None] = self._content
        self._gap = ""  # white space that is content only if more content follows
        self._said = False
        self._at_head = family == LLAMA  # whether a bare object would be a call
        self._held = ""  # what may become a mark, or a name before arguments, or what follows a call
        self._blanks: list[str] = []  # what stands between the object and what follows it
        self._lead = ""  # what stands before the object and goes with it
        self._reader = CallReader(self._names)
        self._is_listed = False
        self._is_open = False  # whether the call was passed on before it is complete
        self._is_refused = False  # whether the object is content already
        first = (*family.marks, family.thoughts[0])
        self._starts = frozenset(mark[:length] for mark in first for length in range(1, len(mark)))

    def feed(self, text: str) -> list[Delta]:
        """Return what is new with the next piece of the text."""
        self._input.extend(text)
        self._run()
        return self._taken()

    def end(self) -> list[Delta]:
        """Return what is left at the end of the text."""
        while self._step not in (self._content, self._thoughts) and not self.is_over:
            if self._step == self._after:
                self._accept("")
            else:
                self._give_up("")
            self._run()
        if not self.is_over:
            if self._step == self._content:
                self._say(self._held)
            if not self.calls:
                self._put_content(self._gap)
        return self._taken()

    def finish_reason(self, *, cut_off: bool = False) -> str:
        """Return why the answer ended: `length` where it was cut off, else `tool_calls` or `stop`."""
        return "length" if cut_off and not self.is_over else "tool_calls" if self.calls else "stop"

    def _run(self) -> None:
        while self._input and not self.is_over:
            self._step(self._input.popleft())

    def _taken(self) -> list[Delta]:
        self._join()
        deltas, self._deltas = self._deltas, []
        return deltas

    # What goes out

    def _say(self, text: str) -> None:
        """Pass content on, but for the white space at its end."""
        body = text.rstrip(BLANKS)
        if body:
            gap = self._gap if self._said or not self.calls else ""
            self._put_content(gap + body)
            self._gap, self._said = "", True
        self._gap += text[len(body) :]

    def _put_content(self, text: str) -> None:
        if self._deltas and "content" in self._deltas[-1]:
            self._pieces.append(text)
        elif text:
            self._join()
            self._deltas.append({"content": ""})
            self._pieces.append(text)

    def _put_call(self, name: str) -> None:
        function = {"name": name, "arguments": ""}
        call = {"index": self.calls, "id": new_id(self._random), "type": "function", "function": function}
        self._join()
        self._deltas.append({"tool_calls": [call]})
        self.calls += 1
        if not self._said:
            self._gap = ""

    def _put_arguments(self, text: str) -> None:
        pieces: list[dict[str, Any]] = self._deltas[-1].get("tool_calls", []) if self._deltas else []
        if not pieces or "id" in pieces[0]:
            self._join()
            self._deltas.append({"tool_calls": [{"index": self.calls - 1, "function": {"arguments": ""}}]})
        self._pieces.append(text)

    def _join(self) -> None:
        """Lay the pieces of the last delta together, which one by one would take ever longer."""
        text, self._pieces = "".join(self._pieces), []
        if not text:
            return
        last = self._deltas[-1]
        if "content" in last:
            last["content"] = text
        else:
            last["tool_calls"][0]["function"]["arguments"] = text

    # What comes in

    def _back(self, text: str) -> None:
        self._input.extendleft(reversed(text))

    def _content(self, character: str) -> None:
        if not self._held and character in BLANKS:
            self._gap += character
            return
        if not self._held and character == "{" and self._at_head:
            self._begin("")
            self._back(character)
            return
        held, self._held = self._held + character, ""
        if held in self._family.marks:
            self._begin(held)
        elif held == self._family.thoughts[0] and not self._said and not self.calls:
            self._say(held)
            self._step = self._thoughts
        elif held in self._starts:
            self._held = held
        else:
            self._at_head = False
            self._say(held[0])
            self._back(held[1:])

    def _thoughts(self, character: str) -> None:
        end = self._family.thoughts[1]
        self._say(character)
        self._held = (self._held + character)[-len(end) :]
        if self._held == end:
            self._held, self._step = "", self._content

    def _begin(self, lead: str, *, is_listed: bool = False) -> None:
        """Begin what should be a call, after a mark or inside a list."""
        self._lead, self._held, self._blanks = lead, "", []
        self._reader, self._is_listed = CallReader(self._names), is_listed
        self._is_open = self._is_refused = False
        self._step = self._opening

    def _opening(self, character: str) -> None:
        is_object = self._is_listed or self._family in (HERMES, LLAMA)
        if character in BLANKS:
            self._lead += character
        elif character == "{" and is_object:
            self._step = self._object
            self._object(character)
        elif is_object:
            self._give_up(character)
        elif character == "[":
            self._lead, self._is_listed = self._lead + character, True
        else:
            self._step = self._head
            self._head(character)

    def _head(self, character: str) -> None:
        """Read a name and what may stand between it and the arguments."""
        head = HEAD.fullmatch(self._held) if character == "{" else None
        if head and head[1] in self._names:
            self._lead, self._held = self._lead + self._held, ""
            self._reader = CallReader(self._names, head[1])
            self._step = self._object
            self._object(character)
        elif _may_be_head(self._held + character):
            self._held += character
        else:
            self._give_up(character)

    def _object(self, character: str) -> None:
        reader = self._reader
        if not reader.feed(character):
            self._give_up(character)
            return
        if self._family == LLAMA and not self._lead and reader.key not in BARE_KEYS:
            self._give_up("")
            return
        if self._eager and reader.piece and reader.name is not None:
            if not self._is_open:
                self._is_open = True
                self._put_call(reader.name)
            self._put_arguments(reader.piece)
        if reader.done:
            self._complete()

    def _complete(self) -> None:
        """Go on behind a complete object, which may be no call."""
        if not self._is_open and self._reader.call is None:
            self._say(self._lead + self._reader.text)
            self._is_refused = True
        self._step = self._after
        if (self._is_refused and self._family == HERMES) or (self._family != LLAMA and self._reader.is_arguments):
            self._accept("")

    def _after(self, character: str) -> None:
        """Read what must follow an object for it to be a call."""
        blanks, ends, marks = AFTER_LISTED if self._is_listed else AFTER[self._family.name]
        if not self._held and character in blanks:
            self._blanks.append(character)
            return
        found, self._held = self._held + character, ""
        if found in marks:
            self._accept("")
            self._back(found)
            return
        self._held = found
        if found in ends:
            self._accept(found)
        elif not any(text.startswith(found) for text in (*ends, *marks)):
            self._reject()

    def _accept(self, end: str) -> None:
        """Pass the call on, unless it has been, and go on behind what ends it."""
        refused, held = self._is_refused, "".join(self._blanks) + self._held
        if not refused and not self._is_open and self._reader.call is not None:
            name, arguments = self._reader.call
            self._put_call(name)
            self._put_arguments(arguments)
        if not refused and not self._parallel:
            self.is_over = True
        if end == ",":
            self._begin(held if refused else "", is_listed=True)
            return
        if refused:
            self._say(held)
        self._leave(at_head=self._family == LLAMA)

    def _reject(self) -> None:
        """Leave an object that is followed by something else in the content, unless it was passed on."""
        held, reader = "".join(self._blanks) + self._held, self._reader
        if not self._is_open and not self._is_refused:
            self._say(self._lead)
            held = reader.text + held
        self._leave()
        self._back(held)

    def _give_up(self, character: str) -> None:
        """Leave what cannot be a call in the content, and look for one behind its mark."""
        held = character if self._is_open else self._held + self._reader.text + character
        if not self._is_open:
            self._say(self._lead)
        self._leave()
        self._back(held)

    def _leave(self, *, at_head: bool = False) -> None:
        self._held, self._step, self._at_head = "", self._content, at_head


def _may_be_head(text: str) -> bool:
    """Tell whether a text, with more to come, may be what `HEAD` describes.

    >>> [_may_be_head(text) for text in ("add", "add[AR", "add[CALL_ID]1[", "add[ARGS] ", "add a", "[ARGS]", "add[X")]
    [True, True, True, True, False, False, False]
    """
    return any(HEAD.fullmatch(text + rest) for rest in HEAD_ENDS)
