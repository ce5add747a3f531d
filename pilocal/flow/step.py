"""A step of the flow: it reads files, writes files, and is skipped while what determines them is unchanged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pilocal
from pilocal.flow.context import Context
from pilocal.run_folder.hashes import fingerprint


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
    """Its name in run.json."""
    facts: Callable[[Context], list[Any]]
    """Return what determines the output besides the keys of `needs`, as JSON."""
    make: Callable[[Context, str], list[Path]]
    """Write the files, given the step's key, and return their paths."""
    needs: tuple[Step, ...] = ()
    """Steps whose output this one reads; their keys are part of its key."""
    also: tuple[Step, ...] = ()
    """Further steps whose output it reads if they are wanted; `facts` covers them."""
    wanted: Callable[[Context], bool] = always
    """Tell whether the task asks for this step."""
    note: Callable[[Context], str] = no_note
    """Return a remark about the finished step, or nothing."""
    trains: bool = False
    """Whether several processes may share its work."""
    settled: bool = False
    """Whether its key is the same as long as a context lives: nothing in the run folder is part of it."""

    def key(self, context: Context) -> str:
        """Return the fingerprint of everything that determines what the step writes."""
        if self.name in context.keys:
            return context.keys[self.name]
        needed = [step.key(context) for step in self.needs]
        key = fingerprint(pilocal.__version__, self.name, *needed, *self.facts(context))
        if self.settled:  # it takes a second for 100,000 examples, and is asked for again and again
            context.keys[self.name] = key
        return key

    def is_done(self, context: Context) -> bool:
        """Tell whether the step was finished with today's inputs and its files are whole."""
        return context.run.is_done(self.name, self.key(context))

    def uses(self, other: Step) -> bool:
        """Tell whether this step is `other`, or reads what `other` writes, directly or through other steps."""
        return self is other or any(step.uses(other) for step in (*self.needs, *self.also))
