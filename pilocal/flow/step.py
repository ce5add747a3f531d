"""A step of the flow: it reads files, writes files, and is skipped as long as what decides its output is unchanged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pilocal.flow.context import Context
from pilocal.run.hashes import fingerprint


def always(context: Context) -> bool:
    """Want a step in every run."""
    return True


def no_note(context: Context) -> str:
    """Say nothing."""
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step; `steps.STEPS` has them all in the order in which they run."""

    name: str
    """The step's in run.json."""
    facts: Callable[[Context], list[Any]]
    """Return what decides the output beside the keys of `needs`; JSON-able."""
    make: Callable[[Context, str], list[Path]]
    """Write the files, given the step's key, and return their paths."""
    needs: tuple[Step, ...] = ()
    """Steps whose output this one reads; their keys are part of its key."""
    also: tuple[Step, ...] = ()
    """More steps whose output it reads if they are wanted; `facts` tells of them."""
    wanted: Callable[[Context], bool] = always
    """Tell whether the task asks for this step."""
    note: Callable[[Context], str] = no_note
    """Return what there is to say about the finished step."""
    trains: bool = False
    """Whether several processes may share its work."""

    def key(self, context: Context) -> str:
        """Return the fingerprint of everything that decides what the step writes."""
        needed = [step.key(context) for step in self.needs]
        return fingerprint(version("pilocal"), self.name, *needed, *self.facts(context))

    def is_done(self, context: Context) -> bool:
        """Tell whether the step was finished with today's inputs and its files are whole."""
        return context.run.is_done(self.name, self.key(context))

    def uses(self, other: Step) -> bool:
        """Tell whether this step is `other` or reads, at some remove, what `other` writes."""
        return self is other or any(step.uses(other) for step in (*self.needs, *self.also))
