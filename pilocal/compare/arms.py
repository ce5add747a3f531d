"""The arms of a comparison: prompts for the base, and schedules that an adapter is trained by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pilocal.compress.template import COMPRESSORS
from pilocal.errors import InputError, did_you_mean
from pilocal.task.schedule import DECAYS

PROMPTS: Mapping[str, str] = {
    "query-only": "base, bare query",
    "full-prompt": "base, full prompt",
    "full-prompt-cached": "base, full prompt, warm prefix cache",
}
"""The base with the query alone, with the full prompt, and with that in llama.cpp's KV cache already: their titles."""

TAUS = (0.3, 0.6)
"""The rates at which LLMLingua's users compress."""

DEFAULT_ARMS = (*PROMPTS, *(f"rules@{tau}" for tau in TAUS), *(f"surprisal@{tau}" for tau in TAUS), *DECAYS)
"""Every arm that needs nothing but the task and the base."""

REFERENCES = ("query-only", "full-prompt")
"""The arms that every comparison has: the PI score is measured between them."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of answering."""

    name: str
    title: str
    compressor: str | None = None
    """The compressor of an arm that shortens the template at inference."""
    tau: float | None = None

    @property
    def trained(self) -> bool:
        """Whether an adapter is trained for it; such an arm is asked with the bare query."""
        return self.name in DECAYS


def parse_arm(name: str) -> Arm:
    """Return the arm of a name: of PROMPTS, of schedule.DECAYS, or COMPRESSOR@TAU; raises InputError otherwise.

    >>> parse_arm("rules@0.3").title
    'base, template by rules at 0.3, all shots'
    """
    if name in PROMPTS:
        return Arm(name, PROMPTS[name])
    if name in DECAYS:
        return Arm(name, f"{name}: {DECAYS[name][0]}")
    compressor, _, rate = name.partition("@")
    if compressor not in COMPRESSORS or not rate:
        known = [*PROMPTS, *DECAYS, *(f"{each}@{TAUS[0]}" for each in COMPRESSORS)]
        raise InputError("--arms", "no such arm", got=name, fix=did_you_mean(name, known))
    try:
        tau = float(rate)
    except ValueError:
        tau = -1.0
    if not 0 < tau < 1:
        fix = f"write {compressor}@{TAUS[0]}"
        raise InputError("--arms", f"what {compressor} keeps must lie between 0 and 1", got=rate, fix=fix)
    return Arm(name, f"base, template by {compressor} at {rate}, all shots", compressor, tau)


def parse_arms(names: tuple[str, ...]) -> tuple[Arm, ...]:
    """Return the arms of some names, each once, the references first; all of DEFAULT_ARMS without any."""
    wanted = dict.fromkeys((*REFERENCES, *(names or DEFAULT_ARMS)))
    return tuple(parse_arm(name) for name in wanted)
