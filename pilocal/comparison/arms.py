"""The arms of a comparison: the base's own, with other prompts, a look-up without a model, schedules to train by.

A schedule's adapter may be asked as it is, at a strength, shuffled, or with the old prompt put back.
"""

from __future__ import annotations

from dataclasses import dataclass

from pilocal.errors import InputError, did_you_mean, nearest
from pilocal.evaluate.arms import BASE_FULL_PROMPT, BASE_QUERY_ONLY, BY_COMPARE, Program, Prompt
from pilocal.task import METHODS as COMPRESSORS
from pilocal.task.export_table import STRONGEST
from pilocal.task.schedule import DECAYS

TAUS = (0.3, 0.6)
"""The rates at which LLMLingua's users compress."""

NEAREST = "nearest"
"""The arm without a model: the training answer whose question is most like the query."""

DEFAULT_ARMS = (*BY_COMPARE, NEAREST, *(f"rules@{tau}" for tau in TAUS), *(f"surprisal@{tau}" for tau in TAUS), *DECAYS)
"""Every arm that needs nothing but the task and the base."""

PROMPT, NULL = "prompt", "null"
"""SCHEDULE@PROMPT: the old prompt put back. SCHEDULE@NULL: an adapter of the same shape, its weights shuffled."""

REFERENCES = (BASE_QUERY_ONLY.compare, BASE_FULL_PROMPT.compare)
"""The arms that every comparison has: the PI score is measured between them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedArm:
    """One way of answering, as a comparison names it."""

    name: str
    title: str
    prompt: Prompt
    program: Program = Program.MLX
    """The program whose answers are scored."""
    warm: bool = False
    """Whether llama.cpp has the prompt's prefix in its KV cache already."""
    compressor: str | None = None
    """The compressor of an arm that shortens the template at inference."""
    tau: float = 1.0
    """Share of the template's tokens that such an arm keeps."""
    shots: int | None = None
    """The shots in the prompt; None takes as many as the schedule has."""
    schedule: str = ""
    """The schedule that trains the adapter; empty for an arm without one."""
    strength: float = 1.0
    """The factor on what the adapter adds."""
    shuffled: bool = False
    """Whether the adapter's weights are in another order, drawn by the seed."""

    @property
    def trained(self) -> bool:
        """Whether an adapter is trained."""
        return bool(self.schedule)

    @property
    def is_plain(self) -> bool:
        """Whether that adapter answers the bare query as it is."""
        return self.name == self.schedule

    @property
    def is_on_curve(self) -> bool:
        """Whether it is a point of the curve of strengths."""
        return self.trained and self.prompt is Prompt.BARE and not self.shuffled


def parse_arm(name: str) -> ComparedArm:
    """Return the arm of a name: one of BY_COMPARE or DECAYS, NEAREST, COMPRESSOR@TAU, full-prompt@SHOTS, SCHEDULE@HOW.

    HOW is a strength of the schedule's adapter, PROMPT or NULL. Raises InputError for any other name.

    >>> parse_arm("rules@0.3").title
    'base, template by rules at 0.3, all shots'
    >>> parse_arm("full-prompt@5").title
    'base, template and 5 shots'
    >>> parse_arm("linear@0.5").title
    'linear, adapter at strength 0.5'
    """
    if name in BY_COMPARE:
        arm = BY_COMPARE[name]
        return ComparedArm(name=name, title=arm.title, prompt=arm.prompt, program=arm.program, warm=arm.warm)
    if name in DECAYS:
        return ComparedArm(name=name, title=f"{name}: {DECAYS[name][0]}", prompt=Prompt.BARE, schedule=name)
    if name == NEAREST:
        return ComparedArm(name=name, title="the answer of the nearest training question", prompt=Prompt.BARE)
    compressor, _, rate = name.partition("@")
    if compressor == BASE_FULL_PROMPT.compare:
        return _with_shots(name, rate)
    if compressor in DECAYS:
        return _of_schedule(name, compressor, rate)
    if compressor not in COMPRESSORS or not rate:
        raise InputError("--arms", "no such arm", got=name, fix=_meant(name, compressor, rate))
    try:
        tau = float(rate)
    except ValueError:
        tau = -1.0
    if not 0 < tau < 1:
        fix = f"write {compressor}@{TAUS[0]}"
        raise InputError("--arms", f"what {compressor} keeps must lie between 0 and 1", got=rate, fix=fix)
    title = f"base, template by {compressor} at {rate}, all shots"
    return ComparedArm(name=name, title=title, prompt=Prompt.FULL, compressor=compressor, tau=tau)


def _meant(name: str, head: str, rest: str) -> str:
    """Return which arm a name that is none may mean; `rest` is what follows the @ in it."""
    if rest and (near := nearest(head, (BASE_FULL_PROMPT.compare, *DECAYS, *COMPRESSORS))):
        return f"did you mean {near}@{rest}?"
    return did_you_mean(name, [*BY_COMPARE, NEAREST, *DECAYS, *(f"{each}@{TAUS[0]}" for each in COMPRESSORS)])


def _with_shots(name: str, count: str) -> ComparedArm:
    """Return the arm of the base with the template and so many shots; raises InputError for what is no number."""
    if not count.isdecimal():
        fix = f"write {BASE_FULL_PROMPT.compare}@5"
        raise InputError("--arms", "shots are a whole number from 0", got=count, fix=fix)
    title = f"base, template and {int(count)} shot{'' if int(count) == 1 else 's'}"
    return ComparedArm(name=name, title=title, prompt=Prompt.FULL, shots=int(count))


def _of_schedule(name: str, schedule: str, how: str) -> ComparedArm:
    """Return the arm of a schedule's adapter, changed or with another prompt; raises InputError for no such thing."""
    if how == PROMPT:
        title = f"{schedule}, old prompt put back"
        return ComparedArm(name=name, title=title, prompt=Prompt.FULL, schedule=schedule)
    if how == NULL:
        title = f"{schedule}, adapter's weights shuffled"
        return ComparedArm(name=name, title=title, prompt=Prompt.BARE, schedule=schedule, shuffled=True)
    try:
        strength = float(how)
    except ValueError:
        strength = -1.0
    if not 0 <= strength <= STRONGEST:
        fix = f"write {schedule}@0.5, {schedule}@{PROMPT} or {schedule}@{NULL}"
        raise InputError("--arms", f"an adapter's strength lies between 0 and {STRONGEST:g}", got=how, fix=fix)
    title = f"{schedule}, adapter at strength {how}"
    return ComparedArm(name=name, title=title, prompt=Prompt.BARE, schedule=schedule, strength=strength)


def parse_arms(names: tuple[str, ...]) -> tuple[ComparedArm, ...]:
    """Return the arms of some names, each once, the references first; all of DEFAULT_ARMS without any.

    Raises InputError for a name that is not an arm.
    """
    wanted = dict.fromkeys((*REFERENCES, *(names or DEFAULT_ARMS)))
    return tuple(parse_arm(name) for name in wanted)
