"""From records to token rows, through the base's chat template: the only place where text becomes tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pilocal.errors import InputError
from pilocal.prompt.control import END_MARKS, Hidden, control_tokens
from pilocal.prompt.render import Message, Record, each_answer, without_blank_systems
from pilocal.prompt.settle import SYSTEM_INTO_QUERY, append_to_prompt, prepend, settle
from pilocal.prompt.soft import Soft

ANSWER = "pilocalanswer"
"""Stands for the answer while the chat template shows what it writes around one."""
PROBE = (Message(role="user", content="x"), Message(role="assistant", content=ANSWER))


class Row(NamedTuple):
    """One record as tokens."""

    tokens: tuple[int, ...]
    """Prompt and completion."""
    offset: int
    """Index of the first completion token."""
    soft: Soft | None = None
    """What a teacher says about the completion tokens, where there is one."""
    gaps: tuple[tuple[int, int], ...] = ()
    """Begin and end of each passage behind `offset` that is not learned: what stands between two answers."""
    weight: float = 1.0
    """What each completion token counts in a loss."""

    @property
    def completion(self) -> tuple[int, ...]:
        """The target tokens: each answer that is learned, and the end of its turn."""
        if not self.gaps:
            return self.tokens[self.offset :]
        return tuple(self.tokens[self.offset + place] for place in self.places)

    @property
    def places(self) -> list[int]:
        """Where the completion tokens are, counted from `offset`.

        >>> Row((1, 2, 3, 4, 5, 6), 1, gaps=((2, 4),)).places
        [0, 3, 4]
        """
        begins = (self.offset, *(end for _, end in self.gaps))
        ends = (*(begin for begin, _ in self.gaps), len(self.tokens))
        spans = zip(begins, ends, strict=True)
        return [index - self.offset for begin, end in spans for index in range(begin, end)]

    @property
    def last_answer(self) -> tuple[int, ...]:
        """The last of the answers and the end of its turn."""
        return self.tokens[self.gaps[-1][1] if self.gaps else self.offset :]

    def pick(self, found: Any) -> Any:
        """Return of an array with a line for each token from `offset` on those of the completion tokens."""
        return found[self.places] if self.gaps else found

    @property
    def is_said(self) -> bool:
        """Whether the completion is what a model said, and no reference answer."""
        return self.soft is not None and not self.soft.reference

    def completed_as(self, other: Row) -> Row:
        """Return this row with the last answer of another one, to the same query.

        >>> Row((1, 2, 3, 4, 5), 1, gaps=((2, 4),)).completed_as(Row((0, 7, 8), 1)).tokens
        (1, 2, 3, 4, 7, 8)
        """
        begin = len(self.tokens) - len(self.last_answer)
        return self._replace(tokens=(*self.tokens[:begin], *other.last_answer), soft=other.soft)


class Layout:
    """A tokenizer's chat template as training and serving use it; read one with `layout_of`."""

    def __init__(self, tokenizer: Any) -> None:
        """Settle the chat template; raises InputError for one that is missing, broken, or that changes a prompt."""
        self._tokenizer = tokenizer
        self.source = chat_template(tokenizer)
        """The base's own chat template."""
        self._controls = control_tokens(tokenizer)
        self.ends = end_tokens(tokenizer)
        """The ids that end an answer: the tokenizer's EOS and the marks that llama.cpp stops at."""
        self.template = _settled(tokenizer, self.source)
        """The chat template with what it leaves open written down, as it is shipped."""
        if not self._takes_system():
            self.template = prepend(SYSTEM_INTO_QUERY, self.template)
        before, after = self._around_answer()
        if before.strip():
            # A block of thoughts that only the last answer of a chat has: it belongs to the prompt.
            self.template, before = append_to_prompt(self.template, before), ""
        self.before_answer = before
        """White space that the template writes before every answer, as Llama 2's."""
        self._after = after
        self.after_answer = after[: len(after) - len(after.lstrip())]
        """White space that it writes between an answer and the token that ends its turn."""

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens of a chat up to where the model has to speak, with exactly one BOS.

        Raises InputError when the chat template refuses the chat.
        """
        return self._controls.encode(*self._render(messages))

    def row(self, messages: Sequence[Message], where: str) -> Row:
        """Return the row of a chat that ends in an answer: the prompt, then the answer as it is and its end.

        Raises InputError when the chat template refuses the chat or does not end the answer.
        """
        chat, hidden = self._controls.hide(list(messages))
        text = self._text(chat[:-1], where)
        prompt = self._controls.encode(text, hidden)
        said = self.before_answer + chat[-1]["content"] + self._after
        tokens = self._controls.encode(text + said, hidden)
        if tokens[: len(prompt)] != prompt:  # the answer begins with what merges with the end of the prompt
            tokens = prompt + self._controls.encode(said, hidden, goes_on=True)
        stop = next((i for i in range(len(prompt), len(tokens)) if tokens[i] in self.ends), None)
        if stop is None:
            raise InputError(where, "the chat template does not end an answer", fix="take an instruct model as base")
        return Row(tuple(tokens[: stop + 1]), len(prompt))

    def rows(self, record: Record, where: str) -> list[Row]:
        """Return the rows of a record: one, if each answer that is learned stands behind exactly what it is asked with.

        It does not where the chat template writes an earlier answer otherwise than the last, or tokens merge across a
        border: what comes then is a row of its own. Raises InputError as `row` does.
        """
        found = list[Row]()
        for one in each_answer(record):
            row = self.row(one["messages"], where)
            if found and row.tokens[: len(found[-1].tokens)] == found[-1].tokens:
                first = found.pop()
                row = row._replace(offset=first.offset, gaps=(*first.gaps, (len(first.tokens), row.offset)))
            found.append(row)
        return found

    def text(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """Return a chat as the chat template writes it; raises InputError when it refuses the chat."""
        text, hidden = self._render(messages, add_generation_prompt=add_generation_prompt)
        return hidden.restore(text)

    def keeps(self, row: Row, answer: str) -> bool:
        """Tell whether a row's tokens say its answer as it was written, but for what stands around every answer."""
        # With a token before, of which SentencePiece's decoders may strip a space.
        said: str = self._tokenizer.decode(row.tokens[row.offset - 1 : -1], clean_up_tokenization_spaces=False)
        return said.endswith(self.before_answer + answer + self.after_answer)

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> tuple[str, Hidden]:
        chat, hidden = self._controls.hide(list(messages))
        return self._text(chat, "chat", add_generation_prompt=add_generation_prompt), hidden

    def _text(self, chat: Sequence[Any], where: str, *, add_generation_prompt: bool = True) -> str:
        """Return what the chat template makes of a chat in which the texts of control tokens are hidden."""
        from pilocal.prompt.bounded_jinja import chat_program

        chat = without_blank_systems(chat)
        fields = {**self._tokenizer.special_tokens_map, "tools": None, "documents": None}
        try:
            return chat_program(self.template).render(
                messages=chat, add_generation_prompt=add_generation_prompt, **fields
            )
        except Exception as error:  # a chat template is a program: it raises what it likes
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            roles = ", ".join(str(message["role"]) for message in chat)
            fix = "take another base, or leave out what it refuses"
            raise InputError(where, f"the base's chat template refuses a chat of {roles}: {said}", fix=fix) from None

    def _takes_system(self) -> bool:
        """Tell whether the chat template writes a system message; some refuse one, and some leave it out."""
        chat = [Message(role="system", content=ANSWER), PROBE[0]]
        try:
            return ANSWER in self._text(chat, "chat template")
        except InputError:
            return False

    def _around_answer(self) -> tuple[str, str]:
        """Return what the chat template writes before an answer, behind the prompt, and after it."""
        prompt = self._text(PROBE[:1], "chat template")
        said = self._text(PROBE[:1], "chat template", add_generation_prompt=False)
        whole = self._text(PROBE, "chat template", add_generation_prompt=False)
        before, found, after = whole.partition(ANSWER)
        where = "the base's chat template"
        if ANSWER not in whole.lower():
            what = "the chat template leaves out what messages say, as one does that takes lists of texts and images"
            raise InputError(where, what, fix="take a base, or give a chat_template, whose messages are texts")
        if found and prompt.startswith(before) and before.startswith(said):
            return "", after  # what is left of the prompt stands before the answer that is asked for alone
        if not found or not before.startswith(prompt):
            fix = "take a base whose chat template only appends"
            raise InputError(where, "the chat template rewrites the prompt once an answer follows", fix=fix)
        return before.removeprefix(prompt), after


