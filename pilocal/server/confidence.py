"""Falling back: an answer that the adapter is not sure of is given by the base instead, with the full prompt."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from statistics import mean

from pilocal.errors import PilocalError, RunError, raise_all
from pilocal.run_folder.calibration import read_calibration
from pilocal.run_folder.shipped import Shipped
from pilocal.server.answer import LENGTH
from pilocal.server.asking import Asking
from pilocal.server.engines import Engines
from pilocal.server.routing import Route, Router


def read_thresholds(tasks: Sequence[Shipped], warn: Callable[[str], object]) -> dict[str, float]:
    """Return the threshold of every task that has one; warn of those whose evaluation found that none helps.

    Raises RunError, or Faults, for runs on which nothing was calibrated.
    """
    found, faults = dict[str, float](), list[PilocalError]()
    for task in tasks:
        try:
            calibration = read_calibration(task.folder)
        except RunError as fault:
            faults.append(fault)
            continue
        if calibration is None:
            run = task.folder.parent
            fix = f"`pilocal evaluate TASK --run {run}` chooses one on validation data"
            faults.append(RunError(run, "no confidence threshold for --fallback-on", fix=fix))
        elif calibration.threshold is None:
            warn(f"{task.name}: never falls back: {calibration.why_none}")
        else:
            found[task.name] = calibration.threshold
    raise_all(faults)
    return found


class ConfidenceFallback:
    """Watches how sure the adapters are of their answers to chats."""

    def __init__(
        self, thresholds: Mapping[str, float], router: Router, engines: Engines, count: Callable[[str, str], object]
    ) -> None:
        """Take each task's threshold; `count` is told the task and arm of every answer that was under it."""
        self._thresholds = thresholds
        self._router, self._engines, self._count = router, engines, count

    def watches(self, route: Route) -> bool:
        """Tell whether a request may fall back: a chat that an adapter answers at no strength of the caller's own."""
        return route.bare is not None and route.strength is None and route.task in self._thresholds

    async def settle(self, asking: Asking) -> Asking:
        """Return what is given to the caller, whole: the adapter's answers, or the base's if those are not sure.

        The adapter's stay where the base cannot answer: the full prompt, or its answer, does not fit the context, the
        last message is not the user's, or something fails, which is logged.
        """
        await asking.all()
        sure = confidence(asking)
        if asking.is_cancelled or (sure is not None and sure >= self._thresholds[asking.route.task]):
            return asking
        try:
            settled = await self._full_prompt(asking) or asking
        except Exception:  # there is an answer, if not a sure one; the log says what it was
            logging.getLogger(__name__).exception("the full prompt could not be asked; the adapter's answer stays")
            settled = asking
        self._count(asking.route.task, settled.route.arm)
        return settled

    async def _full_prompt(self, asking: Asking) -> Asking | None:
        """Return the base's answers, whole; None where they do not fit."""
        route = self._router.with_full_prompt(asking.route, whole=False)
        if route is None:
            return None
        full = asking.again(route)
        await full.begin(self._engines, self._router.context, self._router.family)
        await full.all()
        fits = route.body.get("max_tokens", math.inf) <= self._router.context - route.prompt_tokens
        return full if fits or all(answer.finish != LENGTH for answer in full.answers) else None


def confidence(asking: Asking) -> float | None:
    """Return how sure the answers to a request are: the mean of theirs; None where nothing was said."""
    found = [answer.confidence.mean for answer in asking.answers if answer.confidence is not None]
    known = [one for one in found if one is not None]
    return mean(known) if known else None
