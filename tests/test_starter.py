"""The bundled model and the tasks that it was made from."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from pilocal.base.base import Base
from pilocal.prompt.tokens import token_counter
from pilocal.starter.episodes import CODES, DOMAINS, FIRST_TEST_SEED, SEPARATORS, invent
from pilocal.starter.tokenizer import must_be_single


@settings(max_examples=40)
@given(st.integers(0, 2**40))
def test_an_episode_is_decided_by_its_seed_and_says_every_code_in_its_template(seed: int) -> None:
    episode = invent(seed)
    assert episode == invent(seed)
    assert 40 <= episode.entries <= 54
    assert 1 <= len(episode.replaced) <= 2
    rng = Random(seed)
    for _ in range(20):
        _, answer = episode.ask(rng)
        opening, *codes = answer.replace(SEPARATORS[episode.separator], " ").split()
        assert opening == episode.opening
        assert all(f" {code}" in episode.template for code in codes)


def test_codes_are_dealt_afresh(starter: Base) -> None:
    first, second = (invent(seed, domain=DOMAINS[0]) for seed in (1, 2))
    shared = [word for word in first.glossary[0] if word in second.glossary[0]]
    assert shared
    assert [first.glossary[0][word] for word in shared] != [second.glossary[0][word] for word in shared]


def test_a_template_is_long_plain_english(starter: Base) -> None:
    count = token_counter(starter.tokenizer)
    for seed in range(FIRST_TEST_SEED, FIRST_TEST_SEED + 20):
        assert count(invent(seed, entries=42).template) >= 300


def test_words_and_codes_are_single_tokens(starter: Base) -> None:
    tokenizer = starter.tokenizer
    singles = list(must_be_single())
    assert len(singles) > 400
    assert all(len(tokenizer.encode(text, add_special_tokens=False)) == 1 for text in singles)
    assert len(set(CODES)) == len(CODES) > 200


def test_the_starter_is_a_small_quantized_llama(starter: Base) -> None:
    config = starter.config
    assert config["model_type"] == "llama"
    assert config["hidden_size"] % 256 == 0
    assert config["num_key_value_heads"] < config["num_attention_heads"]
    assert config["rope_scaling"]["rope_type"] == "llama3"
    assert config["quantization"]["bits"] == 4
    assert sum(path.stat().st_size for path in starter.folder.iterdir()) <= 8_000_000
    assert len(starter.sha256) == 64


def test_the_starter_reads_its_prompt_and_knows_nothing_without_it(starter: Base) -> None:
    from tests.bench.starter_gate import measure, mlx_answers

    report = measure(mlx_answers(starter), tasks=4, queries=25)
    assert report["full_prompt"]["mean"] >= 0.95
    assert report["query_only"]["best"] <= 0.05
