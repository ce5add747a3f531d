"""What a process of a team does that does not lead: it follows orders and writes nothing."""

from __future__ import annotations

from pilocal.training.interrupt import uninterrupted
from pilocal.training.protocol import Setup, StageTrainer, T
from pilocal.training.team import Kind


def follow(setup: Setup[T]) -> None:
    """Carry out the leader's orders until it ends the training.

    Ctrl-C reaches every process; here it is left to the leader, which saves first. Raises TrainingError when the leader
    is gone, or has other settings.
    """
    try:
        with uninterrupted():
            _obey(setup)
    finally:
        setup.team.leave()


def _obey(setup: Setup[T]) -> None:
    trainer: T | None = None
    stages: dict[Kind, tuple[tuple[int, ...], StageTrainer]] = {}
    for order in setup.team.orders():
        if order.kind in (Kind.FIT, Kind.HELP):
            stages.clear()
            trainer = None  # frees the base before another is loaded
            if order.kind == Kind.FIT:
                trainer = setup.join()
            else:
                setup.team.help(setup)
            continue
        assert trainer is not None
        prefix = order.rows[0].tokens[: order.prefix]
        if order.kind not in stages or stages[order.kind][0] != prefix:
            stages[order.kind] = prefix, trainer.stage(prefix)
        stage = stages[order.kind][1]
        if order.kind == Kind.STEP:
            stage.step(order.step, order.rate, order.rows)
        else:
            stage.evaluate(order.rows)
