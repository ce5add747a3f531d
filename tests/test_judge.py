"""An answer and its tests in two processes: what holds in one process holds across two, and cheating does not."""

from __future__ import annotations

import os
import threading
from contextlib import suppress

import pytest

from pilocal.errors import SandboxError
from pilocal.sandbox import judge
from pilocal.sandbox.crossing import SETUP
from pilocal.sandbox.run import Limits
from pilocal.sandbox.wire import Link, Names, execute, named_anew


def judged(answer: str, tests: str, setup: str = "", reference: str | None = None) -> None:
    """Run tests as the judge does, with the answer's side in a thread; raises what the tests raise."""
    (asked, ask), (answered, answer_to) = os.pipe(), os.pipe()
    names = named_anew("answer")
    execute(answer, "answer", names)
    execute(setup, SETUP, names)
    names["__name__"] = "answer"
    other = Link(asked, answer_to, names)
    thread = threading.Thread(target=other.serve)
    thread.start()
    replaced, classes = judge.defined(answer if reference is None else reference)
    own = named_anew("tests")
    link = Link(answered, ask, own, judge=True, operands=classes)
    own["__builtins__"] = Names(link, replaced)
    try:
        execute(setup, SETUP, own)
        execute(tests, "tests", own)
    finally:
        link._writing.close()
        thread.join()
        link._reading.close()
        other._reading.close()
        other._writing.close()


