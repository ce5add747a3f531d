"""Texts that are hard on tokenizers: random Unicode of every plane, and what code is made of."""

from __future__ import annotations

from random import Random

SPACES = " \t\n\r\x0b\x0c\x85\xa0\u1680\u2000\u2003\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
INVISIBLE = "\u00ad\u034f\u061c\u180e\u200b\u200c\u200d\u200e\u2060\ufe0e\ufe0f\ufeff\U000e0001\U000e0061"
CONTROL = "".join(map(chr, (*range(32), *range(127, 160))))
MARKS = "\u0300\u0301\u0308\u0327\u0345\u05b0\u064b\u0670\u093c\u0941\u0e31\u0e48\u1ab0\u20dd\u3099\ufe20\U0001d165"
EMOJI = ("😀", "👩‍👩‍👧‍👦", "🇩🇪", "🏳️‍🌈", "👍🏽", "☺️", "1️⃣", "🧑🏿‍🚀", "\U0001fae8")
DIGITS = "0123456789٠٣५๓໗０９²½Ⅷ〇一\U0001d7ce\U000104a0"
LETTERS = "aAzZéßÿıſKǅαΩжЖאعहกあ漢字한글ʻªºﬁﬀꜢ\U00010400\U0001d400\U00020000"
PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~¡«»‘’“”…–—・。、±×÷√∞€£▁Ġ�"
CONTRACTIONS = ("'s", "'S", "'t", "'re", "'Re", "'ve", "'m", "'ll", "'LL", "'d", "'ſ", "’s", "'", "''s")
LOOK_ALIKES = ("<s>", "</s>", "<unk>", "< s>", "<|eot_id|>", "<|eot_id |>", "<|im_end|>", "<|im_end|", "[INST]", "<0x0A>")
CODE = (
    *("def f(x):\n    return x**2\n", "if (a != b) {\n\t\treturn;\n}\r\n", "    ", "\t", "\n\n", "\n", "  \n  ", "->", "=="),
    *("0x7fff_ffff", "1e-10", "3.14", "1234567", "snake_case", "CamelCase", "// TODO:", "/* */", "#!/bin/sh", "$(ls)"),
    *("find . -name '*.py' | xargs grep -n", "http://a.b/c?d=e&f=%20", "C:\\x\\y", "{'a': [1, 2]}", "\\n\\t", "🎉"),
)


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
    chosen = rng.choice((SPACES, INVISIBLE, CONTROL, MARKS, EMOJI, DIGITS, LETTERS, PUNCTUATION, CONTRACTIONS, LOOK_ALIKES, CODE))
    return rng.choice(chosen)


def any_character(rng: Random) -> str:
    """Return a character, from a block near the beginning as often as from everywhere."""
    end = rng.choice((0x80, 0x800, 0x3000, 0xD800, 0x10000, 0x20000, 0x110000))
    while 0xD800 <= (point := rng.randrange(end)) < 0xE000:
        pass
    return chr(point)
