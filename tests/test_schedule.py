"""Schedules: prompts only shrink, the last stage is the bare query, every step is shared out."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilocal.errors import InputError
from pilocal.schedule import DEFAULT, Schedule, Stage, linear, load_schedule

FOLDER = Path(__file__).parent.parent / "schedules"


@given(st.integers(2, 12), st.integers(0, 9))
def test_linear_begins_whole_never_grows_and_ends_with_the_bare_query(stages, shots):
    made = linear(stages=stages, shots=shots).stages
    assert (made[0].tau, made[0].shots) == (1.0, shots)
    assert (made[-1].tau, made[-1].shots) == (0.0, 0)
    assert all(a.tau > b.tau and a.shots >= b.shots for a, b in pairwise(made))


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=8), st.integers(0, 500))
def test_every_optimizer_step_is_shared_out_and_no_stage_goes_without(weights, extra):
    shares = [weight / sum(weights) for weight in weights]
    schedule = Schedule(tuple(Stage(tau=0.0, shots=0, share=min(share, 1.0)) for share in shares))
    total = len(shares) + extra
    steps = schedule.steps(total)
    assert sum(steps) == total
    assert min(steps) >= 1


def test_every_schedule_file_reads_and_says_how_to_run_it():
    files = sorted(FOLDER.glob("*.toml"))
    assert files
    for path in files:
        assert load_schedule(path).stages[-1].tau == 0
        assert path.read_text().startswith("# pilocal run TASK --schedule schedules/")


def test_the_default_is_the_published_recipe():
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
        ('decay = "linear"\n[[stage]]\ntau = 0\nshots = 0\nshare = 1\n', "decay beside [[stage]] tables"),
    ],
)
def test_a_schedule_that_breaks_a_law_is_refused_with_its_line(tmp_path, text, message):
    path = tmp_path / "s.toml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_schedule(path)
    assert message in str(caught.value)
