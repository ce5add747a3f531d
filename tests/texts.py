"""Texts that are hard on tokenizers: random Unicode of every plane, and what code is made of."""

from __future__ import annotations

from random import Random

SPACES = " \t\n\r\x0b\x0c\x85\xa0\u1680\u2000\u2003\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
INVISIBLE = "\xad\u034f\u061c\u180e\u200b\u200c\u200d\u200e\u2060\ufe0e\ufe0f\ufeff\U000e0001\U000e0061"
CONTROL = "".join(map(chr, (*range(32), *range(127, 160))))
MARKS = "\u0300\u0301\u0308\u0327\u0345\u05b0\u064b\u0670\u093c\u0941\u0e31\u0e48\u1ab0\u20dd\u3099\ufe20\U0001d165"
EMOJI = (
    *("\U0001f600", "\U0001f469\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\U0001f44d\U0001f3fd"),
    *("\U0001f3f3\ufe0f\u200d\U0001f308", "\u263a\ufe0f", "1\ufe0f\u20e3", "\U0001f9d1\U0001f3ff\u200d\U0001f680"),
)
DIGITS = "0123456789\u0660\u0663\u096b\u0e53\u0ed7\uff10\uff19\xb2\xbd\u2167\u3007\u4e00\U0001d7ce\U000104a0"
LETTERS = (
    "aAzZ\xe9\xdf\xff\u0131\u017fK\u01c5\u03b1\u03a9\u0436\u0416\u05d0\u0639\u0939\u0e01\u3042\u6f22\u5b57\ud55c\uae00"
    "\u02bb\xaa\xba\ufb01\ufb00\ua722\U00010400\U0001d400\U00020000"
)
PUNCTUATION = (
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~\xa1\xab\xbb\u2018\u2019\u201c\u201d\u2026\u2013\u2014\u30fb\u3002\u3001"
    "\xb1\xd7\xf7\u221a\u221e\u20ac\xa3\u2581\u0120\ufffd"
)
CONTRACTIONS = ("'s", "'S", "'t", "'re", "'Re", "'ve", "'m", "'ll", "'LL", "'d", "'\u017f", "\u2019s", "'", "''s")
LOOK_ALIKES = (
    *("<s>", "</s>", "<unk>", "< s>", "<|eot_id|>", "<|eot_id |>", "<|im_end|>", "<|im_end|", "[INST]", "<0x0A>"),
    *("[UNUSED2047]", "<|fim_pad|>", "<tool_call>", "<<SYS>>"),
)
CODE = (
    *("def f(x):\n    return x**2\n", "if (a != b) {\n\t\treturn;\n}\r\n", "    ", "\t", "\n\n", "\n", "  \n  ", "->"),
    *("0x7fff_ffff", "1e-10", "3.14", "1234567", "snake_case", "CamelCase", "// TODO:", "/* */", "#!/bin/sh", "$(ls)"),
    *(
        "find . -name '*.py' | xargs grep -n",
        "http://a.b/c?d=e&f=%20",
        "C:\\x\\y",
        "{'a': [1, 2]}",
        "\\n\\t",
        "<b></b>",
    ),
)
KINDS = (SPACES, INVISIBLE, CONTROL, MARKS, EMOJI, DIGITS, LETTERS, PUNCTUATION, CONTRACTIONS, LOOK_ALIKES, CODE)

NEW_LETTERS = frozenset(
    chr(point)
    for first, last in (
        *((0x1C89, 0x1C8A), (0xA7CB, 0xA7CD), (0xA7DA, 0xA7DC), (0x105C0, 0x105F3), (0x10D40, 0x10D65)),
        *((0x10D6F, 0x10D85), (0x10EC2, 0x10EC4), (0x11380, 0x11389), (0x1138B, 0x1138B), (0x1138E, 0x1138E)),
        *((0x11390, 0x113B5), (0x113B7, 0x113B7), (0x113D1, 0x113D1), (0x113D3, 0x113D3), (0x116D0, 0x116E3)),
        *((0x11BC0, 0x11BE0), (0x11BF0, 0x11BF9), (0x13460, 0x143FA), (0x16100, 0x1611D), (0x16130, 0x16139)),
        *((0x16D40, 0x16D6C), (0x16D70, 0x16D79), (0x18CFF, 0x18CFF), (0x1CCF0, 0x1CCF9), (0x1E5D0, 0x1E5ED)),
        (0x1E5F0, 0x1E5FA),
    )
    for point in range(first, last + 1)
)
"""Letters and digits of Unicode 16 that Hugging Face's tokenizers know as such and llama.cpp does not."""


def hard_texts(seed: int, count: int) -> list[str]:
    """Return so many random texts; half of their characters are drawn from all of Unicode without the surrogates."""
    rng = Random(seed)
    return ["".join(_piece(rng) for _ in range(rng.randint(1, 24))) for _ in range(count)]


def _piece(rng: Random) -> str:
    kind = rng.random()
    if kind < 0.45:
        return any_character(rng)
    if kind < 0.55:
        return rng.choice(SPACES) * rng.choice((1, 1, 1, 2, 5))
    return rng.choice(rng.choice(KINDS))


def any_character(rng: Random) -> str:
    """Return a character, from a block near the beginning as often as from everywhere."""
    end = rng.choice((0x80, 0x800, 0x3000, 0xD800, 0x10000, 0x20000, 0x110000))
    while 0xD800 <= (point := rng.randrange(end)) < 0xE000:
        pass
    return chr(point)
