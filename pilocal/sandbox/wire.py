"""A program and its tests, in two processes that call each other; each of both runs this file, apart.

Standard library only, and none of pilocal. Tests cannot trust an answer that shares their process: it may look into
their frames and patch what they compare with. Here the answer learns what it is called with, and nothing that its
results are compared with. Plain data crosses by value, and comes out as exactly the built-in type that it was. Other
objects stay where they are; the other side holds a `Remote` that passes on what is done to it.

A message is a line of JSON. Its values refer by number to a table of objects, so that shared and cyclic ones stay so.
"""

from __future__ import annotations

import builtins
import io
import json
import operator
import os
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import CodeType, FrameType, ModuleType, TracebackType
from typing import Any

from pilocal.sandbox.crossing import SETUP, Packing, Unpacking, contents, same

HIDDEN = ("_", "gi_", "cr_", "ag_", "f_", "tb_", "co_", "func_")
"""How attributes begin that the answer may not ask of the tests' objects: from there the ways lead to frames."""

EVERY: dict[str, Callable[..., Any]] = {
    name: getattr(builtins, name) for name in ("iter", "next", "len", "str", "repr", "int", "float", "bool", "abs")
} | {name: getattr(operator, name) for name in ("index", "getitem", "setitem", "delitem")}
"""Operations whose result is a value of the object alone, so that a test may compare it."""

BINARY: dict[str, Callable[..., Any]] = {
    name: getattr(operator, name + mark)
    for names, mark in (("add sub mul truediv floordiv mod pow matmul lshift rshift xor", ""), ("and or", "_"))
    for name in names.split()
}
COMPARING: dict[str, Callable[..., Any]] = {
    name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge", "contains", "neg", "pos", "invert")
} | {"hash": hash, "divmod": divmod}
OPERATIONS = (
    EVERY
    | BINARY
    | COMPARING
    | {
        "enter": lambda thing: type(thing).__enter__(thing),
        "exit": lambda thing, *error: type(thing).__exit__(thing, *error),
        "instancecheck": lambda kind, thing: isinstance(thing, kind),
        "subclasscheck": lambda kind, thing: issubclass(thing, kind),
    }
)

ATTRIBUTES: dict[str, Callable[..., Any]] = {"getattr": getattr, "setattr": setattr, "delattr": delattr}