DATA = """
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
def same(*values, **named): return named or values[0]
"""
GRAPH = """
class Node:
    def __init__(self, value, next=None): self.value, self.next = value, next
    def __eq__(self, other): return isinstance(other, Node) and self.value == other.value
    def __hash__(self): return hash(self.value)
"""
CASES = {
    "plain data comes back as it went": (
        DATA,
        """
import math, datetime, decimal, fractions, collections
u = datetime.timezone.utc
for value in (None, True, 0, -1, 2**70, -10**5000, 1.5, float("inf"), -0.0, "a\\ud800\\n", "", b"\\0", bytearray(b"a"),
              [], [1, [2, (3,)]], (), (1, (2, [3])), set(), {1, (2, 3)}, frozenset({1}), {}, {1: {2: [3]}}, {(1,): 2},
              1j, range(3), collections.Counter("aab"), collections.OrderedDict(a=1), collections.deque([1, 2]),
              decimal.Decimal("1.10"), fractions.Fraction(1, 3), datetime.date(2026, 1, 2), datetime.timedelta(1),
              datetime.datetime(2026, 1, 2, tzinfo=u), int, ValueError, collections.defaultdict(int, a=1)):
    found = same(value)
    assert type(found) is type(value) and found == value, value
assert math.isnan(same(float("nan"))) and str(same(-0.0)) == "-0.0"
assert same(1, a=[2]) == {"a": [2]} and type(same(Counter("a"))) is Counter
found = same(collections.defaultdict(list)); found["x"].append(1); assert found == {"x": [1]}
""",
    ),
    "arguments change in place and keep their identity": (
        "def sort(a): a.sort()\ndef put(d, k, v): d.setdefault(k, []).append(v); return d\ndef first(x): return x[0]\n"
        "def drop(s): s.pop()\ndef turn(q): q.rotate(1)",
        """
from collections import deque
a = [3, 1, 2]; b = a; assert sort(a) is None and b == [1, 2, 3]
d = {}; assert put(d, 1, 2) is d and put(d, 1, 3) == {1: [2, 3]} and d == {1: [2, 3]}
x = [[1], [2]]; assert first(x) is x[0]
s = {1}; drop(s); assert s == set()
q = deque([1, 2]); turn(q); assert q == deque([2, 1])
grid = [[0] * 2] * 2; put(grid[0] and {}, 1, grid); assert grid[0] is grid[1]
loop = []; loop.append(loop); assert first(loop) is loop
""",
    ),
    "functions are given and returned": (
        "def apply(f, x): return f(x)\ndef add(n): return lambda x: x + n\ndef compose(*fs):\n"
        "    def run(x):\n        for f in fs: x = f(x)\n        return x\n    return run\n"
        "def deco(f):\n    def inner(*a, **k): inner.calls += 1; return f(*a, **k)\n    inner.calls = 0\n"
        "    return inner",
        """
import operator
assert apply(lambda x: x + 1, 1) == 2 and apply(len, "abc") == 3 and apply(str.upper, "a") == "A"
assert apply(operator.itemgetter(0), [7]) == 7
assert add(2)(3) == 5 and compose(add(1), lambda x: x * 2)(3) == 8
@deco
def hello(name, mark="!"): return "hi " + name + mark
assert hello("a") == "hi a!" and hello("b", mark="?") == "hi b?" and hello.calls == 2
assert callable(add) and add.__name__ == "add" and sorted([3, 1], key=add(0)) == [1, 3]
def check(candidate):
    assert candidate(1)(2) == 3
check(add)
assert apply(lambda f: f(3), add(4)) == 7
""",
    ),
    "errors are raised as their kind": (
        "import json\nclass Mine(ValueError):\n    def __init__(self, code): super().__init__(code); self.code = code\n"
        "class Under(Mine): pass\n"
        "def fail(kind, *a): raise kind(*a)\ndef mine(): raise Under(3)\ndef load(s): return json.loads(s)\n"
        "def leave(): raise SystemExit(2)\ndef call(f):\n    try: f()\n    except LookupError as e: return repr(e)",
        """
import json
def raises(kind, f, *a):
    try: f(*a)
    except kind as error: return error
    raise AssertionError("nothing raised")
assert raises(KeyError, fail, KeyError, "x").args == ("x",)
assert raises(ValueError, mine).code == 3 and raises(Mine, mine).code == 3 and type(raises(Under, mine)) is Under
assert isinstance(raises(json.JSONDecodeError, load, "{"), ValueError)
assert raises(SystemExit, leave).code == 2
assert call(lambda: {}[1]) == "KeyError(1)"
assert raises(TypeError, load) and raises(ZeroDivisionError, call, lambda: 1 / 0) and raises(NameError, lambda: nothing)
import unittest
class Case(unittest.TestCase):
    def test(self):
        with self.assertRaises(Mine): mine()
assert unittest.TextTestRunner(stream=__import__("io").StringIO()).run(Case("test")).wasSuccessful()
""",
    ),
    "iterators, context managers and coroutines": (
        "import asyncio\nfrom contextlib import contextmanager\n"
        "def count():\n    n = 0\n    while True:\n        yield n\n        n += 1\n"
        "def total(xs): return sum(xs)\n"
        "@contextmanager\ndef opened(log):\n    log.append(1)\n    try: yield log\n    finally: log.append(2)\n"
        "async def later(x): await asyncio.sleep(0); return x\n"
        "def echo():\n    got = yield 1\n    yield got",
        """
import asyncio, itertools
g = count(); assert next(g) == 0 and [x for x, _ in zip(g, range(2))] == [1, 2]
assert list(itertools.islice(count(), 3)) == [0, 1, 2] and list(map(str, itertools.islice(count(), 1))) == ["0"]
assert total(x for x in (1, 2)) == 3 and total(iter([4])) == 4
with opened([]) as found: assert found == [1]
assert asyncio.run(later(5)) == 5
async def both(): return await asyncio.gather(later(1), later(2))
assert asyncio.run(both()) == [1, 2]
e = echo(); next(e); assert e.send("x") == "x"
""",
    ),
    "classes of the answer": (
        "from enum import Enum, IntEnum\nfrom typing import NamedTuple\nfrom dataclasses import dataclass\n"
        "class Vector:\n    def __init__(self, x, y): self.x, self.y = x, y\n"
        "    def __add__(self, o): return Vector(self.x + o.x, self.y + o.y)\n"
        "    def __mul__(self, n): return Vector(self.x * n, self.y * n)\n    __rmul__ = __mul__\n"
        "    def __eq__(self, o): return (self.x, self.y) == (o.x, o.y)\n    def __hash__(self): return hash(self.x)\n"
        "    def __repr__(self): return f'V{self.x}'\n    def __len__(self): return 2\n"
        "    def __bool__(self): return self.x > 0\n"
        "    def __getitem__(self, i): return (self.x, self.y)[i]\n"
        "    def __contains__(self, n): return n in (self.x, self.y)\n"
        "    def __lt__(self, o): return self.x < o.x\n    @property\n    def norm(self): return abs(self.x)\n"
        "    @classmethod\n    def zero(cls): return cls(0, 0)\n"
        "class Stack(list):\n    def push(self, x): self.append(x)\n"
        "class Color(Enum): RED = 1; BLUE = 2\nclass Level(IntEnum): LOW = 1\n"
        "class Point(NamedTuple): x: int; y: int\n@dataclass\nclass Pair:\n    a: int\n    b: int = 2\n"
        "def point(): return Point(1, 2)\ndef color(): return Color.RED\ndef level(): return Level.LOW\n",
        """
v = Vector(1, 2)
assert (v.x, v.norm, len(v), v[1], 2 in v, repr(v), bool(Vector.zero())) == (1, 1, 2, 2, True, "V1", False)
assert v + v == Vector(2, 4) == v * 2 == 2 * v and v != Vector(0, 0) and {v: 1}[Vector(1, 2)] == 1
v.x = 5; assert v.x == 5 and list(v) == [5, 2] and isinstance(v, Vector) and not isinstance(3, Vector)
assert [x.x for x in sorted([v, Vector(3, 0)])] == [3, 5] and max(v, Vector(9, 0)).x == 9
assert issubclass(Vector, object) or True
s = Stack(); s.push(1); s.append(2); assert len(s) == 2 and s == [1, 2] and s[0] == 1
assert color() == Color.RED and color() is Color.RED and color().name == "RED" and color() != Color.BLUE
assert level() == 1 and level() + 1 == 2 and Color(1) == Color.RED and [c.value for c in Color] == [1, 2]
p = point(); assert p == (1, 2) and p.x == 1 and tuple(p) == (1, 2) and Point(1, 2) == p
assert Pair(1) == Pair(1, 2) and Pair(1).b == 2
""",
    ),
    "what an answer returns beside the reference's classes is data": (
        "class Text(str): pass\nclass Own(list): pass\nclass Whole(int):\n    kind = 'w'\nclass T(tuple): pass\n"
        "def text(): return Text('a')\ndef own(): return Own([1])\ndef whole(): return Whole(3)\n"
        "def t(): return T((1,))",
        """
assert text() == "a" and text() + "b" == "ab" and own() == [1] and whole() == 3 and whole() - 1 == 2 and t() == (1,)
assert whole().kind == "w" and isinstance(text(), str) and {text(): 1}["a"] == 1
""",
        "",
        "",
    ),
    "classes of the setup are on both sides": (
        "def values(node):\n    while node: yield node.value; node = node.next\n"
        "def reverse(node):\n    last = None\n    while node: node.next, last, node = last, node, node.next\n"
        "    return last\n"
        "def make(n): return Node(n, Node(n + 1) if isinstance(n, int) else None)\n"
        "def shade(c): return Shade.DARK if c is Shade.LIGHT else c",
        """
head = Node(1, Node(2, Node(3)))
assert list(values(head)) == [1, 2, 3] and make(5) == Node(5) and make(5).next.value == 6 and type(make(1)) is Node
new = reverse(head); assert new.value == 3 and new.next.next is head and head.next is None
ring = Node(1); ring.next = ring; assert reverse(ring) is ring
long = None
for n in range(1500): long = Node(n, long)
assert next(values(long)) == 1499 and make(long).value is long
assert shade(Shade.LIGHT) is Shade.DARK and N == 3
""",
        f"{GRAPH}\nimport enum\nclass Shade(enum.Enum): LIGHT = 1; DARK = 2\n"
        "N = len(list(values(Node(1, Node(2, Node(3))))))",
    ),
    "objects of the tests are used where they are": (
        "def speak(dog): dog.said += 1; return dog.bark('!') + str(len(dog))\ndef build(kind): return kind(2).n\n"
        "def read(file): return file.read()\ndef entered(x):\n    with x as y: return y",
        """
import io
class Dog:
    said = 0
    def __init__(self, n=1): self.n = n
    def bark(self, mark): return "wuff" + mark
    def __len__(self): return 7
    def __enter__(self): return 9
    def __exit__(self, *error): self.left = error
dog = Dog(); assert speak(dog) == "wuff!7" and dog.said == 1 and build(Dog) == 2 and read(io.StringIO("x")) == "x"
assert entered(dog) == 9 and dog.left == (None, None, None)
""",
    ),
    "names: state, builtins, what is printed": (
        "import math\nfrom collections import Counter\ncalls = 0\nTABLE = {1: 2}\n"
        "def sum(a, b): return a + b\ndef hit():\n    global calls\n    calls += 1\n",
        """
assert sum(10, 15) == 25 and calls == 0
hit(); hit(); assert calls == 2 and TABLE == {1: 2} and math.pi > 3 and Counter("aa") == {"a": 2}
def inner():
    hit(); return calls
assert inner() == 3 and len([1]) == 1
""",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_holds_in_one_process_holds_across_two(case: tuple[str, ...]) -> None:
    answer, tests, *setup = case
    names = named_anew("answer")
    for text in (answer, *setup[:1], tests):
        execute(text, "answer", names)
    judged(answer, tests, *setup)


def fails(answer: str, tests: str, **given: str) -> bool:
    with suppress(BaseException):
        judged(answer, tests, **given)
        return False
    return True


LIES = """
class Any:
    def __init__(self, *a): pass
    def __new__(cls, *a): return object.__new__(cls)
    def yes(self, *a): return True
    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __bool__ = yes
    def zero(self, *a): return 0
    __sub__ = __rsub__ = __add__ = __mul__ = __float__ = __int__ = __index__ = zero
    def __hash__(self): return 0
"""


@pytest.mark.parametrize(
    "answer",
    [
        f"{LIES}def square(x): return Any()",
        LIES.replace("class Any", "class square"),
        f"{LIES}def square(x): return [Any()]",
        "class N(int):\n    def __eq__(self, o): return True\n    def __sub__(self, o): return 0\n"
        "def square(x): return N()",
        "def square(x): raise SystemExit(0)",
        "import builtins, operator\nabs = sum = lambda *a: 0\ndef square(x): return 0",
        "from unittest.mock import ANY as square",
        "from unittest.mock import MagicMock as square",
        "import unittest.mock as square",
        "square = type('int', (int,), {'__eq__': lambda s, o: True})",
        "def square(x): return square\nsquare.__eq__ = lambda o: True",
        "class E(AssertionError): pass\ndef square(x): raise StopIteration",
    ],
)
def test_no_result_equals_what_it_is_not(answer: str) -> None:
    for tests in ("assert square(3) == 9", "assert 9 == square(3)", "assert abs(square(3) - 9) < 1e-6",
                  "assert [square(3)] == [9]", "assert square(3) in (9, 10)", "assert {square(3)} == {9}",
                  "import math; assert math.isclose(square(3), 9)", "assert square(3) <= 9 <= square(3)",
                  "assert sum([square(3)]) == 9", "assert max(square(3), 8) == 9"):  # fmt: skip
        assert fails(answer, tests, reference="def square(x): return x * x"), tests
    assert not fails("def square(x): return x * x", tests)


NOSY = """
def square(x, f=None):
    found = None
    for way in WAYS:
        try: found = eval(way)
        except BaseException: continue
        if found is not None: raise SystemExit(way)
    return x * x
"""


def test_an_answer_sees_nothing_of_the_tests_but_what_they_hand_it() -> None:
    names = ("__globals__", "__code__", "gi_frame", "gi_code", "f_locals")
    ways = [f"f.{name}" for name in names] + ["LINK.ask('name', 'EXPECTED')", "EXPECTED"]
    ways += ["next(f).gi_frame", "LINK.ask('getattr', 'x', 'format')"]
    answer = NOSY.replace("WAYS", repr(ways)).replace("LINK", "type(f).__getattribute__(f, '_link')")
    for given in ("lambda: EXPECTED", "(n for n in ())", "Check()", "Check", "print", "__import__('sys')"):
        tests = f"EXPECTED = 9\nclass Check:\n    secret = 1\nassert square(3, {given}) == EXPECTED"
        judged(answer, tests)


@pytest.mark.parametrize(
    "line",
    [
        "not JSON",
        "[]",
        '["answer", true, 9]',
        '["answer", true, [0], [["many", "tuple", [[0]]]], [], ""]',
        '["answer", true, [0], [["shared", "Check", [], null]], [], ""]',
        '["answer", true, [0], [["error", 3, [], []]], [], ""]',
        '["answer", true, [0], [["module", "pilocal.sandbox.wire"]], [], ""]',
        '["answer", true, [0], [["class", "nothing"]], [], ""]',
        '["answer", true, 9, [], [[0, ["shared", "x", [["isclose", 1]], null]]], ""]',
        '["answer", true, 9, [], [], [1]]',
        '["answer", false, 9, [], [], ""]',
    ],
)
def test_what_is_no_message_fails_the_tests_and_changes_nothing_on_their_side(line: str) -> None:
    tests = "import math\nclass Check: pass\nassert square(math) == 9"
    (reading, writing), (asked, ask) = os.pipe(), os.pipe()
    with os.fdopen(writing, "wb") as file:
        file.write(line.encode() + b"\n")
    names = named_anew("tests")
    link = Link(reading, ask, names, judge=True)
    names["__builtins__"] = Names(link, ())
    names["square"] = link.stand_in(0, lambda: link.remote(0, whole=False, waits=False))
    with pytest.raises(Exception):  # noqa: B017  whatever it is, the tests have not held
        execute(tests, "tests", names)
    link._writing.close()
    link._reading.close()
    os.close(asked)


TESTS = "assert square(2) == 4\nassert square(-3) == 9"
SQUARE = "def square(x): return x * x\n"


@pytest.fixture(scope="module")
def apart() -> None:
    try:
        assert judge.tests_hold(SQUARE, "", TESTS, "", Limits(seconds=60))
    except SandboxError as error:
        pytest.skip(str(error))


WALK = """
import gc, os, sys, threading, atexit
def seen():
    for frames in (sys._current_frames().values(), [sys._getframe()]):
        for frame in frames:
            while frame:
                yield from frame.f_locals.values()
                yield from frame.f_globals.values()
                yield from frame.f_code.co_consts
                frame = frame.f_back
    yield from gc.get_objects()
def tell():
    for thing in list(seen()):
        text = thing if isinstance(thing, bytes) else str(thing).encode() if isinstance(thing, str) else b""
        for number in range(1, 12):
            if len(text) == 32:
                try: os.write(number, text)
                except OSError: pass
"""
"""Writes whatever could be a nonce, found in frames, constants and on the heap, into every pipe that is there."""


@pytest.mark.parametrize(
    "answer",
    [
        f"{WALK}tell()\nos._exit(0)",
        f"{WALK}atexit.register(tell)\nraise SystemExit(0)",
        f"{WALK}def square(x):\n    tell(); os._exit(0)",
        f"{WALK}sys.settrace(lambda *a: sys.settrace(None) or tell())\n"
        "threading.Thread(target=tell, daemon=True).start()\ndef square(x): return 4",
        "import builtins\nclass A:\n    def __eq__(s, o): return True\nbuiltins.AssertionError = A\n"
        "builtins.__import__ = builtins.exec = builtins.compile = lambda *a, **k: A()\ndef square(x): return A()",
        "import json, os, sys\nm = sys.modules['pilocal.sandbox.wire']\nm.json.dumps = lambda *a: '[]'\n"
        "def square(x): return 4",
        "import ctypes\ndef square(x): ctypes.string_at(0)",
    ],
    ids=["exit", "atexit", "inside", "trace", "builtins", "wire", "crash"],
)
def test_no_answer_passes_by_what_it_does_to_its_own_process(answer: str, apart: None) -> None:
    assert not judge.tests_hold(answer, "", TESTS, SQUARE, Limits(seconds=5))
