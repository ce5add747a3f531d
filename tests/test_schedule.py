"""Schedules: prompts only shrink, the last stage is the bare query, every step is shared out."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilocal.errors import InputError
from pilocal.task.schedule import DECAYS, DEFAULT, FADES, DecaySchedule, Schedule, Stage, load_decay, load_schedule

FOLDER = Path(__file__).parent.parent / "schedules"


def laws(decays: tuple[str, ...] = tuple(DECAYS)) -> st.SearchStrategy[DecaySchedule]:
    return st.builds(
        DecaySchedule,
        decay=st.sampled_from(decays),
        stages=st.integers(2, 12),
        shots=st.integers(1, 9),
        rate=st.floats(0.01, 20),
        final=st.none() | st.floats(0.01, 0.99),
    )


@given(laws())
def test_every_law_begins_whole_never_grows_and_ends_with_the_bare_query(law: DecaySchedule) -> None:
    made = law.schedule().stages
    assert (made[0].tau, made[0].shots) == (1.0, law.shots)
    assert (made[-1].tau, made[-1].shots) == (0.0, 0)
    assert all(a.tau >= b.tau and a.shots >= b.shots for a, b in pairwise(made))
    assert sum(stage.share for stage in made) == pytest.approx(1)


@given(laws(), st.floats(0, 0.99), st.integers(0, 9), st.sampled_from(FADES))
def test_a_law_that_ends_above_zero_ends_exactly_there(law: DecaySchedule, tau: float, shots: int, fade: str) -> None:
    made = replace(law, until_tau=tau, until_shots=min(shots, law.shots), fade=fade).schedule().stages
    assert (made[0].tau, made[0].shots) == (1.0, law.shots)
    assert made[-1].tau == (0.0 if law.decay == "shots-only" else tau)
    assert made[-1].shots == (0 if law.decay == "template-only" else min(shots, law.shots))
    assert made[-1].working == 0
    assert all(a.tau >= b.tau and a.shots >= b.shots and a.working >= b.working for a, b in pairwise(made))
    whole = law.schedule().stages
    bare = replace(law, fade=fade).schedule().stages
    assert fade == "working" or [(s.tau, s.shots, s.share) for s in bare] == [(s.tau, s.shots, s.share) for s in whole]


def test_prompt_and_working_fade_together_or_alone() -> None:
    def trained(fade: str) -> list[tuple[float, int, float]]:
        schedule = DecaySchedule(decay="linear", stages=3, shots=4, until_tau=0.2, fade=fade).schedule()
        assert (schedule.stages[0].tau, schedule.stages[0].shots) == (1.0, 4)  # what the base is asked with
        stages = [schedule.stages[number] for number in schedule.trained]
        return [(round(stage.tau, 2), stage.shots, stage.working) for stage in stages]

    assert trained("prompt") == [(1.0, 4, 0.0), (0.6, 2, 0.0), (0.2, 0, 0.0)]
    assert trained("both") == [(1.0, 4, 1.0), (0.6, 2, 0.5), (0.2, 0, 0.0)]
    assert trained("working") == [(0.2, 0, 1.0), (0.2, 0, 0.5), (0.2, 0, 0.0)]


def test_stages_that_are_written_out_may_end_above_zero_and_carry_the_working(tmp_path: Path) -> None:
    text = "until_tau = 0.1\nuntil_shots = 1\n" + "".join(
        f"[[stage]]\ntau = {tau}\nshots = {shots}\nshare = 0.5\nworking = {working}\n"
        for tau, shots, working in ((1, 2, 1), (0.1, 1, 0))
    )
    (tmp_path / "s.toml").write_text(text)
    schedule = load_schedule(tmp_path / "s.toml")
    assert [(stage.tau, stage.shots, stage.working) for stage in schedule.stages] == [(1.0, 2, 1.0), (0.1, 1, 0.0)]
    assert schedule.workings == (1.0, 0.0)
    assert [stage.facts() for stage in schedule.stages] == [
        {"tau": 1.0, "shots": 2, "share": 0.5, "working": 1.0},
        {"tau": 0.1, "shots": 1, "share": 0.5},
    ]


HALF = "[[stage]]\ntau = 1\nshots = 1\nshare = 0.5\n"


@given(laws(("linear", "exponential", "inverse-exponential", "adaptive")))
def test_a_decay_has_the_stages_and_the_last_share_that_were_asked_for(law: DecaySchedule) -> None:
    made = law.schedule().stages
    assert len(made) == law.stages
    assert made[-1].share == pytest.approx(law.final or 1 / law.stages)
    assert len({stage.share for stage in made[:-1]}) == 1


@given(st.integers(3, 12), st.floats(0.1, 10))
def test_exponential_lies_below_linear_and_inverse_exponential_above(stages: int, rate: float) -> None:
    taus = [
        [stage.tau for stage in DecaySchedule(decay=decay, stages=stages, rate=rate).schedule().stages[1:-1]]
        for decay in ("exponential", "linear", "inverse-exponential")
    ]
    for low, middle, high in zip(*taus, strict=True):
        assert 0 < low < middle < high < 1


def test_the_ablations_train_what_they_say() -> None:
    def trained(decay: str) -> list[tuple[float, int]]:
        schedule = DecaySchedule(decay=decay, shots=4).schedule()
        return [(round(schedule.stages[i].tau, 2), schedule.stages[i].shots) for i in schedule.trained]

    assert trained("template-only") == [(1.0, 0), (0.67, 0), (0.33, 0), (0.0, 0)]
    assert trained("shots-only") == [(0.0, 4), (0.0, 3), (0.0, 1), (0.0, 0)]
    assert trained("drop") == [(1.0, 4)]
    assert trained("direct") == [(0.0, 0)]


@pytest.mark.parametrize("decay", DECAYS)
def test_every_law_gets_the_same_number_of_optimizer_steps(decay: str) -> None:
    assert sum(DecaySchedule(decay=decay, final=0.86).schedule().steps(250)) == 250


def test_every_law_has_a_file_of_its_own() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.toml")) == sorted(DECAYS)
    for decay in DECAYS:
        assert load_decay(FOLDER / f"{decay}.toml") == DecaySchedule(decay=decay)


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=8), st.integers(0, 500))
def test_every_optimizer_step_is_shared_out_and_no_stage_goes_without(weights: list[float], extra: int) -> None:
    shares = [weight / sum(weights) for weight in weights]
    schedule = Schedule(tuple(Stage(tau=0.0, shots=0, share=min(share, 1.0)) for share in shares))
    total = len(shares) + extra
    steps = schedule.steps(total)
    assert sum(steps) == total
    assert min(steps) >= 1


def test_every_schedule_file_reads_and_says_how_to_run_it() -> None:
    files = sorted(FOLDER.glob("*.toml"))
    assert files
    for path in files:
        assert load_schedule(path).stages[-1].tau == 0
        assert path.read_text().startswith("# pilocal run TASK --schedule schedules/")


def test_the_default_is_the_published_recipe() -> None:
    assert load_schedule(FOLDER / "linear.toml") == DEFAULT


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('decay = "cubic"\n', "s.toml:1: decay must be"),
        ("[[stage]]\ntau = 1\nshots = 1\nshare = 1\n", "s.toml:2: the last stage must be the query alone"),
        (
            "[[stage]]\ntau = 0.5\nshots = 0\nshare = 0.5\n[[stage]]\ntau = 0.6\nshots = 0\nshare = 0.25\n"
            "[[stage]]\ntau = 0\nshots = 0\nshare = 0.25\n",
            "s.toml:6: stage 1: the template grows back from tau 0.5; got 0.6",
        ),
        ("[[stage]]\ntau = 0\nshots = 0\nshare = 0.5\n", "s.toml:4: the shares must add up to 1; got 0.5"),
        ("[[stage]]\ntau = 0\nshot = 0\nshare = 1\n", "s.toml:3: unknown key shot in [stage]; did you mean shots?"),
        ("[stage]\ntau = 0\n", "must be [[stage]] tables"),
        ('decay = "direct"\nstages = 3\n', "s.toml:2: direct does not read stages; got 3; leave it out"),
        ('decay = "linear"\nrate = 3.0\n', "s.toml:2: linear does not read rate"),
        ('decay = "shots-only"\nshots = 0\n', "s.toml:2: shots must be at least 1 for shots-only"),
        ('decay = "adaptive"\nleast = 0.0\n', "s.toml:2: least must be above 0"),
        ('decay = "linear"\n[[stage]]\ntau = 0\nshots = 0\nshare = 1\n', "decay beside [[stage]] tables"),
        ('decay = "linear"\nuntil_tau = 1\n', "s.toml:2: until_tau must be at least 0 and below 1; got 1.0"),
        ('decay = "drop"\nuntil_shots = -1\n', "s.toml:2: until_shots must not be negative; got -1"),
        ('decay = "linear"\nshots = 2\nuntil_shots = 3\n', "s.toml:3: until_shots must not be above shots, which is 2"),
        ('decay = "template-only"\nuntil_shots = 1\n', "s.toml:2: template-only does not read until_shots"),
        ('decay = "shots-only"\nuntil_tau = 0.1\n', "s.toml:2: shots-only does not read until_tau"),
        ('decay = "direct"\nfade = "both"\n', "s.toml:2: direct does not read fade"),
        ('decay = "linear"\nfade = "answer"\n', "s.toml:2: fade must be one of prompt, working, both; got 'answer'"),
        (f"{HALF}[[stage]]\ntau = 0.1\nshots = 0\nshare = 0.5\n", "or until_tau = 0.1 above all stages to let it stay"),
        (
            f"until_tau = 0.2\n{HALF}[[stage]]\ntau = 0.1\nshots = 0\nshare = 0.5\n",
            "must end where until_tau says; got",
        ),
        (f"until_tau = 'x'\n{HALF}", "s.toml:1: until_tau must be a number; got 'x'"),
        (f"until_shots = 2\n{HALF}", "s.toml:1: until_shots must not be above shots, which is 1; got 2"),
        ("[[stage]]\ntau = 0\nshots = 0\nshare = 1\nworking = 0.5\n", "s.toml:5: the last stage must have the answer"),
        (
            "[[stage]]\ntau = 0\nshots = 0\nshare = 0.5\n[[stage]]\ntau = 0\nshots = 0\nshare = 0.5\nworking = 1\n",
            "s.toml:9: stage 1: the working grows back from 0.0; got 1.0",
        ),
        ("stage = []\n", "stage must be [[stage]] tables"),
    ],
)
def test_a_schedule_that_breaks_a_law_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "s.toml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_schedule(path)
    assert message in str(caught.value)


def test_a_comparison_needs_a_decay(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text("[[stage]]\ntau = 0\nshots = 0\nshare = 1\n")
    with pytest.raises(InputError, match=r"s.toml:1: this must name a decay, not"):
        load_decay(path)
