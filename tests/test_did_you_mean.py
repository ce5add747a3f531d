"""A word that is nearly right is answered with the right one, wherever words are chosen from."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilocal.comparison.arms import parse_arm
from pilocal.errors import InputError, PilocalError, nearest
from pilocal.task import METHODS, METRICS, OPTIMIZERS, load_task
from pilocal.task.schedule import DECAYS, FADES, load_schedule
from pilocal.task.tables import LR_SCHEDULES, OBJECTIVES
from pilocal.task.text import meant
from tests.test_cli import pilocal

WORDS = sorted({*METRICS, *METHODS, *OPTIMIZERS, *DECAYS, *FADES, *LR_SCHEDULES, *OBJECTIVES})


def scrambled(word: str, place: int) -> str:
    """Return a word with two neighbouring letters in the other order."""
    place = place % (len(word) - 1)
    return word[:place] + word[place + 1] + word[place] + word[place + 2 :]


@given(word=st.sampled_from([word for word in WORDS if len(word) > 5]), place=st.integers(0, 100))
def test_two_letters_in_the_wrong_order_are_understood(word: str, place: int) -> None:
    assert nearest(scrambled(word, place), WORDS) == word


@given(word=st.sampled_from(WORDS))
def test_capitals_and_what_joins_words_do_not_count(word: str) -> None:
    assert nearest(word.upper().replace("_", "-"), WORDS) == word
    assert nearest(word.title().replace("-", " "), WORDS) == word


@given(st.text(max_size=12), st.lists(st.text(max_size=12), max_size=5))
def test_what_is_said_is_always_a_known_word(word: str, known: list[str]) -> None:
    assert nearest(word, known) in (None, *known)
    assert nearest(word, []) is None
    if word in known:
        assert nearest(word, known) is not None


def fault(folder: Path, text: str) -> str:
    (folder / "task.toml").write_text(f'name = "x"\nmodel = "starter"\n{text}\n')
    with pytest.raises(PilocalError) as caught:
        load_task(folder, data=False)
    return next(line for line in str(caught.value).splitlines() if "task.toml" in line)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ('metric = "exact-mach"', "exact_match"),
        ('metrc = "bleu"', "metric"),
        ('[compression]\nmethod = "suprisal"', "surprisal"),
        ('[compression]\ndevice = "cuda:"', "cuda"),
        ('[retrieval]\nsimilarity = "embeddings"', "embedding"),
        ('[retrieval]\nover = "answers"', "answer"),
        ('[lora]\nkind = "DoRA"', "dora"),
        ("[lora]\nrnk = 3", "rank"),
        ('[training]\noptimizer = "AdamW"', "adamw"),
        ('[training]\nlr_schedule = "cosin"', "cosine"),
        ('[training]\nobjective = "distil"', "distill"),
        ('[training]\ndistill_divergence = "foward"', "forward"),
        ('[training]\nprecision = "bf16"', "bfloat16"),
        ('[synth]\nprompt = "entry"', "entries"),
        ('[synth]\nsimilarity = "ngram"', "ngrams"),
        ("[trainig]\nsteps = 3", "training"),
    ],
)
def test_keys_tables_and_values_of_a_task(tmp_path: Path, text: str, meant: str) -> None:
    said = fault(tmp_path, text)
    assert said.endswith(f"did you mean {meant}?")
    line = 3 + text.count("\n") * (not text.startswith("[trainig]"))
    assert said.startswith(f"{tmp_path}/task.toml:{line}: ")


def test_a_value_that_is_like_none_gets_the_list_alone(tmp_path: Path) -> None:
    said = fault(tmp_path, '[training]\noptimizer = "xyz"')
    assert said.endswith("optimizer must be one of adamw, adam, adafactor; got 'xyz'; correct it")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ('decay = "linaer"', "linear"),
        ('decay = "Inverse Exponential"', "inverse-exponential"),
        ('decay = "expo"', "exponential"),
        ('decay = "linear"\nfade = "workings"', "working"),
        ('decay = "linear"\nstage_count = 3\nshot = 2', "shots"),
        ('util_tau = 0.2\n[[stage]]\ntau = 1.0\nshots = 0\nshare = 1.0', "until_tau"),
    ],
)  # fmt: skip
def test_keys_and_decays_of_a_schedule(tmp_path: Path, text: str, meant: str) -> None:
    path = tmp_path / "s.toml"
    path.write_text(text)
    with pytest.raises(PilocalError) as caught:
        load_schedule(path)
    assert f"did you mean {meant}?" in str(caught.value)


@pytest.mark.parametrize(
    ("arm", "meant"),
    [
        ("ful-prompt", "full-prompt"),
        ("linaer", "linear"),
        ("linaer@0.5", "linear@0.5"),
        ("full_prompt@5", "full-prompt@5"),
        ("suprisal@0.3", "surprisal@0.3"),
        ("nearst", "nearest"),
        ("rules", "rules@0.3"),
    ],
)
def test_arms(arm: str, meant: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_arm(arm)
    assert str(caught.value).endswith(f"did you mean {meant}?")


def test_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "task" / "schedules").mkdir(parents=True)
    (tmp_path / "task" / "schedules" / "linear.toml").write_text('decay = "linear"\n')
    schedule = tmp_path / "task" / "schedules" / "linear.toml"
    assert meant(tmp_path / "task" / "schedules" / "liner.toml") == schedule
    assert meant(tmp_path / "tsak" / "schedules" / "linear.toml") == schedule
    assert meant(tmp_path / "other" / "x.toml") is None
    with pytest.raises(InputError, match=f"no such file; did you mean {schedule}"):
        load_schedule(tmp_path / "task" / "schedules" / "liner.toml")
    with pytest.raises(InputError, match="no such task; did you mean"):
        load_task(tmp_path / "tsk")
    with pytest.raises(InputError, match='no such schedule file; write a file with decay = "exponential"'):
        load_schedule(tmp_path / "exponential")


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (("chek", "x"), "check"),
        (("doktor",), "doctor"),
        (("stages", "x", "--format", "opena"), "openai"),
        (("train", "x", "--backend", "pytorch"), "torch"),
        (("export", "x", "--format", "olama"), "ollama"),
        (("compress", "x", "--compressor", "ruls"), "rules"),
        (("parity", "x", "--precision", "float23"), "float32"),
        (("doctor", "--backend", "mxl"), "mlx"),
    ],
)
def test_commands_and_the_words_of_options(arguments: tuple[str, ...], meant: str) -> None:
    done = pilocal(*arguments)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert f"did you mean {meant}?" in done.stderr.lower()