def layout_of(tokenizer: Any) -> Layout:
    """Return the layout of a tokenizer, read once; raises InputError for a chat template that cannot be used."""
    found = getattr(tokenizer, "_pilocal_layout", None)
    if found is None or found.source != chat_template(tokenizer):
        found = Layout(tokenizer)
        tokenizer._pilocal_layout = found
    return found


def prompt_tokens(messages: Sequence[Message], tokenizer: Any) -> list[int]:
    """Return the tokens of a chat up to where the model has to speak; raises InputError as `Layout.prompt` does."""
    return layout_of(tokenizer).prompt(messages)


def tokenize(record: Record, tokenizer: Any, where: str = "record") -> Row:
    """Return the row of a record's last answer; its completion is the answer and the end-of-turn token alone.

    Raises InputError as `Layout` and its `row` do.
    """
    return layout_of(tokenizer).row(record["messages"], where)


def tokenize_all(record: Record, tokenizer: Any, where: str = "record") -> list[Row]:
    """Return the rows of every answer of a record that is learned; raises InputError as `tokenize` does."""
    return layout_of(tokenizer).rows(record, where)


def common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Return how many leading tokens all prompts share, leaving each at least one of its own.

    >>> common_prefix([[1, 2, 3], [1, 2, 4, 5]]), common_prefix([[1, 2], [1, 2]])
    (2, 1)
    """
    limit = min(map(len, prompts)) - 1
    for prompt in prompts:
        limit = next((i for i in range(limit) if prompt[i] != prompts[0][i]), limit)
    return limit


def answer_text(tokens: Sequence[int], tokenizer: Any) -> str:
    """Return the text of an answer's tokens, without its end token."""
    text: str = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def token_counter(tokenizer: Any) -> Callable[[str], int]:
    """Return a function that counts the tokens of a plain text, without BOS."""
    controls = control_tokens(tokenizer)

    def count(text: str) -> int:
        return len(controls.encode(*controls.hide(text)))

    return count


