"""One training step and one look at the validation loss in PyTorch, alone or as one process of a team."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pilocal.base.base import Base
from pilocal.errors import InputError
from pilocal.prompt.tokens import Row
from pilocal.run_folder.adapter import Adapter
from pilocal.task import Lora, Training
from pilocal.training.backend import UNPACKED
from pilocal.training.memory import Load
from pilocal.training.torch_backend.adapter import Floats, check_adapter, parameters
from pilocal.training.torch_backend.loss import losses
from pilocal.training.torch_backend.memory import peak_memory, told_of_memory
from pilocal.training.torch_backend.model import adapter_config, add_lora, load_model, lora_config
from pilocal.training.torch_backend.optimizers import clip, get_state, make_optimizer, set_state
from pilocal.training.torch_backend.passes import Pass, passes, prefix_of, trained
from pilocal.training.torch_backend.team import TorchTeam


class TorchTrainer:
    """A base with its adapter and the optimizer.

    Every process of a team calls the same methods with the same rows; each computes its part, the gradients are added
    up, and each takes the same step.
    """

    def __init__(
        self,
        base: Base,
        lora: Lora,
        training: Training,
        initial: Mapping[str, NDArray[np.float32]] | None,
        *,
        device: str = "cpu",
        precision: str = "float32",
        weights: str = UNPACKED,
        share: bool = False,
        team: TorchTeam | None = None,
    ) -> None:
        """Load the base and give it an adapter; `initial` has mlx-lm's names and layouts.

        The base computes in `precision`; the adapter, its gradients and the loss are float32 always. Without `initial`
        the adapter is 0 until `set_adapter`. `weights` is one of `backend.WEIGHTS`. With `share`, what a step's
        rows begin with runs through the model once, and its keys and values serve every row; loss and gradients stay
        what they are. Raises ModelError for a base, InputError for an adapter or `[lora]` that does not fit.
        """
        self._base, self.training, self.team = base, training, team or TorchTeam()
        self.shares_prefix = share
        """Whether what rows begin with together counts for their order, see `row_order.RowOrder`."""
        # What is computed again backwards keeps no keys and values.
        self.share = self.shares_prefix and not training.recompute
        self.device = torch.device(device)
        how: dict[str, Any] = {"dtype": getattr(torch, precision), "device": self.device, "weights": weights}
        self.model = load_model(base, **how, sharded=self.team.sharded)
        self.settings = lora_config(self.model, lora)
        self.config = adapter_config(self.model, lora)
        """The adapter's settings, as mlx-lm has them."""
        add_lora(self.model, self.settings)
        self.parameters = parameters(self.model)
        self.optimizer = make_optimizer(list(self.parameters.values()), training)
        if training.recompute:
            newer = getattr(self.model, "activation_checkpointing_enable", None)  # transformers has renamed it
            (newer or self.model.gradient_checkpointing_enable)({"use_reentrant": False})
        self.model.train()
        if initial is not None:
            check_adapter(initial, self.shapes, base.path)
            self.set_adapter(initial)

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """The adapter's tensors by name, with mlx-lm's shapes."""
        return {name: (value.shape[1], value.shape[0]) for name, value in self.parameters.items()}

    def gradients(self, rows: Sequence[Row]) -> tuple[float, dict[str, Floats]]:
        """Return the mean loss of the rows' completion tokens and its gradients, unclipped; takes no step."""
        loss = self._backward(rows)
        found = {name: _turned(value.grad) for name, value in self.parameters.items() if value.grad is not None}
        self.optimizer.zero_grad()
        return float(loss), found

    def stage(self, prefix: Sequence[int]) -> TorchTrainer:
        """Return what trains on rows that all begin with `prefix`: each step finds out by itself what they share."""
        return self

    def step(self, number: int, rate: float, rows: Sequence[Row]) -> tuple[float, float]:
        """Take step `number` (from 0) of the whole run at a learning rate; return loss and gradient norm.

        The norm is that before clipping. With `accumulate` this process's part is computed in that many parts: the loss
        and the gradient are those of all rows together. Raises TrainingError when the memory does not do.
        """
        with told_of_memory(self.training), self.team.computing():
            torch.manual_seed((self.training.seed * 1_000_003 + number) + (self.team.rank << 40))
            loss = self._backward(rows)
            norm = clip(list(self.parameters.values()), self.training.clip)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
            self.optimizer.zero_grad()
            return float(loss), float(norm)

    def evaluate(self, rows: Sequence[Row]) -> tuple[float, float]:
        """Return the summed loss of the rows' completion tokens and their number, or what they count together.

        Raises TrainingError when the memory does not do.
        """
        total = torch.zeros((), device=self.device)
        with told_of_memory(self.training), self.team.computing(), self._answering():
            for one in self._own_passes(rows):
                loss = self._summed_loss(one)
                total += loss if math.isfinite(one.count) else 0
        self.team.sum([total])
        return float(total), trained(rows)

    def logits(self, row: Row) -> Floats:
        """Return the logits (len(tokens), vocabulary) of a row, each position's for the token after it."""
        self._check([row])
        with self._answering():
            tokens = torch.tensor([row.tokens], device=self.device)
            logits: Floats = self.model(tokens).logits[0].float().cpu().numpy()
        return logits

    def adapter(self) -> dict[str, Floats]:
        """Return the adapter under mlx-lm's names and layouts, float32."""
        return {name: _turned(value.detach()) for name, value in self.parameters.items()}

    def computed_tokens(self, rows: Sequence[Row]) -> tuple[int, int]:
        """Return how many tokens run through the model for some rows, in all processes, and how many are padding."""
        computed = padding = 0
        for one in self._every_pass(rows):
            lengths = [len(row.tokens) - 1 for row in one.rows]
            computed += one.prefix + len(one.rows) * (max(lengths) - one.prefix)
            padding += len(one.rows) * max(lengths) - sum(lengths)
        return computed, padding

    def loads(self, rows: Sequence[Row]) -> list[Load]:
        """Return what each part of a step computes, in all processes."""
        return [load_of(one.rows, one.prefix) for one in self._every_pass(rows)]

    def set_adapter(self, adapter: Mapping[str, Floats]) -> None:
        """Take another adapter's weights, under mlx-lm's names and layouts."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(torch.from_numpy(np.ascontiguousarray(adapter[name].T)))

    def optimizer_state(self) -> dict[str, NDArray[Any]]:
        """Return what the optimizer remembers."""
        return get_state(self.optimizer, list(self.parameters))

    def restore(self, adapter: Mapping[str, Floats], optimizer: Mapping[str, NDArray[Any]]) -> None:
        """Take other weights for the adapter, and what the optimizer remembered with them."""
        self.set_adapter(adapter)
        set_state(self.optimizer, list(self.parameters), optimizer)

    def save(self, folder: Path) -> None:
        """Write the adapter, which names the base."""
        config = replace(self.config, model=self._base.model, base_sha256=self._base.sha256)
        Adapter(config=config, tensors=self.adapter()).write(folder)

    def reset_peak_memory(self) -> None:
        """Begin to measure anew, on CUDA."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_memory(self) -> int:
        """Return the bytes at the peak: since `reset_peak_memory` on CUDA, of the whole process elsewhere."""
        return peak_memory(self.device)

    def _backward(self, rows: Sequence[Row]) -> torch.Tensor:
        """Leave the gradients of the mean loss in the parameters, and return the loss."""
        loss = torch.zeros((), device=self.device)
        for one in self._own_passes(rows):
            share = self._summed_loss(one) / one.count
            share.backward()  # type: ignore[no-untyped-call]
            loss += share.detach()
        for parameter in self.parameters.values():
            if parameter.grad is None:  # no row is this process's
                parameter.grad = torch.zeros_like(parameter)
        self.team.sum([loss, *(value.grad for value in self.parameters.values() if value.grad is not None)])
        return loss

    def _own_passes(self, rows: Sequence[Row]) -> list[Pass]:
        """Return what this process computes of a step."""
        self._check(rows)
        return self._passes(rows)[self.team.rank]

    def _every_pass(self, rows: Sequence[Row]) -> list[Pass]:
        """Return what all processes compute of a step."""
        return [one for own in self._passes(rows) for one in own]

    def _passes(self, rows: Sequence[Row]) -> list[list[Pass]]:
        accumulate, alike = self.training.accumulate, self.team.sharded
        return passes(rows, self.team.size, accumulate, share=self.share, alike=alike)

    def _summed_loss(self, one: Pass) -> torch.Tensor:
        """Return the sum of the loss over exactly the completion tokens, each by its weight, in float32."""
        rows = one.rows
        logits_NV = self._logits(self._completion_states(rows, one.prefix))
        targets_N = torch.tensor([token for row in rows for token in row.completion], device=self.device)
        losses_N = losses(logits_NV, targets_N, [row.soft for row in rows], self.training)
        if any(row.weight != 1 for row in rows):
            weights = [row.weight for row in rows for _ in row.completion]
            losses_N = losses_N * torch.tensor(weights, device=self.device)
        return losses_N.sum()

    def completion_states(self, rows: Sequence[Row], before: Any = None) -> torch.Tensor:
        """Return the hidden states that predict the completion tokens, those of one row after the other's: (N, width).

        `before` is what `read_prefix` made of the tokens that all rows begin with, if anything.
        """
        self._check(rows)
        with self._answering():
            return self._completion_states(rows, prefix_of(rows) if self.share else 0, before)

    def read_prefix(self, tokens: Sequence[int], before: Any = None, known: int = 0) -> Any:
        """Return the keys and values of tokens that rows begin with, of which `before` has the first `known`."""
        with self._answering():
            if before is None:
                return self._keys_and_values(tokens)
            cache = deepcopy(before)
            if surplus := cache.get_seq_length() - known:
                cache.crop(-surplus)
            return self._keys_and_values(tokens[known:], cache)

    def head(self, states_ND: torch.Tensor) -> torch.Tensor:
        """Return the logits (N, vocabulary) of hidden states, without gradients."""
        with self._answering():
            return self._logits(states_ND)

    def _logits(self, states_ND: torch.Tensor) -> torch.Tensor:
        logits_NV: torch.Tensor = self.model.lm_head(states_ND).float()
        limit: float | None = getattr(self.model.config, "final_logit_softcapping", None)  # Gemma 4's
        if limit is not None:
            return torch.tanh(logits_NV / limit) * limit
        return logits_NV / getattr(self.model.config, "logits_scaling", 1)  # Granite's

    def _completion_states(self, rows: Sequence[Row], prefix: int, before: Any = None) -> torch.Tensor:
        prefix = prefix if before is None else before.get_seq_length()
        longest = max(len(row.tokens) for row in rows) - 1 - prefix
        tokens_BT = torch.zeros((len(rows), longest), dtype=torch.long)
        predicts_BT = torch.zeros((len(rows), longest), dtype=torch.bool)
        for i, row in enumerate(rows):
            tokens_BT[i, : len(row.tokens) - 1 - prefix] = torch.tensor(row.tokens[prefix:-1])
            predicts_BT[i, [row.offset - 1 - prefix + place for place in row.places]] = True
        # Padding comes last and attention is causal, so no real token sees it and no mask is needed.
        kept = {}
        if prefix:
            cache = self._keys_and_values(rows[0].tokens[:prefix]) if before is None else deepcopy(before)
            cache.batch_repeat_interleave(len(rows))
            kept = self._behind(cache)
        states_BTD = self.model.model(tokens_BT.to(self.device), **kept).last_hidden_state
        states_ND: torch.Tensor = states_BTD[predicts_BT.to(self.device)]
        return states_ND

    def _keys_and_values(self, tokens: Sequence[int], cache: Any = None) -> Any:
        """Return what a model that is run on `tokens`, behind what a cache holds, keeps of all."""
        from transformers import DynamicCache

        cache = DynamicCache() if cache is None else cache
        self.model.model(torch.tensor([tokens], device=self.device), **self._behind(cache))
        return cache

    def _behind(self, cache: Any) -> dict[str, Any]:
        """Return what makes the model go on behind what a cache holds."""
        known = inspect.signature(self.model.model.forward).parameters
        return {"cache" if "cache" in known else "past_key_values": cache, "use_cache": True}  # renamed in 5.24

    def _check(self, rows: Sequence[Row]) -> None:
        """Raise InputError for tokens that the base does not have."""
        vocabulary = self.model.config.vocab_size
        highest = max(max(row.tokens) for row in rows)
        if highest >= vocabulary:
            what, fix = f"the base knows {vocabulary} tokens", "render the rows with the base's own tokenizer"
            raise InputError("rows", f"a token of another tokenizer: {what}", got=highest, fix=fix)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Compute without dropout and without gradients."""
        self.model.eval()
        with torch.no_grad():
            yield
        self.model.train()


def load_of(rows: Sequence[Row], prefix: int) -> Load:
    """Return what rows compute whose first `prefix` tokens are computed once."""
    own = max(len(row.tokens) for row in rows) - 1 - prefix
    completion = -(-sum(len(row.completion) for row in rows) // len(rows))
    return Load(prefix=prefix, groups=0, shots=0, rows=len(rows), own=own, completion=completion)


def _turned(tensor: torch.Tensor) -> Floats:
    """Return a copy of a parameter in mlx-lm's layout."""
    turned: Floats = tensor.float().cpu().numpy().T.copy()
    return turned
