"""The rules of a GBNF grammar, refused where llama.cpp refuses them, and where they would end or stall it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pilocal.llamacpp.gbnf import Body, GrammarError, Ranges, Reader, check_text

MAX_WAYS = 4_000
"""Ways in which a rule may begin; llama.cpp keeps a stack for each."""


@dataclass(frozen=True, slots=True)
class Rules:
    """A grammar that is safe to use: it has no left recursion, and every rule can end."""

    alternatives: tuple[tuple[Body, ...], ...]
    """Of each rule."""
    sets: tuple[Ranges, ...]
    root: int
    nullable: frozenset[int]
    """The rules that may write nothing."""
    order: tuple[int, ...]
    """All rules, each before those with which it may begin."""


def read_grammar(text: str) -> Rules:
    """Return the rules of a grammar; raises GrammarError as `check_grammar` says."""
    check_text(text)
    reader = Reader(text)
    reader.read()
    if "root" not in reader.symbols:
        raise GrammarError("the grammar has no rule `root`; begin with `root ::= ...`")
    for name, index in reader.symbols.items():
        if index not in reader.bodies:
            raise GrammarError(f"line {reader.used[index]}: rule `{name}` is used and not defined")
    alternatives = tuple(tuple(reader.bodies[index]) for index in range(len(reader.symbols)))
    endless = set(range(len(alternatives))) - _derived(alternatives, characters=True)
    if endless:
        raise GrammarError(f"{reader.place(min(endless))}: it never ends, whatever it writes")
    nullable = frozenset(_derived(alternatives, characters=False))
    first = [_first_rules(bodies, nullable) for bodies in alternatives]
    order = _callers_first(first, reader)
    _check_ways(alternatives, nullable, order, reader)
    root = reader.symbols["root"]
    if not _writes(alternatives, root):
        raise GrammarError(f"{reader.place(root)}: it matches nothing but the empty text")
    return Rules(alternatives, tuple(reader.sets), root, nullable, order)


def _derived(alternatives: Sequence[Sequence[Body]], *, characters: bool) -> set[int]:
    """Return the rules that derive a finite text; without `characters`, those that derive the empty text."""
    bodies = [(rule, body) for rule, each in enumerate(alternatives) for body in each]
    if not characters:
        bodies = [(rule, body) for rule, body in bodies if min(body, default=0) >= 0]
    needed = [[symbol for symbol in body if symbol >= 0] for _, body in bodies]
    waiting: dict[int, list[int]] = defaultdict(list)
    for entry, symbols in enumerate(needed):
        for symbol in symbols:
            waiting[symbol].append(entry)
    return _reached(waiting, list(map(len, needed)), [rule for rule, _ in bodies])


def _reached(waiting: Mapping[int, Sequence[int]], missing: list[int], owner: Sequence[int]) -> set[int]:
    """Return the rules of which one entry lacks nothing, when those that are found are lacking no more."""
    found: set[int] = set()
    ready = [rule for rule, count in zip(owner, missing, strict=True) if not count]
    while ready:
        rule = ready.pop()
        if rule in found:
            continue
        found.add(rule)
        for entry in waiting.get(rule, ()):
            missing[entry] -= 1
            if not missing[entry]:
                ready.append(owner[entry])
    return found


def _first_rules(bodies: Sequence[Body], nullable: frozenset[int]) -> list[int]:
    """Return the rules with which a rule may begin."""
    found = []
    for body in bodies:
        for symbol in body:
            if symbol >= 0:
                found.append(symbol)
            if symbol not in nullable:
                break
    return found


def _callers_first(first: Sequence[Sequence[int]], reader: Reader) -> tuple[int, ...]:
    """Return the rules in order; raises GrammarError where a rule can begin with itself."""
    done: list[int] = []
    state = [0] * len(first)  # 1 is in progress, 2 is done
    for start in range(len(first)):
        path = [] if state[start] else [(start, iter(first[start]))]
        state[start] = state[start] or 1
        while path:
            rule, rest = path[-1]
            following = next(rest, None)
            if following is None:
                state[rule] = 2
                done.append(rule)
                path.pop()
            elif state[following] == 1:
                loop = rule == following and rule in reader.loops
                what = "its endless repetition repeats what can be empty" if loop else "it begins with itself"
                raise GrammarError(f"{reader.place(following)}: {what}, which is left recursion")
            elif not state[following]:
                state[following] = 1
                path.append((following, iter(first[following])))
    return tuple(reversed(done))


def _check_ways(
    alternatives: Sequence[Sequence[Body]], nullable: frozenset[int], order: Sequence[int], reader: Reader
) -> None:
    """Raise GrammarError where a rule may begin in more ways than llama.cpp can keep."""
    ways = [0] * len(alternatives)
    for rule in reversed(order):
        for body in alternatives[rule]:
            for symbol in body:
                ways[rule] += ways[symbol] if symbol >= 0 else 1
                if symbol not in nullable:
                    break
            else:
                ways[rule] += 1
        if ways[rule] > MAX_WAYS:
            raise GrammarError(f"{reader.place(rule)}: it can begin in more than {MAX_WAYS} ways")


def _writes(alternatives: Sequence[Sequence[Body]], root: int) -> bool:
    """Tell whether a character can be reached from a rule."""
    seen, todo = {root}, [root]
    while todo:
        for body in alternatives[todo.pop()]:
            for symbol in body:
                if symbol < 0:
                    return True
                if symbol not in seen:
                    seen.add(symbol)
                    todo.append(symbol)
    return False