def chat_template(tokenizer: Any) -> str:
    """Return a tokenizer's own chat template; raises InputError when it has none."""
    try:
        found = tokenizer.get_chat_template()
    except (ValueError, TypeError, KeyError, AttributeError):
        found = None
    if not isinstance(found, str) or not found.strip():
        what = "the tokenizer has no chat template, or several and no default"
        fix = 'give one (chat_template = "FILE" in task.toml), or take an instruct model as base'
        raise InputError("chat template", what, fix=fix)
    return found


def _settled(tokenizer: Any, template: str) -> str:
    """Return a chat template, settled; raises InputError where it is no Jinja."""
    from jinja2 import TemplateError

    try:
        return settle(template, bos=tokenizer.bos_token, eos=tokenizer.eos_token)
    except (TemplateError, ValueError, TypeError) as error:
        line = getattr(error, "lineno", None)
        where = f"chat template:{line}" if line else "chat template"
        raise InputError(
            where, f"the chat template is broken: {error}", fix="correct it, or copy or download the model again"
        ) from None


def end_tokens(tokenizer: Any) -> frozenset[int]:
    """Return the ids that end an answer: the tokenizer's EOS and the marks that llama.cpp stops at."""
    added = tokenizer.added_tokens_encoder
    ends = {added[mark] for mark in END_MARKS if mark in added}
    return frozenset(ends if tokenizer.eos_token_id is None else ends | {tokenizer.eos_token_id})
