"""Batched answers from an mlx-lm model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pilocal.base.blas import load_fast_blas
from pilocal.progress import Progress
from pilocal.prompt.sampling import Sampling
from pilocal.prompt.tokens import common_prefix


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    ends: frozenset[int],
    max_tokens: int,
    batch_size: int,
    progress: Progress,
    name: str,
    sampling: Sampling | None = None,
) -> list[list[int]]:
    """Return the completion of each prompt, without its end token: the greedy one, or as `sampling` says.

    What all prompts begin with is computed once. `ends` are the ids that end an answer.
    """
    load_fast_blas()  # before MLX is imported
    import mlx.core as mx
    from mlx_lm.generate import BatchGenerator
    from mlx_lm.models.cache import make_prompt_cache

    shared = common_prefix(prompts)
    cache = None
    if shared:
        cache = make_prompt_cache(model)
        mx.eval(model(mx.array(list(prompts[0][:shared]))[None], cache=cache), [layer.state for layer in cache])
    generator = BatchGenerator(
        model,
        max_tokens=max_tokens,
        stop_tokens=[[end] for end in sorted(ends)],
        completion_batch_size=batch_size,
        prefill_batch_size=batch_size,
        sampler=_sampler(sampling),
    )
    try:
        own = [list(prompt[shared:]) for prompt in prompts]
        # The generator copies the caches that it is given when it joins them into a batch.
        ids = generator.insert(own, [max_tokens] * len(own), caches=[cache] * len(own) if cache else None)
        answers: dict[int, list[int]] = {uid: [] for uid in ids}
        done = 0
        while responses := generator.next_generated():
            for response in responses:
                if response.finish_reason != "stop":
                    answers[response.uid].append(response.token)
                if response.finish_reason is not None:
                    done += 1
                    progress(name, done, len(own))
    finally:
        generator.close()
    return [answers[uid] for uid in ids]


def _sampler(sampling: Sampling | None) -> Any:
    """Return what draws a token for each line of log-probabilities; None for the likeliest."""
    if sampling is None:
        return None
    import mlx.core as mx

    mx.random.seed(sampling.number)
    return lambda log_probs_BV: mx.random.categorical(log_probs_BV / sampling.temperature)
