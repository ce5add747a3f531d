"""A chat template is a program from the net: it runs in Jinja's sandbox, in bounded time and memory.

Jinja's sandbox keeps a program from Python, not from looping for hours or writing gigabytes. So each round of a loop,
each call and each character that is made is taken off one sum of work. It is counted, not timed: what is refused is
refused on every machine. Import this module where it is used, since it imports Jinja.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache, wraps
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateRuntimeError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from pilocal.prompt.jinja_values import (
    CALL,
    CONSTANT,
    ITEM,
    ITERATING,
    MOST_DIGITS,
    MOST_ITEMS,
    STEP,
    WORK,
    Named,
    TooMuch,
    check_binary,
    check_filter,
    check_format,
    check_text_call,
    names,
    weight,
    written_json,
)

MOST_CHARACTERS = 2**17
"""Of a chat template's text; the longest that are published have a quarter of it."""

KEPT_FILTERS = names("""
    abs attr capitalize count d default dictsort e escape first float format groupby indent int items last
    length list lower map max min reject rejectattr replace reverse round safe select selectattr sort string
    sum title trim truncate unique upper wordcount
""")
"""Filters that chat templates use; what the others make has no bound, or is of no use in a chat."""

CHEAP_TESTS = names("""
    boolean callable defined divisibleby even false filter float integer iterable mapping none number odd
    sameas sequence string test true undefined
""")
"""Tests that look at no more than a value's kind."""

_MADE, _COUNTED, _WEIGHED, _PART, _JOINED = (f" {name}" for name in ("made", "counted", "weighed", "part", "joined"))
"""Filters that are written into a template's tree; no template can name one with a blank."""


class ChatProgram:
    """A chat template, compiled. Rendering is safe in several threads at once."""

    def __init__(self, text: str) -> None:
        """Compile it; raises jinja2.TemplateError where it is no Jinja, or too long or too deep for it."""
        self._environment = BoundedEnvironment()
        self._template = guarded(lambda: self._environment.from_string(_checked(text)))

    def render(self, **fields: Any) -> str:
        """Return what it writes; raises jinja2.TemplateError, ValueError or TypeError where it refuses or fails.

        TooMuch, a TemplateError, is raised where it takes more time or memory than any chat template needs.
        """
        self._environment.begin()
        text: str = guarded(lambda: self._template.render(fields))
        try:
            text.encode()
        except UnicodeEncodeError:
            raise TemplateRuntimeError("it writes half a surrogate pair, which is no text") from None
        return text


@lru_cache(maxsize=16)
def chat_program(text: str) -> ChatProgram:
    """Return a chat template, compiled once; raises jinja2.TemplateError as `ChatProgram` does."""
    return ChatProgram(text)


def parsed(text: str) -> Any:
    """Return a chat template's syntax tree; raises jinja2.TemplateError as `ChatProgram` does.

    To the tree the clock is a name that the template does not declare.
    """
    environment = BoundedEnvironment()
    del environment.globals["strftime_now"]
    return guarded(lambda: environment.parse(_checked(text)))


def _checked(text: str) -> str:
    if len(text) > MOST_CHARACTERS:
        raise TemplateError(f"it has {len(text)} characters; at most {MOST_CHARACTERS} are taken")
    return text


def guarded(work: Callable[[], Any]) -> Any:
    """Return what some work with a chat template returns, which raises what it likes.

    Raises jinja2.TemplateError, ValueError or TypeError.
    """
    try:
        return work()
    except (TemplateError, ValueError, TypeError):
        raise
    except (RecursionError, MemoryError) as error:
        raise TooMuch(f"it goes too deep ({type(error).__name__})") from None
    except Exception as error:
        raise TemplateRuntimeError(f"{type(error).__name__}: {error}") from None


class Generation(Extension):
    """The tag around what an assistant said, which changes nothing here."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        """Return what stands between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Counted(NodeTransformer):
    """Writes into a template's tree where what is looped over, made and compared is counted."""

    def generic_visit(self, node: Any, *args: Any, **kwargs: Any) -> Any:
        node = super().generic_visit(node, *args, **kwargs)
        if isinstance(node, nodes.For):
            node.iter = _through(_COUNTED, node.iter)
        elif isinstance(node, nodes.Compare):
            node.expr = _weighed(node.expr)
            for operand in node.ops:
                operand.expr = _weighed(operand.expr)
        elif isinstance(node, nodes.Concat):
            return _through(_JOINED, nodes.List(node.nodes, lineno=node.lineno))
        elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
            return _through(_PART, node)
        elif isinstance(node, nodes.List | nodes.Dict) or (isinstance(node, nodes.Tuple) and node.ctx == "load"):
            return node if all(isinstance(each, nodes.Const) for each in node.items) else _through(_MADE, node)
        return node


