"""Claims about vectors of character n-grams: counted as numbers, they are what counting texts gives."""

from __future__ import annotations

import zlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pilocal.retrieve import ngrams
from pilocal.retrieve.ngrams import DIM, NgramVectors


def plain_vector(pool: list[str], text: str) -> NDArray[np.float64]:
    """Hashed tf-idf of character n-grams, one after the other."""
    held = [set(grams_of(each)) for each in pool]
    vector = np.zeros(DIM)
    for gram, count in Counter(grams_of(text)).items():
        idf = np.log((1 + len(pool)) / (sum(gram in grams for grams in held) or 1))
        code = zlib.crc32(gram.encode("utf-8", "surrogatepass"))
        vector[(code >> 1) % DIM] += (1 if code & 1 else -1) * (1 + np.log(count)) * idf
    return np.asarray(vector / (np.linalg.norm(vector) or 1))


def grams_of(text: str) -> list[str]:
    text = f" {' '.join(text.split())} "
    return [text[start : start + order] for order in (2, 3, 4) for start in range(len(text) - order + 1)]


WRITTEN = st.text(st.sampled_from("ab c\u00e9\u65e5\udc80\U0001f600"), max_size=12)


@given(pool=st.lists(WRITTEN, max_size=6), texts=st.lists(WRITTEN, max_size=4))
def test_ngram_vectors_are_hashed_tf_idf(pool: list[str], texts: list[str]) -> None:
    for vector, text in zip(NgramVectors(pool)(texts), texts, strict=True):
        assert np.allclose(vector, plain_vector(pool, text), atol=1e-6)


def test_vectors_of_many_texts_are_those_of_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngrams, "LETTERS", 20)
    told: list[tuple[str, int, int]] = []
    texts = [f"find file {number} of {chr(0x4E00 + number % 50)} {chr(97 + number % 26)}" for number in range(1_100)]
    make = NgramVectors(texts, lambda *call: told.append(call))
    vectors = make(texts)
    assert told == [("n-grams", 1_024, 1_100), ("n-grams", 1_100, 1_100)] * 2
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert all((make([texts[number]])[0] == vectors[number]).all() for number in range(0, 1_100, 100))
