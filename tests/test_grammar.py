"""Grammars that a client sends: what is refused and why, and what is followed, compared with llama.cpp's sampler."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest

from pilocal.base.base import Base
from pilocal.export.fused import export_fused
from pilocal.llamacpp import automaton
from pilocal.llamacpp.gbnf import MAX_BYTES, MAX_DEPTH, MAX_ELEMENTS, MAX_REPEATED
from pilocal.llamacpp.gbnf_rules import MAX_WAYS, read_grammar
from pilocal.llamacpp.grammar import MAX_WORK, Grammar, GrammarError, Vocabulary, check_grammar
from pilocal.llamacpp.model import Model
from tests.grammars import Sampler, draw, random_grammar, stacks

ROOT = Path(__file__).parent.parent
BYTES = Vocabulary([bytes([byte]) for byte in range(256)] + [b""], [256])
"""Tokens of one byte, and an end."""


@pytest.fixture(scope="session")
def starter_gguf(tmp_path_factory: pytest.TempPathFactory, starter: Base) -> Path:
    return export_fused(starter, None, tmp_path_factory.mktemp("grammar") / "starter.gguf", "f16")


def fits(grammar: str, text: str) -> bool:
    """Whether a grammar takes a text as a whole."""
    machine = automaton.Automaton(read_grammar(grammar))
    state = machine.walk(machine.start, text.encode())
    return state is not None and state.complete


@pytest.mark.parametrize(
    ("grammar", "problem"),
    [
        ("", "the grammar is empty"),
        ("# nothing\n", "the grammar has no rule `root`"),
        ('start ::= "a"', "the grammar has no rule `root`"),
        ("root ::= a", "line 1: rule `a` is used and not defined"),
        ('root ::= "a"\nroot ::= "b"', "line 2, rule `root`: it is defined twice"),
        ('root ::= root "a" | "b"', "line 1, rule `root`: it begins with itself, which is left recursion"),
        ('root ::= a\na ::= b\nb ::= a "x" | "y"', "line 2, rule `a`: it begins with itself"),
        ('root ::= e root "x" | "y"\ne ::= f\nf ::= "a"?', "line 1, rule `root`: it begins with itself"),
        ('root ::= "x" ("a"?)*', "line 1, rule `root`: its endless repetition repeats what can be empty"),
        ('root ::= ws+\nws ::= " "*', "line 1, rule `root`: its endless repetition repeats what can be empty"),
        ('root ::= "a" root', "line 1, rule `root`: it never ends, whatever it writes"),
        ('root ::= "a" | b\nb ::= "(" b ")"', "line 2, rule `b`: it never ends"),
        ('root ::= ""', "line 1, rule `root`: it matches nothing but the empty text"),
        ("root ::=", "line 1, rule `root`: it matches nothing but the empty text"),
        ('root ::= "a"{0}', "line 1, rule `root`: it matches nothing but the empty text"),
        ("root ::= []", "line 1, rule `root`: a set of characters is empty"),
        ("root ::= [z-a]", "line 1, rule `root`: a range of characters ends before it begins"),
        ('root ::= "\\U00110000"', "line 1, rule `root`: no character is in a set or literal"),
        ("root ::= [\\ud800-\\udfff]", "line 1, rule `root`: no character is in a set or literal"),
        ("root ::= [^\\x00-\\U0010FFFF]", "line 1, rule `root`: no character is in a set or literal"),
        ('root ::= "a', "line 1, rule `root`: the text ends within quotes or brackets"),
        ("root ::= [a", "line 1, rule `root`: the text ends within quotes or brackets"),
        ('root ::= "\\', "line 1, rule `root`: no such escape"),
        ('root ::= "\\q"', "line 1, rule `root`: no such escape: '\\\\q'"),
        ('root ::= "\\xg0"', "line 1, rule `root`: no such escape"),
        ('root ::= ("a"', "line 1, rule `root`: ) is expected"),
        ('root ::= "a")', "line 1, rule `root`: the rule cannot go on like this; got ')'"),
        ('root = "a"', "line 1, rule `root`: ::= is expected"),
        ('root ::= "a"\n_ ::= "b"', "line 2: a rule's name is expected"),
        ('root ::= "a"\n"b"', "line 2: a rule's name is expected"),
        ("root ::= *", "line 1, rule `root`: there is nothing to repeat"),
        ('root ::= ""*', "line 1, rule `root`: there is nothing to repeat"),
        ('root ::= "a"{', "line 1, rule `root`: a number is expected after {"),
        ('root ::= "a"{5,3}', "line 1, rule `root`: a repetition of at least 5 and at most 3"),
        ('root ::= "a"{1000000}', f"line 1, rule `root`: a repetition is over {MAX_REPEATED}"),
        ('root ::= "a"{0,1000000}', f"line 1, rule `root`: a repetition is over {MAX_REPEATED}"),
        ('root ::= "a"{' + "9" * 5000 + "}", f"line 1, rule `root`: a repetition is over {MAX_REPEATED}"),
        ('root ::= "a"{100}{100}', "line 1, rule `root`: repetitions within each other make more than"),
        ('root ::= ("a"{0,100} "b"){100}', "line 1, rule `root`: repetitions within each other make more than"),
        ('root ::= "' + "abcdefghij" * 10 + '"{2000}', f"more than {MAX_ELEMENTS} elements"),
        ("root ::= " + "(" * 100_000, f"line 1, rule `root`: more than {MAX_DEPTH} groups are within each other"),
        ('root ::= "' + "a" * MAX_BYTES + '"', f"the grammar has {MAX_BYTES + 11} bytes"),
        ('root ::= "' + "".join(chr(0x4E00 + i) for i in range(5000)) + '"', "more than 4000 characters and sets"),
        ('root ::= "a\0"', "line 1: a NUL ends the text"),
        ('root ::=\n"\ud800"', "line 2: half a surrogate pair is no character"),
        ("root ::= <think>", "line 1, rule `root`: tokens such as <[1]> are not taken here"),
        ("root ::= !<[7]>*", "line 1, rule `root`: tokens such as <[1]> are not taken here"),
        (
            'root ::= r0\nr20 ::= "x"\n' + "\n".join(f'r{i} ::= r{i + 1} "a" | r{i + 1} "b"' for i in range(20)),
            f"can begin in more than {MAX_WAYS} ways",
        ),
    ],
    ids=lambda value: ascii(value)[1:41],
)
def test_a_grammar_that_ends_or_stalls_llama_cpp_is_refused_in_one_line(grammar: str, problem: str) -> None:
    with pytest.raises(GrammarError) as caught:
        check_grammar(grammar)
    assert problem in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("grammar", "inside", "outside"),
    [
        ('root ::= "a" | b # ends\nb ::= "c" |\n  "d"', ("a", "c", "d"), ("", "b", "ac")),
        ('root ::= ( "a"\n # a comment\n "b" )+', ("ab", "abab"), ("", "a", "aba")),
        ('root ::= "x"{2,3} "y"{2,} "z"? "w"{0}', ("xxyy", "xxxyyyyz"), ("xyy", "xxxxyy", "xxyyzz", "xxyyw")),
        ('root ::= [^"\\\\\\x00-\\x1f]* "\\n"', ("\n", "a\u00e9\u6f22\U0001f600\n"), ('"\n', "\t\n", "a")),
        ("root ::= [a-] [\\-\\]] .", ("a-\n", "-]\u00e9", "--\U0001f600"), ("b-a", "a", "---a")),
        ("root ::= [\u3042-\U0001f600] [^\\u00e9]", ("\u3042a", "\uffff\U0010ffff"), ("\u3041a", "\u6f22\u00e9")),
        ('root ::= "a" root "b" | "a" root "c" | "d"', ("d", "a" * 90 + "d" + "bc" * 45), ("abd", "adbc")),
        ('root ::= e e e "x"\ne ::= f?\nf ::= "y" | "yy"', ("x", "yx", "yyyyyyx"), ("yyyyyyyx", "y")),
        ('root ::= "(" root? ")" ws\nws ::= " "?', ("()", "(() ) "), ("(", "()  ")),
        ('\n\nroot::="\u6f22"\r\nunused ::= "\\x41\\t\\r\\[\\""', ("\u6f22",), ("\u6f23", "\ufffd")),
    ],
)
def test_a_grammar_takes_its_texts_and_no_others(
    grammar: str, inside: tuple[str, ...], outside: tuple[str, ...]
) -> None:
    assert [text for text in inside if not fits(grammar, text)] == []
    assert [text for text in outside if fits(grammar, text)] == []


def test_a_set_of_characters_is_exactly_its_bytes() -> None:
    rng = Random(0)
    for _ in range(30):
        low, high = sorted(rng.choice((rng.randrange(1, 0x900), rng.randrange(0x900, 0x110000))) for _ in range(2))
        machine = automaton.Automaton(read_grammar(f"root ::= [\\U{low:08X}-\\U{high:08X}z]"))
        near = {low - 1, low, low + 1, high - 1, high, high + 1, 0x7F, 0x80, 0x7FF, 0x800, 0xFFFF, 0x10000}
        for code in near.union(rng.randrange(0x110000) for _ in range(50)):
            if 0 < code < 0x110000 and not 0xD800 <= code < 0xE000 and code != ord("z"):
                state = machine.walk(machine.start, chr(code).encode())
                assert (state is not None and state.complete) == (low <= code <= high), (low, high, code)
        for broken in (b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"\x80", b"\xff"):
            assert machine.walk(machine.start, broken) is None


def test_only_what_fits_is_left_and_the_end_where_the_answer_may_end() -> None:
    grammar = Grammar('root ::= "ab" | "a" [0-9]+', BYTES)
    logits = np.zeros(257, np.float32)
    assert grammar.apply(logits)
    assert np.flatnonzero(np.isfinite(logits)).tolist() == [ord("a")]
    assert not grammar.complete
    for token in (ord("a"), ord("7")):
        assert grammar.allows(token)
        grammar.accept(token)
    logits[:] = 1
    assert grammar.apply(logits)
    assert np.flatnonzero(np.isfinite(logits)).tolist() == [*range(ord("0"), ord("9") + 1), 256]
    assert grammar.complete
    grammar.accept(256)
    assert not grammar.apply(logits)
    assert not any(grammar.allows(token) for token in (256, ord("7")))


def test_a_token_that_does_not_fit_is_refused_and_changes_nothing() -> None:
    grammar = Grammar('root ::= "ab"', BYTES)
    for token in (ord("b"), 256, 257, -1):
        assert not grammar.allows(token)
        with pytest.raises(ValueError, match=rf"^token {token} does not fit the grammar$"):
            grammar.accept(token)
    grammar.accept(ord("a"))
    grammar.accept(ord("b"))
    assert grammar.complete


def test_where_no_token_can_follow_the_answer_has_to_end() -> None:
    vocabulary = Vocabulary([b"a", b"b", b"<control>"[:0], b""], [3])
    grammar = Grammar('root ::= "a" [0-9]', vocabulary)
    grammar.accept(0)
    logits = np.zeros(4, np.float32)
    assert not grammar.apply(logits)
    assert np.isneginf(logits).all()
    barred = np.array([-np.inf, 0, 0, 0], np.float32)  # what fits has been ruled out by somebody else
    assert not Grammar('root ::= "a"', vocabulary).apply(barred)


def test_requests_of_one_grammar_share_its_states_and_not_their_places() -> None:
    text = 'root ::= "a"+ "b"'
    one, other = Grammar(text, BYTES), Grammar(text, BYTES)
    one.accept(ord("a"))
    assert one.allows(ord("b"))
    assert not other.allows(ord("b"))
    assert BYTES.automaton(text) is BYTES.automaton(text)


def test_states_are_forgotten_within_a_request_and_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automaton, "MAX_HELD", 100)
    grammar = Grammar('root ::= "[" (root ("," root)*)? "]" | [a-z]{1,40}', BYTES)
    for byte in b"[" * 200 + b"abc" + b",[]]" * 199 + b"]":
        assert grammar.apply(np.zeros(257, np.float32))
        grammar.accept(byte)
    assert grammar.complete
    machine = BYTES.automaton('root ::= "[" (root ("," root)*)? "]" | [a-z]{1,40}')
    assert len(machine._states) < 100


@pytest.mark.parametrize(
    "grammar",
    [
        "root ::= (" + " | ".join(["[a-z]"] * 100) + ')* "."',
        'root ::= "a" root "x" | "a" root "y" | "b"',
        'root ::= "a" root root | "a" root root root | "b"',
        'root ::= [a-z]* [aeiou] [a-z]{100} "."',
        "root ::= (" + " | ".join(f'"{"a" * i}"' for i in range(1, 90)) + ')* "."',
        "root ::= ([a-z] | " + " | ".join(f"r{i}" for i in range(60)) + ")+\n"
        + "\n".join(f'r{i} ::= "a"{{{i + 1}}} root "b"{{{i + 1}}}' for i in range(60)),
    ],
)  # fmt: skip
def test_an_ambiguous_grammar_takes_bounded_work_with_long_tokens(
    grammar: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = Random(0)
    words = sorted({"".join(rng.choices("aaaeixyz.", k=rng.randint(2, 30))).encode() for _ in range(3000)})
    vocabulary = Vocabulary([*(bytes([byte]) for byte in range(256)), b"a" * 200, *words, b""], [257 + len(words)])
    steps = 0
    closed = automaton.Automaton._closed

    def counted(self: automaton.Automaton, *places: list) -> automaton.State | None:  # type: ignore[type-arg]
        nonlocal steps
        found = closed(self, *places)
        steps += 1 + (len(found.items) if found else automaton.MAX_ITEMS)
        return found

    monkeypatch.setattr(automaton.Automaton, "_closed", counted)
    answer = Grammar(grammar, vocabulary)
    for _ in range(12):
        before = steps
        logits = np.zeros(vocabulary.size, np.float32)
        assert answer.apply(logits)
        assert steps - before < MAX_WORK + 5 * automaton.MAX_ITEMS
        assert answer.allows(ord("a"))
        answer.accept(ord("a"))


def test_a_fuzzed_grammar_raises_nothing_else_and_its_answers_fit(starter_gguf: Path) -> None:
    with Model(starter_gguf, vocabulary_only=True) as model:
        vocabulary = Vocabulary.of(model.tokenizer)
    taken = 0
    for seed in range(3000):
        text = random_grammar(Random(seed))
        try:
            check_grammar(text)
        except GrammarError as error:
            assert len(str(error).splitlines()) == 1
            continue
        taken += 1
        if taken % 10 == 0:
            answer, _ = draw(text, vocabulary, seed, limit=32)
            machine = automaton.Automaton(read_grammar(text))
            assert machine.walk(machine.start, answer) is not None
    assert taken > 400


def test_llama_cpp_takes_what_is_taken_here_and_allows_the_same_tokens(starter_gguf: Path) -> None:
    """In a process of its own, as llama.cpp would take this one with it."""
    code = f"from tests.test_grammar import compare; compare({str(starter_gguf)!r})"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    found = re.search(r"^(\d+) compared, (\d+) steps$", done.stdout, re.M)
    assert found
    assert int(found[1]) > 100
    assert int(found[2]) > 500


def compare(gguf: str) -> None:
    """Follow random grammars here and in llama.cpp; where it would keep many stacks it may stall, and is not asked.

    Tokens that write nothing or no whole characters are left out: llama.cpp allows control tokens as text, and bytes
    that are in no UTF-8.
    """
    compared = steps = 0
    with Model(Path(gguf), vocabulary_only=True) as model:
        vocabulary = Vocabulary.of(model.tokenizer)
        plain = np.array(
            [b"\xef\xbf\xbd" not in piece.decode(errors="replace").encode() for piece in vocabulary.pieces]
        )
        plain &= vocabulary.lengths > 0
        plain[list(vocabulary.ends)] = True
        for seed in range(800):
            text = random_grammar(Random(seed))
            try:
                grammar = Grammar(text, vocabulary)
            except GrammarError:
                continue
            sampler = Sampler(model.tokenizer._vocabulary, vocabulary.size, text)
            assert sampler.taken, text
            compared += 1
            rng = np.random.default_rng(seed)
            for _ in range(16):
                if stacks(grammar) > 6:
                    break
                logits = rng.normal(size=vocabulary.size).astype(np.float32)
                left = grammar.apply(logits)
                differ = plain & (np.isfinite(logits) != sampler.fitting())
                assert not differ.any(), (text, [vocabulary.pieces[token] for token in np.flatnonzero(differ)])
                token = int(logits.argmax())
                steps += 1
                if not left or token in vocabulary.ends:
                    break
                grammar.accept(token)
                sampler.accept(token)
            sampler.close()
    print(f"{compared} compared, {steps} steps")  # noqa: T201


def test_control_tokens_are_no_text(starter_gguf: Path) -> None:
    with Model(starter_gguf, vocabulary_only=True) as model:
        vocabulary = Vocabulary.of(model.tokenizer)
        controls = [model.tokenizer.tokens(text, special=True) for text in model.tokenizer.control_texts()]
    grammar = Grammar("root ::= .+", vocabulary)
    assert len(controls) > 2
    assert not any(grammar.allows(token) for tokens in controls for token in tokens)
    grammar.accept(next(i for i, piece in enumerate(vocabulary.pieces) if piece == b"a"))
    assert all(grammar.allows(token) for token in vocabulary.ends)
