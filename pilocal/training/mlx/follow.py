"""What a process of a team does that does not lead: it follows orders and writes nothing."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Mapping
from typing import Any

from pilocal.task import Lora, Training
from pilocal.training.mlx.adapter import add_lora
from pilocal.training.mlx.frozen_layers import Below
from pilocal.training.mlx.optimizer import make_optimizer
from pilocal.training.mlx.team import Kind, Team
from pilocal.training.mlx.trainer import Trainer


def follow(team: Team, load: Callable[[], Any], lora: Lora, training: Training, same: Mapping[str, str]) -> None:
    """Carry out the leader's orders until it ends the training; `load` returns a fresh frozen base.

    `same` must be what the leader has, see `Team.check_same`. Ctrl-C reaches every process; here it is left to the
    leader, which saves first. Raises TrainingError when the leader is gone.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    trainer: Trainer | None = None
    below: dict[Kind, tuple[list[int], Below]] = {}
    for order in team.orders():
        if order.kind == Kind.FIT:
            team.check_same(same)
            below.clear()
            trainer = None  # frees the base before another is loaded
            model = load()
            add_lora(model, lora, training.seed)
            optimizer = make_optimizer(model, training)
            model.update(team.copy(model.trainable_parameters()))
            optimizer.state = team.copy(optimizer.state)
            trainer = Trainer(model, optimizer, training, team)
            continue
        assert trainer is not None
        assert order.batch is not None
        prefix = order.batch.prefix_P.tolist()
        if below.get(order.kind, (None,))[0] != prefix:
            below[order.kind] = prefix, Below(trainer.model, trainer.first, prefix)
        if order.kind == Kind.STEP:
            trainer.step(order.step, order.rate, order.batch, below[order.kind][1])
        else:
            trainer.evaluate(order.batch, below[order.kind][1])
