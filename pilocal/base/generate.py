"""Batched answers from an mlx-lm model, greedy or drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pilocal.base.blas import load_fast_blas
from pilocal.progress import Progress
from pilocal.prompt.sampling import Pick
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
    picks: Sequence[Pick] = (),
) -> list[list[int]]:
    """Return the completion of each prompt, without its end token: the greedy one, or as `picks`, one each, choose.

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

    def sampler(pick: Pick) -> Any:
        return lambda log_probs_1V: mx.array([pick(np.array(log_probs_1V[0].astype(mx.float32)))])

    generator = BatchGenerator(
        model,
        max_tokens=max_tokens,
        stop_tokens=[[end] for end in sorted(ends)],
        completion_batch_size=batch_size,
        prefill_batch_size=batch_size,
    )
    try:
        own = [list(prompt[shared:]) for prompt in prompts]
        # The generator copies the caches that it is given when it joins them into a batch.
        kept, samplers = [cache] * len(own) if cache else None, [sampler(pick) for pick in picks] or None
        ids = generator.insert(own, [max_tokens] * len(own), caches=kept, samplers=samplers)
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
