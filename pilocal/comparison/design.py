"""What is compared: the arms, the seeds, the schedules' shape and the points of the learning curve."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from pilocal.comparison.arms import DEFAULT_ARMS, ComparedArm, parse_arms
from pilocal.errors import InputError
from pilocal.task import Example, Task
from pilocal.task.schedule import DecaySchedule
from pilocal.task.tables import LARGEST_SEED

LINEAR = DecaySchedule(decay="linear")

CURVE_ARMS = ("direct", "linear", "adaptive")
"""The schedules of the learning curve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """What is compared."""

    arms: tuple[ComparedArm, ...] = parse_arms(DEFAULT_ARMS)
    """What `parse_arms` makes of their names; by default every arm that needs nothing but the task and the base."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each trains every schedule once."""
    decay_schedule: DecaySchedule = LINEAR
    """Stages, shots and rates of every schedule; each arm puts its own decay in place of this one."""
    curve: tuple[int, ...] = ()
    """Numbers of training examples of the learning curve."""
    residue: tuple[float, ...] = ()
    """Shares of the template that a trained adapter is asked with, to see what the last tokens buy."""

    @property
    def residue_arm(self) -> str:
        """The schedule whose adapter is asked with them: the first of the arms that train, or else linear."""
        return next((arm.schedule for arm in self.arms if arm.trained), LINEAR.decay)

    @property
    def has_strengths(self) -> bool:
        """Whether an adapter is asked at several strengths."""
        return any(arm.is_on_curve and not arm.is_plain for arm in self.arms)

    def check(self, task: Task) -> None:
        """Raise InputError if there is no seed, a rate is none, or an arm or the curve asks for what there is not."""
        _check_seeds(self.seeds)
        for arm in self.arms:
            if arm.strength != 1 and task.lora.kind == "dora":
                what, fix = "a DoRA has no strength: its magnitudes cannot be weighed", 'take [lora] kind = "lora"'
                raise InputError("--arms", what, got=arm.name, fix=fix)
        for count in self.curve:
            if not self.decay_schedule.shots < count <= len(task.train):
                least = self.decay_schedule.shots + 1
                fix = f"write numbers between {least} and {len(task.train)}"
                raise InputError("--curve", "the training set does not have so many examples", got=count, fix=fix)
        if len(set(self.residue)) < len(self.residue) or not all(0 <= rate <= 1 for rate in self.residue):
            what, fix = "rates are distinct numbers from 0 to 1", "write 0,0.05,0.1,0.2"
            raise InputError("--residue", what, got=self.residue, fix=fix)


def _check_seeds(seeds: tuple[int, ...]) -> None:
    known = set(seeds)
    if not known or len(known) < len(seeds) or min(known) < 0 or max(known) > LARGEST_SEED:
        what = f"seeds are different whole numbers from 0 to {LARGEST_SEED:,}"
        raise InputError("--seeds", what, got=seeds, fix="write 0,1,2")


def subset(examples: Sequence[Example], count: int, seed: int) -> tuple[Example, ...]:
    """Return `count` of the training examples, in their order; with one seed, fewer are a part of more.

    >>> pool = [Example(id=str(i), query=str(i), answer="") for i in range(9)]
    >>> fewer, more = ({example.id for example in subset(pool, count, 0)} for count in (3, 5))
    >>> len(fewer), fewer < more
    (3, True)
    """

    def place(example: Example) -> bytes:
        return hashlib.sha256(f"{seed} {example.id} {example.query}".encode()).digest()

    chosen = {example.id for example in sorted(examples, key=place)[:count]}
    return tuple(example for example in examples if example.id in chosen)
