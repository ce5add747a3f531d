"""How values cross between an answer and its tests (`wire.py`): plain data by value, all else by reference.

Standard library only, and none of pilocal.
"""

from __future__ import annotations

import builtins
import importlib
import operator
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from types import CoroutineType, ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pilocal.sandbox.wire import Link

SETUP = "setup"
"""The module that the classes of a record's `setup` are of: both sides run it, so these cross by value."""

SEQUENCES: dict[str, Any] = {kind.__name__: kind for kind in (list, tuple, set, frozenset, deque)}
MAPPINGS: dict[str, Any] = {kind.__name__: kind for kind in (dict, OrderedDict, Counter, defaultdict)}
MADE: dict[str, tuple[type, Callable[[Any], Sequence[Any]], Callable[..., Any]]] = {
    "int": (int, lambda v: [hex(v)], lambda text: int(text, 16)),
    "complex": (complex, lambda v: [v.real, v.imag], complex),
    "bytes": (bytes, lambda v: [v.hex()], bytes.fromhex),
    "bytearray": (bytearray, lambda v: [v.hex()], bytearray.fromhex),
    "range": (range, lambda v: [v.start, v.stop, v.step], range),
    "Decimal": (Decimal, lambda v: [str(v)], Decimal),
    "Fraction": (Fraction, lambda v: [v.numerator, v.denominator], Fraction),
    "date": (date, lambda v: [v.isoformat()], date.fromisoformat),
    "time": (time, lambda v: [v.isoformat()], time.fromisoformat),
    "datetime": (datetime, lambda v: [v.isoformat()], datetime.fromisoformat),
    "timedelta": (timedelta, lambda v: [v.days, v.seconds, v.microseconds], timedelta),
    "str": (str, lambda v: [str.__str__(v)], str),
    "float": (float, lambda v: [float.__float__(v)], float),
}
"""Types that are made of a few plain values: the type, what it is made of, and how."""

VALUES = {kind: name for name, (kind, _, _) in MADE.items()} | {
    kind: name for name, kind in (SEQUENCES | MAPPINGS).items()
}
FIXED = (int, float, str, bytes, complex, tuple, frozenset)
FIXED_NAMES = tuple(VALUES[kind] for kind in FIXED)
"""What may be subclassed by an answer, and is then its value with the other side's attributes."""

CLASSES = {kind for kind in vars(builtins).values() if isinstance(kind, type)} | set(VALUES)
"""Classes that are the same on both sides; so are the standard library's exceptions."""

MISSING: Any = object()


class Packing:
    """Writes values as references into a table."""

    def __init__(self, link: Link, back: Sequence[Any] = ()) -> None:
        """`back` are the objects of the message that this one answers: they are named, and not sent again."""
        self.objects: list[Any] = []
        self._link = link
        self._places = {id(thing): -1 - index for index, thing in enumerate(back) if contents(thing) is not None}

    def place(self, value: Any) -> Any:
        """Return a reference to a value; a plain one is its own."""
        kind = type(value)
        if value is None or kind in (bool, float, str) or (kind is int and value.bit_length() < 64):
            return value
        if id(value) not in self._places:
            self._places[id(value)] = len(self.objects)
            self.objects.append(value)
        return [self._places[id(value)]]

    def table(self) -> list[Any]:
        """Return the descriptions of all objects; those that they hold have joined them."""
        lines: list[Any] = []
        while len(lines) < len(self.objects):
            lines.append(self.describe(self.objects[len(lines)]))
        return lines

    def describe(self, value: Any) -> list[Any]:
        """Return what an object is made of."""
        kind, link = type(value), self._link
        if (handle := link.handle(value)) is not None:
            return ["yours", handle]
        if kind in VALUES:
            return self._value(VALUES[kind], value)
        if is_shared(link.names, kind):
            return self._shared(kind.__qualname__, value)
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, BaseException):
            return ["error", self.place(kind), [self.place(part) for part in value.args], self._parts(value)]
        if isinstance(value, ModuleType):
            return ["module", value.__name__]
        return self._own(value)

    def _own(self, value: Any) -> list[Any]:
        """Describe what stays on this side; of a subclass of a built-in type, the value goes along."""
        if self._link.judge and named(value):
            return ["named", value.__module__, value.__qualname__]
        name = next((VALUES[each] for each in VALUES if isinstance(value, each)), None)
        base, waits = self._value(name, value) if name else None, isinstance(value, CoroutineType)
        return ["mine", self._link.number(value), type(value).__qualname__, base, waits]

    def _shared(self, name: str, value: Any) -> list[Any]:
        if isinstance(value, Enum):
            return ["member", name, value.name]
        base = next((VALUES[each] for each in FIXED if isinstance(value, each)), None)
        return ["shared", name, self._parts(value), self._value(base, value) if base else None]

    def _parts(self, value: Any) -> list[Any]:
        return [[name, self.place(part)] for name, part in attributes(value).items()]

    def _value(self, name: str, value: Any) -> list[Any]:
        if name in SEQUENCES:
            return ["many", name, [self.place(each) for each in SEQUENCES[name].__iter__(value)]]
        if name in MAPPINGS:
            pairs = [[self.place(key), self.place(dict.__getitem__(value, key))] for key in dict.__iter__(value)]
            return ["map", name, pairs, self.place(getattr(value, "default_factory", None))]
        return ["made", name, *MADE[name][1](value)]

    def _class(self, kind: type) -> list[Any]:
        if kind in CLASSES:
            return ["class", VALUES.get(kind, kind.__name__)]
        if issubclass(kind, BaseException):
            if named(kind):
                return ["exception", kind.__module__, kind.__qualname__]
            return ["exceptions", self._link.number(kind), kind.__name__, [self.place(base) for base in kind.__bases__]]
        return ["ours", kind.__qualname__] if is_shared(self._link.names, kind) else self._own(kind)


