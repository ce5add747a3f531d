"""One training step and one validation loss on a batch, alone or as one process of a team."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx.nn.utils import value_and_grad
from mlx.utils import tree_map

from pilocal.base.device import on_cpu
from pilocal.task import Training
from pilocal.training.mlx.batches import Batch
from pilocal.training.mlx.frozen_layers import Below, first_adapted
from pilocal.training.mlx.loss import completion_loss
from pilocal.training.mlx.team import MlxTeam


class BatchTrainer:
    """A model with its adapter, the optimizer, and the team that computes gradients together.

    Every process of a team calls the same methods with the same batches; each computes its part, the gradients are
    added up, and each takes the same step.
    """

    def __init__(self, model: Any, optimizer: Any, training: Training, team: MlxTeam) -> None:
        """Compile the step where that is asked for, once for each shape that batches have."""
        self.model, self.optimizer, self.training, self.team = model, optimizer, training, team
        self.first = first = first_adapted(model)
        # What a model said is no reference, whose cross-entropy could have a weight.
        self._settings = (training, replace(training, distill_answers=0.0))

        def gradient_by(training: Training) -> Callable[..., tuple[mx.array, Any]]:
            def loss_of(model: Any, *arrays: mx.array) -> tuple[mx.array, mx.array]:
                return completion_loss(model, *arrays, first=first, recompute=training.recompute, training=training)

            of_model = value_and_grad(model, loss_of)

            def gradient(share: mx.array, *arrays: mx.array) -> tuple[mx.array, Any]:
                (loss, _), gradients = of_model(model, *arrays)
                return share * loss, tree_map(lambda g: share * g, gradients)

            return gradient

        def update(gradients: Any) -> mx.array:
            norm: mx.array
            gradients, norm = optim.clip_grad_norm(gradients, training.clip)
            optimizer.update(model, gradients)
            return norm

        gradients = [gradient_by(each) for each in self._settings]
        if not on_cpu() if training.compile is None else training.compile:
            computing, learning = [model.state, mx.random.state], [model.state, optimizer.state]
            gradients = [mx.compile(each, inputs=computing, outputs=computing) for each in gradients]
            update = mx.compile(update, inputs=learning, outputs=learning)
        self._gradients, self._update = gradients, update
        model.train()

    def step(
        self, number: int, rate: float, batch: Batch, below: Below, *others: tuple[Batch, Below]
    ) -> tuple[mx.array, mx.array]:
        """Take step `number` (from 0) of the whole run at a learning rate; return loss and gradient norm.

        A step on several groups of rows (`row_order.parted`) has a batch for each.
        """
        self.optimizer.learning_rate = rate
        mx.random.seed((self.training.seed * 1_000_003 + number) + (self.team.rank << 40))
        loss, gradients = self.gradients(batch, below, *others)
        norm = self._update(gradients)
        mx.eval(loss, norm, self.model.trainable_parameters(), self.optimizer.state)
        return loss, norm

    def gradients(self, batch: Batch, below: Below, *others: tuple[Batch, Below]) -> tuple[mx.array, Any]:
        """Return the mean loss of a batch's completion tokens and its gradient, not yet clipped.

        With `accumulate` this process's part is computed in that many parts, each weighted by what its tokens count:
        the loss and the gradient are those of the whole batch. Those of several batches are weighted by their rows.
        """
        loss, gradients = mx.array(0.0), None
        batches = [(batch, below), *others]
        rows = sum(len(whole.rows) for whole, _ in batches)
        for whole, under in batches:
            weight, mine = len(whole.rows) / rows, self.team.part(whole)
            for part in mine.parts(self.training.accumulate) if mine else ():
                share = mx.array(weight * part.weight / whole.weight)
                part_loss, part_gradients = self._gradients[part.is_said](share, *under.arrays(part))
                loss = loss + part_loss
                gradients = part_gradients if gradients is None else tree_map(mx.add, gradients, part_gradients)
                mx.eval(loss, gradients)  # frees this part's activations before the next
        if gradients is None:
            gradients = tree_map(mx.zeros_like, self.model.trainable_parameters())
        loss, gradients = self.team.sum([loss, gradients])
        return loss, gradients

    def evaluate(self, batch: Batch, below: Below) -> tuple[float, float]:
        """Return the summed loss of a batch's completion tokens and their number, or what they count together."""
        self.model.eval()
        total, tokens = mx.array(0.0), mx.array(0.0)
        if mine := self.team.part(batch):
            arrays = below.arrays(mine)
            settings = self._settings[batch.is_said]
            mean, tokens = completion_loss(self.model, *arrays, first=below.first, training=settings)
            total = mean * tokens
        self.model.train()
        total, tokens = self.team.sum([total, tokens])
        return float(total), float(tokens)
