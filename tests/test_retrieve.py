"""Claims about choosing shots."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st

from pilocal.errors import InputError
from pilocal.retrieve import ShotPicker, check_bank, contradictions, model_hash
from pilocal.retrieve.bank import choose_bank
from pilocal.retrieve.bleu import BleuBank
from pilocal.retrieve.index import exact_neighbours, open_index, recall
from pilocal.retrieve.ngrams import DIM, NgramVectors
from pilocal.retrieve.ranking import falling
from pilocal.task import Example, Retrieval
from tests import forked
from tests.bench.retrieval import retrieval
from tests.test_cli import pilocal
from tests.test_flow import make_task

VERBS = ("list", "count", "remove", "find", "print", "sort")
THINGS = ("text files", "folders", "users", "lines", "big files", "links")
COMMANDS = ("ls -l", "wc -l", "rm -rf", "find . -name", "cat", "sort -u")
PLACES = ("*.txt", "/tmp", "/etc/passwd", "log.csv", "/var/log", "~")


def pool() -> list[Example]:
    """Return 36 examples, all queries and all answers different."""
    return [
        Example(id=f"{i}-{j}", query=f"{VERBS[i]} the {THINGS[j]}", answer=f"{COMMANDS[i]} {PLACES[j]} | head -n {j}")
        for i in range(6)
        for j in range(6)
    ]


def examples(*pairs: tuple[str, str]) -> list[Example]:
    return [Example(id=str(n), query=query, answer=answer) for n, (query, answer) in enumerate(pairs)]


def picker(pool: Sequence[Example], folder: Path, k: int) -> ShotPicker:
    return ShotPicker(pool, Retrieval(), folder, k=k)


def nl2bash() -> list[Example]:
    if "PILOCAL_NL2BASH" not in os.environ:
        pytest.skip("PILOCAL_NL2BASH names no folder with all.nl and all.cm")
    folder = Path(os.environ["PILOCAL_NL2BASH"])
    lines = [(folder / name).read_text(encoding="utf-8").split("\n")[:-1] for name in ("all.nl", "all.cm")]
    assert len(lines[0]) > 10_000
    return examples(*zip(*lines, strict=True))


# Shots


def test_an_example_is_never_its_own_shot(tmp_path: Path) -> None:
    shots = picker(pool(), tmp_path, 35)
    for i in range(36):
        assert sorted((*shots.for_training(i, 35), i)) == list(range(36))


def best_by_sacrebleu(examples: Sequence[Example], i: int, k: int) -> tuple[int, ...]:
    """Return the shots of example i by scoring every pair; ties (to nine decimals) go by number."""
    scores = {
        j: round(sacrebleu.sentence_bleu(other.answer, [examples[i].answer]).score, 9)
        for j, other in enumerate(examples)
        if other.query.casefold() != examples[i].query.casefold()
    }
    return tuple(reversed(sorted(scores, key=lambda j: (-scores[j], j))[:k]))


def test_shots_are_the_best_by_sacrebleu_between_answers(tmp_path: Path) -> None:
    examples = pool()
    shots = picker(examples, tmp_path, 4)
    for i in range(len(examples)):
        assert shots.for_training(i, 4) == best_by_sacrebleu(examples, i, 4)


def test_shots_are_the_best_by_sacrebleu_among_real_commands(tmp_path: Path) -> None:
    chosen = list({example.query.casefold(): example for example in random.Random(0).sample(nl2bash(), 400)}.values())
    shots = picker(chosen, tmp_path, 10)
    for i in range(0, len(chosen), 20):
        assert shots.for_training(i, 10) == best_by_sacrebleu(chosen, i, 10)


def test_fewer_shots_are_the_nearest_of_more(tmp_path: Path) -> None:
    shots = picker(pool(), tmp_path, 6)
    for k in range(1, 6):
        assert shots.for_training(7, k) == shots.for_training(7, 6)[-k:]
        assert shots.for_query("count users", k) == shots.for_query("count users", 6)[-k:]
    assert shots.for_training(7, 0) == shots.for_query("count users", 0) == ()


def test_more_shots_than_were_ranked_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at most 2"):
        picker(pool(), tmp_path, 2).for_training(0, 3)


def test_the_same_query_is_never_a_shot(tmp_path: Path) -> None:
    shots = picker(
        examples(("Show  files", "ls"), ("show files", "ls"), ("count them", "wc"), ("show all", "ls")), tmp_path, 2
    )
    assert shots.for_training(0, 2) == (2, 3)
    assert shots.for_training(1, 2) == (2, 3)
    assert set(shots.for_query(" SHOW files", 2)) == {2, 3}


def test_the_same_query_after_other_turns_is_another_question(tmp_path: Path) -> None:
    turns = (("user", "hello"), ("assistant", "hi"))
    records = [
        Example(id="0", query="go on", answer="a b"),
        Example(id="1", query="go on", answer="a b", history=turns),
    ]
    shots = picker(records, tmp_path, 1)
    assert shots.for_training(0, 1) == (1,)
    assert shots.for_query("go on", 1, turns) == (0,)


def test_the_same_answer_to_another_query_is_the_best_shot(tmp_path: Path) -> None:
    shots = picker(examples(("a", "ls -l /tmp"), ("b", "ls -a /tmp"), ("c", "ls -l /tmp")), tmp_path, 1)
    assert shots.for_training(0, 1) == (2,)


def test_no_two_shots_ask_the_same(tmp_path: Path) -> None:
    twins = examples(("a", "ls -l"), ("b", "ls -l x"), ("B", "ls -l x"), ("b", "ls -l y"), ("c", "pwd"))
    shots = picker(twins, tmp_path, 2)
    assert shots.for_training(0, 2) == (4, 1)
    assert len(set(shots.for_query("b!", 2)) & {1, 2, 3}) == 1


def test_ties_go_by_number(tmp_path: Path) -> None:
    shots = picker(examples(*((f"query {n}", "same") for n in range(6))), tmp_path, 3)
    assert shots.for_training(0, 3) == (3, 2, 1)
    assert shots.for_training(2, 3) == (3, 1, 0)


def test_many_answers_to_one_question_do_not_hide_the_others(tmp_path: Path) -> None:
    same = [("again", f"ls -l file{n}") for n in range(300)]
    shots = picker(examples(*same, ("first", "pwd"), ("second", "whoami")), tmp_path, 2)
    assert shots.for_training(0, 2) == (301, 300)


def test_the_nearest_query_comes_last(tmp_path: Path) -> None:
    examples = pool()
    nearest = picker(examples, tmp_path, 3).for_query("please count the users", 3)[-1]
    assert examples[nearest].query == "count the users"


def test_too_small_a_pool_is_refused_with_its_size(tmp_path: Path) -> None:
    check_bank(pool()[:6], Retrieval(), 5, 0, "train.jsonl")
    check_bank([], Retrieval(), 0, 0, "train.jsonl")
    with pytest.raises(InputError) as caught:
        check_bank(pool()[:5], Retrieval(), 5, 0, "train.jsonl")
    line = "train.jsonl: 5 shots need at least 6 training examples with different queries; got 5; "
    assert str(caught.value) == line + "add examples, or use at most 4 shots"
    with pytest.raises(InputError, match="got 2"):
        picker(examples(("a", "x"), ("a ", "y"), ("b", "z")), tmp_path, 2)


def test_no_shots_need_no_index(tmp_path: Path) -> None:
    assert picker(pool()[:1], tmp_path, 0).for_training(0, 0) == ()
    assert [path.name for path in tmp_path.iterdir()] == ["shots.json"]


def test_the_ranking_is_kept_and_checked(tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []

    def make(examples: list[Example]) -> list[tuple[int, ...]]:
        shots = ShotPicker(examples, Retrieval(), tmp_path, k=3, progress=lambda *call: calls.append(call))
        return [shots.for_training(i, 3) for i in range(len(examples))]

    before = make(pool())
    assert calls == [("shots", 36, 36)]
    assert make(pool()) == before
    assert len(calls) == 1
    file = tmp_path / "shots.json"
    for damage in ("", "[]", "{}", file.read_text().replace("1", "2", 300)):
        file.write_text(damage)
        assert make(pool()) == before
    assert len(calls) == 5
    assert all(j < 30 for shots in make(pool()[:30]) for j in shots)
    assert len(calls) == 6


def test_shots_are_the_same_in_another_process(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.test_retrieve import picker, pool\n"
        "shots = picker(pool(), Path(sys.argv[1]), 5)\n"
        "print([shots.for_training(i, 5) for i in range(36)], shots.for_query('sort links', 5))"
    )
    outputs = set()
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", code, str(tmp_path / seed)]
        outputs.add(subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout)
    assert len(outputs) == 1


def test_the_bench_finds_shots_as_good_as_brute_forces(tmp_path: Path) -> None:
    examples = nl2bash()[:600]
    for name, texts in (("nl", [e.query for e in examples]), ("cm", [e.answer for e in examples])):
        (tmp_path / f"all.{name}").write_text("\n".join(texts) + "\n")
    result = retrieval(tmp_path, count=600, sample=30)
    assert result["recall_at_10"] == 1.0
    assert result["mean_bleu"] == result["mean_bleu_exact"] > 10
    assert result["speed"] > 1


# The bank


def test_only_examples_of_the_bank_are_shots_and_every_example_gets_some(tmp_path: Path) -> None:
    examples = pool()
    bank = set(choose_bank(36, 0.25, 7))
    assert len(bank) == 9
    shots = ShotPicker(examples, Retrieval(pool=0.25), tmp_path, k=5, seed=7)
    for i in range(36):
        chosen = shots.for_training(i, 5)
        assert len(set(chosen)) == 5
        assert set(chosen) <= bank - {i}
        assert chosen[-1] == max(
            sorted(bank - {i}),
            key=lambda j: round(sacrebleu.sentence_bleu(examples[j].answer, [examples[i].answer]).score, 9),
        )
    assert set(shots.for_query("count the users", 5)) <= bank


def test_the_seed_decides_the_bank_and_larger_banks_hold_the_smaller(tmp_path: Path) -> None:
    assert choose_bank(50, 0.5, 3) == choose_bank(50, 0.5, 3) != choose_bank(50, 0.5, 4)
    sizes = [set(choose_bank(50, share, 3)) for share in (0.1, 0.2, 0.5, 1.0)]
    assert [len(size) for size in sizes] == [5, 10, 25, 50]
    assert all(small < large for small, large in pairwise(sizes))


def test_a_bank_smaller_than_k_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        ShotPicker(pool(), Retrieval(pool=0.1), tmp_path, k=5)
    assert str(caught.value) == (
        "[retrieval] pool: pool = 0.1 leaves 4 of 36 training examples as shots; 5 shots need at least 6 training "
        "examples with different queries; got 4; raise pool, add examples, or use at most 3 shots"
    )
    assert not list(tmp_path.iterdir())


def test_questions_with_different_answers_are_counted() -> None:
    records = examples(("a", "x"), ("A ", "y"), ("b", "x"), ("b", "x "), ("c", "x"), ("d", "1"), ("d", "2"), ("d", "3"))
    assert [(one.answer, other.answer) for one, other in contradictions(records).values()] == [("x", "y"), ("1", "2")]
    assert contradictions(pool()) == {}


# BLEU


@settings(max_examples=100)
@given(texts=st.lists(st.text(alphabet="ab c.,-|\n'é", max_size=30), min_size=2, max_size=5))
def test_the_banks_bleu_is_sacrebleus(texts: list[str]) -> None:
    reference, *bank = texts
    expected = [sacrebleu.sentence_bleu(text, [reference]).score for text in bank]
    assert BleuBank(bank).scores(reference) == pytest.approx(expected, abs=1e-8)


def test_the_banks_bleu_is_sacrebleus_on_real_commands() -> None:
    chosen = random.Random(0).sample([example.answer for example in nl2bash()], 310)
    bank = BleuBank(chosen[10:])
    for reference in chosen[:15]:
        expected = [sacrebleu.sentence_bleu(text, [reference]).score for text in chosen[10:]]
        assert bank.scores(reference) == pytest.approx(expected, abs=1e-8)


def test_a_text_scores_the_same_alone_as_in_a_bank() -> None:
    texts = [f"{verb} {place} | {verb}" for verb in COMMANDS for place in PLACES]
    together = BleuBank(texts).scores(texts[5])
    assert [BleuBank([text]).scores(texts[5])[0] for text in texts] == together.tolist()


@given(scores=st.lists(st.integers(0, 5), max_size=400))
def test_scores_fall_and_ties_go_by_number(scores: list[int]) -> None:
    expected = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    assert list(falling(np.array(scores, dtype=float))) == expected


# Vectors


def test_ngram_vectors_have_length_1_and_know_likeness() -> None:
    texts = ["find all text files", "find all the text files", "shut the machine down", "x", " "]
    vectors = NgramVectors(texts)(texts)
    assert vectors.shape == (5, DIM) and vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    cosines = vectors @ vectors.T
    assert cosines[0, 1] > 0.6 > 0.3 > abs(cosines[0, 2])


def test_texts_without_a_known_ngram_have_a_vector() -> None:
    vectors = NgramVectors(["abc"])(["xyz", "\udc80"])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_an_embedding_model_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    config = Retrieval(similarity="embedding", embedding_model=str(tmp_path / "nothing"))
    with pytest.raises(InputError, match=r"^\[retrieval\] embedding_model: cannot be loaded: .*nothing"):
        ShotPicker(pool(), config, tmp_path, k=1)


def test_a_missing_embedding_model_offline_is_one_line(tmp_path: Path) -> None:
    folder = make_task(tmp_path / "task", "starter")
    with (folder / "task.toml").open("a") as file:
        file.write('[retrieval]\nsimilarity = "embedding"\nembedding_model = "nobody/no-such-model"\n')
    done = pilocal("index", folder, "--schedule", folder / "schedule.toml", env=os.environ | {"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if not line.startswith(("compress: ", "index: "))]
    assert len(lines) == 1
    assert lines[0].startswith("[retrieval] embedding_model: cannot be loaded: ")
    assert "'nobody/no-such-model'" in lines[0] and 'or set similarity = "bleu"' in lines[0]


@pytest.fixture(scope="module")
def embedding_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sentence_transformer(tmp_path_factory.mktemp("embedding") / "model")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("over", ["answer", "query"])
def test_shots_by_embedding_are_the_nearest_by_cosine(over: str, embedding_model: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    examples = pool()
    config = Retrieval(similarity="embedding", over=over, embedding_model=str(embedding_model))
    shots = ShotPicker(examples, config, tmp_path, k=4)
    model = SentenceTransformer(str(embedding_model))
    vectors = model.encode([getattr(example, over) for example in examples], normalize_embeddings=True)
    for i in range(36):
        near = vectors[list(shots.for_training(i, 4))] @ vectors[i]
        others = np.sort(np.delete(vectors @ vectors[i], i))
        assert near == pytest.approx(others[-4:], abs=2e-6)
    assert json.loads((tmp_path / f"{over}.json").read_text())["dim"] == 32
    queries = model.encode([example.query for example in examples] + ["sort the users now"], normalize_embeddings=True)
    assert shots.for_query("sort the users now", 1) == (int(np.argmax(queries[:-1] @ queries[-1])),)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_embeddings_compare_what_stands_outside_the_bank_with_it(embedding_model: Path, tmp_path: Path) -> None:
    config = Retrieval(similarity="embedding", embedding_model=embedding_model.name, pool=0.5)
    shots = ShotPicker(pool(), config, tmp_path, k=17, models=embedding_model.parent)
    bank = set(choose_bank(36, 0.5, 0))
    assert all(set(shots.for_training(i, 17)) <= bank - {i} for i in range(36))


def test_the_index_command_takes_a_model_beside_the_task(embedding_model: Path, tmp_path: Path) -> None:
    folder = make_task(tmp_path / "task", "starter")
    shutil.copytree(embedding_model, folder / "embedder")
    with (folder / "task.toml").open("a") as file:
        file.write('[retrieval]\nsimilarity = "embedding"\nover = "query"\nembedding_model = "embedder"\n')
    done = forked.pilocal("index", folder, "--schedule", folder / "schedule.toml", "--json")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (folder / "run" / "index").iterdir()} == {"query.hnsw", "query.json", "shots.json"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_another_model_in_the_same_directory_is_noticed(embedding_model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(embedding_model, copy)
    before = model_hash(str(copy), Path())
    assert model_hash("model", tmp_path) == before
    (copy / "README.md").write_text("other")
    assert model_hash("model", tmp_path) != before
    assert model_hash("owner/name", tmp_path) == "owner/name"


def tiny_sentence_transformer(folder: Path) -> Path:
    """Save a random two-layer BERT with a word tokenizer as a sentence-transformers model."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast  # type: ignore[attr-defined]

    words = sorted({word for example in pool() for word in f"{example.query} {example.answer}".split()})
    vocabulary = folder / "vocab.txt"
    folder.mkdir()
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words) + 5,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder / "bert")
    BertTokenizerFast(str(vocabulary)).save_pretrained(folder / "bert")
    transformer = Transformer(str(folder / "bert"))
    SentenceTransformer(modules=[transformer, Pooling(32)]).save(str(folder / "saved"))
    return folder / "saved"