class Unpacking:
    """Reads a table; the judge takes from it what an answer may hand over, and nothing else."""

    def __init__(self, link: Link, table: list[Any], back: Sequence[Any] = ()) -> None:
        self.objects = [MISSING] * len(table)
        self._link, self._table, self._back = link, table, back
        self._empty: list[tuple[Any, list[Any]]] = []
        for index in range(len(table)):
            self.value([index])
        # What has attributes comes first: a set asks its members for their hash.
        for thing, description in sorted(self._empty, key=lambda pair: pair[1][0] != "shared"):
            self.fill(thing, description)

    def value(self, reference: Any) -> Any:
        """Return what a reference stands for."""
        if not isinstance(reference, list):
            return reference
        (index,) = reference
        if index < 0:
            return self._back[-1 - index]
        if self.objects[index] is MISSING:
            self.objects[index] = self._build(*self._table[index])
        return self.objects[index]

    def fill(self, thing: Any, description: list[Any]) -> None:
        """Put into a list, a set, a mapping or an object what it holds."""
        what, name, parts, *_ = description
        if contents(thing) is None:
            raise TypeError(f"{type(thing).__name__} holds nothing that may change")
        if what == "shared":
            getattr(thing, "__dict__", {}).clear()
            for attribute, part in parts:
                object.__setattr__(thing, attribute, self.value(part))
            return
        thing.clear()
        if what == "map":
            dict.update(thing, {self.value(key): self.value(part) for key, part in parts})
        else:
            (thing.update if name == "set" else thing.extend)([self.value(part) for part in parts])

    def _build(self, what: str, *parts: Any) -> Any:
        if what == "many" and parts[0] in ("tuple", "frozenset"):
            return SEQUENCES[parts[0]](self.value(part) for part in parts[1])
        if what in ("many", "map", "shared"):
            return self._shell([what, *parts])
        if what == "made":
            return MADE[parts[0]][2](*parts[1:])
        return self._reach(what, *parts)

    def _shell(self, description: list[Any]) -> Any:
        what, name = description[:2]
        if what == "shared":
            kind, base = self._ours(name), description[3]
            own = next((each for each in FIXED if issubclass(kind, each)), object)
            thing = own.__new__(kind, *([self._build(*base)] if base else []))
        elif name == "defaultdict":
            thing = defaultdict(self.value(description[3]))
        else:
            thing = (SEQUENCES | MAPPINGS)[name]()
        self._empty.append((thing, description))
        return thing

    def _reach(self, what: str, *parts: Any) -> Any:
        """Return what is not made of values: a thing of either side, or of the standard library."""
        link = self._link
        if what == "yours":
            return link.mine[parts[0]]
        if what == "mine":
            return link.stand_in(parts[0], lambda: self._stand_in(*parts))
        if what == "ours":
            return self._ours(parts[0])
        if what == "member":
            return self._ours(parts[0])[parts[1]]
        if what == "module" or (what == "named" and not link.judge):
            return standard(*parts)
        return self._error(*parts) if what == "error" else self._class(what, *parts)

    def _class(self, what: str, *parts: Any) -> Any:
        if what == "class":
            return next(kind for kind in CLASSES if VALUES.get(kind, kind.__name__) == parts[0])
        if what == "exception":
            return self._exception(standard(*parts))
        if what == "exceptions":
            bases = tuple(self.value(base) for base in parts[2])
            return self._link.stand_in(parts[0], lambda: type(parts[1], bases, {}))
        raise TypeError(f"{what} does not cross")

    def _exception(self, kind: Any) -> type[BaseException]:
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise TypeError(f"{kind} is no exception")
        return kind

    def _ours(self, name: str) -> Any:
        """Return a class of the setup, on this side."""
        kind = found(self._link.names, name)
        if not is_shared(self._link.names, kind):
            raise TypeError(f"{name} is no class of the setup")
        return kind

    def _error(self, *parts: Any) -> BaseException:
        kind = self._exception(self.value(parts[0]))
        args = tuple(self.value(part) for part in parts[1])
        try:
            error: BaseException = kind(*args)
        except TypeError:
            error = kind.__new__(kind)
            error.args = args
        vars(error).update({name: self.value(part) for name, part in parts[2]})
        return error

    def _stand_in(self, number: int, name: str, base: list[Any] | None, waits: bool) -> Any:
        link = self._link
        whole = not link.judge or name in link.operands
        if base and base[1] in FIXED_NAMES and not (link.judge and whole):
            value = self._build(*base)
            kind: Any = type(name, (type(value),), {"__getattr__": lambda self, name: link.ask("getattr", self, name)})
            return type(value).__new__(kind, value)
        return self._build(*base) if base and not whole else link.remote(number, whole=whole, waits=waits)