class Remote:
    """An object of the other side; it equals only itself, whatever it says of itself."""

    def __init__(self, link: Link) -> None:
        object.__setattr__(self, "_link", link)

    def __getattr__(self, name: str) -> Any:
        return self._link.ask("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._link.ask("setattr", self, name, value)

    def __delattr__(self, name: str) -> None:
        self._link.ask("delattr", self, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it there."""
        return self._link.ask("call", self, args, kwargs)


class Operand(Remote):
    """One that is asked for its own operators too: of a class that the reference defines under that name."""


def _passed_on(name: str, *, swapped: bool = False) -> Callable[..., Any]:
    def method(self: Remote, *others: Any) -> Any:
        link = self.__dict__["_link"]
        return link.ask("swapped" if swapped else "operate", self, name, *others)

    return method


for _name in (*EVERY, "enter", "exit", "instancecheck", "subclasscheck"):
    setattr(Remote, f"__{_name}__", _passed_on(_name))
for _name in (*BINARY, *COMPARING):
    setattr(Operand, f"__{_name}__", _passed_on(_name))
for _name in BINARY:
    setattr(Operand, f"__r{_name}__", _passed_on(_name, swapped=True))


class Link:
    """One side of the wire; `names` are what the side's own code has defined."""

    def __init__(
        self, reading: int, writing: int, names: dict[str, Any], *, judge: bool = False, operands: Sequence[str] = ()
    ) -> None:
        """Begin; `judge` is the side of the tests, which answers less, and lets `operands` alone use operators."""
        self._reading, self._writing = os.fdopen(reading, "rb"), os.fdopen(writing, "wb")
        self.names, self.judge, self.operands = names, judge, operands
        self.mine: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._theirs: dict[int, Any] = {}
        self._handles: dict[int, int] = {}
        self._lock = threading.RLock()

    def number(self, thing: Any) -> int:
        """Return what the other side calls an object of this one."""
        if id(thing) not in self._numbers:
            self._numbers[id(thing)] = len(self.mine)
            self.mine.append(thing)
        return self._numbers[id(thing)]

    def handle(self, thing: Any) -> int | None:
        """Return the other side's number of what stands for an object there; None for any other object."""
        return self._handles.get(id(thing))

    def remote(self, number: int, *, whole: bool, waits: bool) -> Any:
        """Return something new that passes on what is done to it; where it `waits`, a coroutine."""
        return _wait_for(self, number) if waits else (Operand if whole else Remote)(self)

    def stand_in(self, number: int, make: Callable[[], Any]) -> Any:
        """Return what stands here for an object of the other side, always the same."""
        if number not in self._theirs:
            self._theirs[number] = made = make()
            self._handles[id(made)] = number
        return self._theirs[number]

    def ask(self, what: str, *values: Any) -> Any:
        """Return what the other side says, or raise what it raised; raises EOFError when it is gone."""
        with self._lock:
            packing = Packing(self)
            roots = [packing.place(value) for value in values]
            self._send(["ask", what, roots, packing.table()])
            while (message := self._receive())[0] == "ask":
                self._serve(message)
        _, fine, root, table, changed, printed = message
        if printed:
            sys.stdout.write(printed)
        unpacking = Unpacking(self, table, packing.objects)
        result = unpacking.value(root)
        for index, description in changed:
            unpacking.fill(packing.objects[index], description)
        if not fine:
            raise result
        return result

    def serve(self) -> None:
        """Answer the other side until it is gone."""
        with suppress(EOFError):
            while True:
                self._serve(self._receive())

    def _serve(self, message: list[Any]) -> None:
        _, what, roots, table = message
        unpacking = Unpacking(self, table)
        values = [unpacking.value(root) for root in roots]
        before = [(index, thing, contents(thing)) for index, thing in enumerate(unpacking.objects)]
        try:
            if self.judge and (what == "name" or not roots or table[roots[0][0]][0] != "yours"):
                raise AttributeError("not for an answer")
            result, fine = self._perform(what, *values), True
        except BaseException as error:
            result, fine = error.with_traceback(None), False
        packing = Packing(self, unpacking.objects)
        try:
            root = packing.place(result)
            changed = [
                [index, packing.describe(thing)] for index, thing, was in before if not same(was, contents(thing))
            ]
            text = json.dumps(["answer", fine, root, packing.table(), changed, "" if self.judge else printed()])
        except RecursionError as error:
            packing = Packing(self)
            text = json.dumps(["answer", False, packing.place(error), packing.table(), [], ""])
        self._write(text)

    def _perform(self, what: str, thing: Any, *others: Any) -> Any:
        if self.judge and isinstance(thing, ModuleType | FrameType | CodeType | TracebackType):
            raise AttributeError("not for an answer")
        if what == "name":
            return self.names[thing]
        if what == "await":
            import asyncio

            return asyncio.run(self.mine[thing])
        if what == "call":
            return thing(*others[0], **others[1])
        name, *more = others
        if what == "operate":
            return OPERATIONS[name](thing, *more)
        if what == "swapped":
            return OPERATIONS[name](more[0], thing)
        if self.judge and name.startswith(HIDDEN):
            raise AttributeError(name)
        return ATTRIBUTES[what](thing, name, *more)

    def _send(self, message: list[Any]) -> None:
        self._write(json.dumps(message))

    def _write(self, text: str) -> None:
        self._writing.write(text.encode() + b"\n")
        self._writing.flush()

    def _receive(self) -> list[Any]:
        line = self._reading.readline()
        if not line.endswith(b"\n"):
            raise EOFError("the other side is gone")
        message: list[Any] = json.loads(line)
        return message


async def _wait_for(link: Link, number: int) -> Any:
    return link.ask("await", number)


_out = io.BytesIO()


def printed() -> str:
    """Return what this side has printed since it was last asked."""
    with suppress(Exception):
        sys.stdout.flush()
    text = _out.getvalue().decode("utf-8", "replace")
    _out.seek(0)
    _out.truncate()
    return text


class Names(dict[str, Any]):
    """The built-in names of the tests, and behind them what the answer defines, asked for when it is used."""

    def __init__(self, link: Link, replaced: Sequence[str]) -> None:
        super().__init__({name: value for name, value in vars(builtins).items() if name not in replaced})
        self._link = link

    def __missing__(self, name: str) -> Any:
        if name.startswith("__"):
            raise KeyError(name)
        try:
            return self._link.ask("name", name)
        except KeyError:
            return vars(builtins)[name]


def named_anew(name: str) -> dict[str, Any]:
    """Return the names of a new module, which is also the setup's: dataclasses and pickle look their modules up."""
    sys.modules[name] = sys.modules[SETUP] = module = ModuleType(name)
    return vars(module)


def execute(text: str, name: str, names: dict[str, Any]) -> None:
    """Run a text under a name; its `from __future__` are its own."""
    names["__name__"] = name
    exec(compile(text, f"{name}.py", "exec", dont_inherit=True), names)


def run_answer(reading: int, writing: int, answer: str, setup: str) -> None:
    """Define what an answer and the setup define, and do what the tests ask; what is printed is the tests' to print."""
    null = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(null, number)
    sys.stdout = io.TextIOWrapper(_out, "utf-8", write_through=True)
    names = named_anew("answer")
    execute(answer, "answer", names)
    with suppress(Exception):
        execute(setup, SETUP, names)
    names["__name__"] = "answer"
    Link(reading, writing, names).serve()


def run_tests(reading: int, writing: int, begin: int, setup: str, tests: str, *defined: Sequence[str]) -> None:
    """Run the tests; returns when all of them held.

    `defined` are the reference's names that replace built-in ones, and the names of its classes. One byte on `begin`
    says that this side is there.
    """
    os.write(begin, b".")
    os.close(begin)
    names = named_anew("tests")
    link = Link(reading, writing, names, judge=True, operands=defined[1])
    names["__builtins__"] = Names(link, defined[0])
    with suppress(KeyError):
        link.ask("name", "")  # it answers when it has run to its end
    execute(setup, SETUP, names)
    execute(tests, "tests", names)
    sys.stdout.flush()
