"""The trained model in PyTorch, to compare with where there is no MLX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pilocal.progress import Progress
from pilocal.prompt.sampling import Sampling
from pilocal.prompt.tokens import Row
from pilocal.training.torch_backend.trainer import TorchTrainer


class TorchReference:
    """A trainer's base with its adapter."""

    def __init__(self, trainer: TorchTrainer) -> None:
        self._trainer = trainer

    def logits(self, row: Row) -> NDArray[np.float32]:
        """Return the logits of each completion token: (C, vocabulary)."""
        logits: NDArray[np.float32] = row.pick(self._trainer.logits(row)[row.offset - 1 : -1])
        return logits

    def answer(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        ends: frozenset[int],
        max_tokens: int,
        batch_size: int,
        progress: Progress,
        name: str,
        sampling: Sampling | None = None,
    ) -> list[list[int]]:
        """Return for each prompt the completion, without its end token; `ends` are the ids that end one.

        It is the greedy one, or drawn as `sampling` says.
        """
        answers: list[list[int]] = []
        how: dict[str, Any] = {"do_sample": False}
        if sampling:
            torch.manual_seed(sampling.number)
            how = {"do_sample": True, "temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}
        for start in range(0, len(prompts), batch_size):
            answers += self._answer(prompts[start : start + batch_size], sorted(ends), max_tokens, how)
            progress(name, len(answers), len(prompts))
        return answers

    def _answer(
        self, prompts: Sequence[Sequence[int]], ends: Sequence[int], max_tokens: int, how: Mapping[str, Any]
    ) -> list[list[int]]:
        model, device = self._trainer.model.eval(), self._trainer.device
        longest = max(map(len, prompts))
        tokens_BT = torch.full((len(prompts), longest), ends[0])
        mask_BT = torch.zeros((len(prompts), longest), dtype=torch.long)
        for i, prompt in enumerate(prompts):
            tokens_BT[i, longest - len(prompt) :] = torch.tensor(prompt)
            mask_BT[i, longest - len(prompt) :] = 1
        with torch.no_grad():
            said_BT = model.generate(
                tokens_BT.to(device),
                attention_mask=mask_BT.to(device),
                **how,
                use_cache=True,
                synced_gpus=self._trainer.team.sharded,  # all make as many passes as the slowest
                max_new_tokens=max_tokens,
                eos_token_id=list(ends),
                pad_token_id=ends[0],
            )
        completions = said_BT[:, longest:].tolist()
        return [said[: next((i for i, token in enumerate(said) if token in ends), len(said))] for said in completions]