def contents(thing: Any) -> list[Any] | None:
    """Return what something holds that may change what it holds; None for anything else."""
    if type(thing) in (list, set, deque):
        return list(thing)
    if type(thing) in MAPPINGS.values():
        return [part for pair in thing.items() for part in pair]
    if type(thing).__module__ == SETUP and not isinstance(thing, Enum):
        return [part for pair in attributes(thing).items() for part in pair]
    return None


def same(before: list[Any] | None, after: list[Any] | None) -> bool:
    """Return whether what something holds are still the same objects."""
    if before is None or after is None:
        return True
    return len(before) == len(after) and all(map(operator.is_, before, after))


def attributes(thing: Any) -> dict[str, Any]:
    """Return an object's attributes, of which it may have none, those in slots among them."""
    slots = [name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())]
    known = {name: getattr(thing, name) for name in slots if name[:2] != "__" and hasattr(thing, name)}
    return known | getattr(thing, "__dict__", {})


def is_shared(names: dict[str, Any], kind: Any) -> bool:
    """Return whether a class is one that a record's setup has defined, on both sides."""
    return isinstance(kind, type) and kind.__module__ == SETUP and found(names, kind.__qualname__) is kind


def found(names: dict[str, Any], qualname: str) -> Any:
    """Return what a qualified name stands for; None where it stands for nothing."""
    first, *more = qualname.split(".")
    thing = names.get(first)
    for name in more:
        thing = vars(thing).get(name) if isinstance(thing, type) else None
    return thing


def standard(module: str, name: str = "") -> Any:
    """Return a module of the standard library, or what it defines under a name; raises ImportError for any other."""
    if module.partition(".")[0] not in sys.stdlib_module_names:
        raise ImportError(module)
    thing = importlib.import_module(module)
    for part in filter(None, name.split(".")):
        thing = getattr(thing, part)
    return thing


def named(thing: Any) -> bool:
    """Return whether something is the standard library's, under its own name."""
    with suppress(Exception):
        return standard(thing.__module__, thing.__qualname__) is thing
    return False
