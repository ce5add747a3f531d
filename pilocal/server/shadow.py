"""Shadow requests: some answers are compared with the base's under the full prompt, off the caller's path."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping

from pilocal.evaluate.scoring.metrics import Metric
from pilocal.server.agreement import Agreement, compare
from pilocal.server.asking import Asking
from pilocal.server.engines import Engines
from pilocal.server.full_prompt import ShareSampler
from pilocal.server.queue import Queue
from pilocal.server.request import CHATS
from pilocal.server.routing import INTERNALIZED, Router


class Shadow:
    """Asks the base the same with the full prompt, for a share of the chats that an adapter has answered."""

    def __init__(
        self,
        share: float,
        metrics: Mapping[str, Metric],
        *,
        router: Router,
        engines: Engines,
        queue: Queue,
        count: Callable[[Agreement], object],
    ) -> None:
        """Take the share, and the metrics that can compare answers, by task; `count` is told what was found."""
        self._takes = ShareSampler(share)
        self._share, self._metrics = share, metrics
        self._router, self._engines, self._queue = router, engines, queue
        self._count = count
        self._running: set[asyncio.Task[None]] = set()

    def follow(self, path: str, asking: Asking) -> None:
        """Compare a request that was answered, if it is drawn and nobody waits for the engine."""
        route = asking.route
        if not self._share or path not in CHATS or route.arm != INTERNALIZED or not asking.answers[0].finish:
            return
        if not self._takes() or self._queue.is_full:
            return
        task = asyncio.create_task(self._compare(asking, asking.text(0, self._engines.tokenizer)))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _compare(self, answered: Asking, said: str) -> None:
        route = answered.route
        try:
            full = self._router.with_full_prompt(route)
            if full is None:
                return
            asking = Asking(full, answered.client, threading.Event())
            await asking.begin(self._engines, self._router.context, self._router.family)
            await asking.all()
            told, query = asking.text(0, self._engines.tokenizer), str(full.body["messages"][-1]["content"])
            metric = self._metrics.get(route.task)
            self._count(await asyncio.to_thread(compare, route.task, said, told, query, metric))
        except Exception:  # nobody waits for it; the log says what it was
            logging.getLogger(__name__).exception("a shadow request failed")