def _through(name: str, node: Any) -> Any:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _weighed(node: Any) -> Any:
    return node if isinstance(node, nodes.Const) else _through(_WEIGHED, node)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja as chat templates are written for it, with what it may do in all."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols, Generation],
            optimized=False,  # nothing is computed before somebody counts
            finalize=_itself,
        )
        self._now = threading.local()
        known = {name: FILTERS[name] for name in KEPT_FILTERS} | {"tojson": written_json, "join": self._join}
        self.filters = {name: self._bounded_filter(name, each) for name, each in known.items()}
        own: Mapping[str, Any] = {
            _MADE: self.made, _COUNTED: self._rounds, _WEIGHED: self._weighed, _PART: self._part, _JOINED: self._joined
        }  # fmt: skip
        self.filters |= own
        tests: Mapping[str, Any] = self.tests
        self.tests = {name: each if name in CHEAP_TESTS else self._bounded_test(each) for name, each in tests.items()}
        self.globals = {name: self.globals[name] for name in ("range", "cycler", "joiner")}
        self.globals |= {"dict": _new_dict, "namespace": Named, "raise_exception": _refuse, "strftime_now": _now}

    def begin(self) -> None:
        """Give this thread the whole of `WORK`."""
        self._now.left = WORK

    def spend(self, work: int) -> None:
        """Take work off what is left; raises TooMuch where nothing is."""
        left = getattr(self._now, "left", WORK) - work
        self._now.left = left
        if left < 0:
            raise TooMuch("it does more than a chat template may: it loops too often, or writes too much")

    def made(self, value: Any) -> Any:
        """Return a value that was made; raises TooMuch where it is too large, or too much has been made."""
        if isinstance(value, str):
            self.spend(len(value))
        elif isinstance(value, int):
            if value.bit_length() > MOST_DIGITS:
                raise TooMuch("it makes a number with too many digits")
        elif isinstance(value, list | tuple | Mapping):
            self.spend(weight(value, held=True))
        return value

    def concat(self, parts: Iterable[str]) -> str:
        """Return parts of the output as one."""
        found = []
        for part in parts:
            self.spend(len(part) + 1)
            found.append(part)
        return "".join(found)

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call what a template calls."""
        self.spend(CALL + ITEM * len(args))
        for value in (*args, *kwargs.values()):
            self._weighed(value)
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, str):
            args = check_text_call(owner, name, args, kwargs, self.spend)
        elif isinstance(owner, int | float | bytes | type):
            raise SecurityError(f"a chat template may not call {name} of {type(owner).__name__}")
        return self.made(super().call(context, obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Any:
        """Return what is called where a template calls a text's `format`; None for any other method."""
        found = super().wrap_str_format(value)
        if found is None:
            return None

        def checked(*args: Any, **kwargs: Any) -> Any:
            check_format(value.__self__, [args, kwargs])
            return found(*args, **kwargs)

        return checked

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute with what a template computes with."""
        self.spend(STEP)
        check_binary(operator, left, right)
        return self.made(super().call_binop(context, operator, left, right))

    def _generate(self, source: Any, *args: Any, **kwargs: Any) -> Any:
        tree = _Counted().visit(source)
        tree.set_environment(self)
        return super()._generate(tree, *args, **kwargs)

    def _bounded_filter(self, name: str, given: Callable[..., Any]) -> Callable[..., Any]:
        skipped = 1 if hasattr(given, "jinja_pass_arg") else 0

        @wraps(given)
        def call(*args: Any, **kwargs: Any) -> Any:
            self.spend(STEP)
            if name not in CONSTANT:
                for value in args[skipped:]:
                    self._weighed(value) if name not in ITERATING else self._look(value)
                check_filter(name, args[skipped:], kwargs, self.spend)
            return self.made(given(*args, **kwargs))

        return call

    def _bounded_test(self, given: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(given)
        def call(*args: Any, **kwargs: Any) -> Any:
            for value in args:
                self._weighed(value)
            return given(*args, **kwargs)

        return call

    def _look(self, value: Any) -> None:
        """Count a value of which each item is taken once."""
        if isinstance(value, str | list | tuple | Mapping):
            if len(value) > MOST_ITEMS:
                raise TooMuch("it takes a text apart that is too long")
            self.spend(ITEM * len(value))

    def _weighed(self, value: Any) -> Any:
        """Return a value that is read from end to end."""
        self.spend(1 + (len(value) >> 4) if isinstance(value, str) else 1 + weight(value, held=True))
        return value

    def _rounds(self, values: Any) -> Iterator[Any]:
        """Return what is looped over."""
        found = iter(values)

        def rounds() -> Iterator[Any]:
            for value in found:
                self.spend(STEP)
                yield value

        return rounds()

    def _part(self, value: Any) -> Any:
        """Return a slice: its items are there already."""
        self.spend(STEP + (len(value) * (1 if isinstance(value, str) else ITEM) if hasattr(value, "__len__") else 0))
        return value

    def _join(self, value: Any, d: str = "", attribute: str | int | None = None) -> str:
        """Return the filter `join`'s text."""
        found = []
        for item in value if attribute is None else map(make_attrgetter(self, attribute), value):
            found.append(str(item))
            self.spend(len(found[-1]) + len(d) + 1)
        return str(d).join(found)

    def _joined(self, values: list[Any]) -> str:
        """Return what `~` makes."""
        return self.concat(map(str, values))


def _itself(value: Any) -> Any:
    return value


def _new_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(str(message)[:1000])


def _now(form: str) -> str:
    from datetime import datetime

    if len(form) > 100:
        raise TooMuch("a date's form is too long")
    return datetime.now().strftime(form)