# The index


def unit_vectors(count: int, dim: int = 16, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def test_the_sidecar_says_what_the_index_file_does_not(tmp_path: Path) -> None:
    index = open_index(unit_vectors(300), tmp_path / "answers.hnsw", 10)
    facts = json.loads((tmp_path / "answers.json").read_text())
    assert {key: facts[key] for key in ("space", "dim", "count", "recall_k", "recall_sample")} == {
        "space": "cosine",
        "dim": 16,
        "count": 300,
        "recall_k": 10,
        "recall_sample": 200,
    }
    assert {"M", "ef", "ef_construction", "seed", "vectors_sha256", "file_sha256"} < set(facts)
    assert facts["recall"] == index.recall > 0.95


def test_an_intact_index_is_loaded_and_answers_the_same(tmp_path: Path) -> None:
    vectors, path = unit_vectors(300), tmp_path / "answers.hnsw"
    built = open_index(vectors, path, 10)
    changed = path.stat().st_mtime_ns
    loaded = open_index(vectors, path, 10)
    assert path.stat().st_mtime_ns == changed
    assert (loaded.neighbours(vectors, 7) == built.neighbours(vectors, 7)).all()
    assert loaded.recall == built.recall


@pytest.mark.parametrize("damage", ["file", "sidecar", "no sidecar", "dim", "vectors"])
def test_an_index_that_does_not_fit_is_built_anew(tmp_path: Path, damage: str) -> None:
    vectors, path = unit_vectors(100), tmp_path / "answers.hnsw"
    sidecar = tmp_path / "answers.json"
    open_index(vectors, path, 5)
    if damage == "file":
        path.write_bytes(path.read_bytes()[:-9])
    elif damage == "sidecar":
        sidecar.write_text("[")
    elif damage == "no sidecar":
        sidecar.unlink()
    else:
        vectors = unit_vectors(100, 24) if damage == "dim" else unit_vectors(100, seed=1)
    index = open_index(vectors, path, 5)
    assert (index.neighbours(vectors, 1)[:, 0] == np.arange(100)).all()
    assert json.loads(sidecar.read_text())["dim"] == vectors.shape[1]


def test_two_builds_write_the_same_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        open_index(unit_vectors(200), tmp_path / f"{name}.hnsw", 5)
    assert (tmp_path / "a.hnsw").read_bytes() == (tmp_path / "b.hnsw").read_bytes()


def test_vectors_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    vectors = unit_vectors(10)
    vectors[3, 1] = np.nan
    with pytest.raises(InputError, match="1 vectors hold NaN or infinity; got 'vector 3'"):
        open_index(vectors, tmp_path / "answers.hnsw", 5)


def test_asking_for_more_neighbours_than_there_are_gives_all(tmp_path: Path) -> None:
    vectors = unit_vectors(5)
    index = open_index(vectors, tmp_path / "answers.hnsw", 50)
    assert sorted(index.neighbours(vectors[:1], 50)[0]) == list(range(5))
    assert sorted(exact_neighbours(vectors, vectors[:1], 50)[0]) == list(range(5))


def test_recall_is_1_where_every_neighbour_is_found_and_ties_cost_nothing(tmp_path: Path) -> None:
    vectors = np.repeat(unit_vectors(20), 5, axis=0)
    index = open_index(vectors, tmp_path / "answers.hnsw", 3)
    assert recall(index, vectors, 3) == 1.0


def test_recall_on_real_answers_is_high(tmp_path: Path) -> None:
    answers = list(dict.fromkeys(example.answer for example in nl2bash()))[:3000]
    index = open_index(NgramVectors(answers)(answers), tmp_path / "answers.hnsw", 50)
    assert index.recall > 0.95
