"""The base as the compressors use it: how little each token of a text was to be expected, and a greedy rewriting."""

from __future__ import annotations

import math

from pilocal.base.base import Base
from pilocal.base.load import load_base
from pilocal.compress import Span
from pilocal.errors import InputError
from pilocal.prompt.tokens import answer_text, end_tokens, prompt_tokens

LOGITS_AT_ONCE = 1 << 25
"""Logits held at a time, 128 MiB in float32; a longer text is read in parts, each through the cache of those before."""


class BaseModel:
    """A loaded base, without an adapter."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self.model = load_base(base)

    def surprisal(self, text: str) -> list[Span]:
        """Return the text's tokens, each with minus the natural logarithm of its probability after those before it.

        The first token follows BOS; of a base without one it counts as one of the whole vocabulary. Raises InputError
        when the text is longer than the base's context.
        """
        import mlx.core as mx
        import numpy as np
        from mlx_lm.models.cache import make_prompt_cache

        encoded = self.base.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        tokens, offsets = encoded["input_ids"], encoded["offset_mapping"]
        context = self.base.context
        if len(tokens) >= context:
            what = f"the template has {len(tokens)} tokens, the base's context {context}"
            raise InputError(self.base.path, what, fix="shorten the template, or take a base with a longer context")
        bos = self.base.tokenizer.bos_token_id
        vocabulary = self.model.args.vocab_size
        values: list[float] = [] if bos is not None or not tokens else [math.log(vocabulary)]
        read = [bos, *tokens] if bos is not None else tokens
        size = max(1, LOGITS_AT_ONCE // vocabulary)
        cache = make_prompt_cache(self.model)
        for start in range(0, len(read) - 1, size):
            part, following = read[start : start + size][: len(read) - 1 - start], read[start + 1 : start + size + 1]
            logits_TV = self.model(mx.array(part)[None], cache=cache)[0].astype(mx.float32)
            chosen_T = mx.take_along_axis(logits_TV, mx.array(following)[:, None], axis=-1)[:, 0]
            values.extend(np.asarray(mx.logsumexp(logits_TV, axis=-1) - chosen_T).tolist())
        return [Span(start, end, value) for (start, end), value in zip(offsets, values, strict=True)]

    def rewrite(self, prompt: str, max_tokens: int) -> str:
        """Return the greedy answer to a prompt as a chat of one turn, cut after `max_tokens` or at the context's end.

        Raises InputError when the prompt leaves no room for an answer.
        """
        import mlx.core as mx
        from mlx_lm.generate import generate_step

        tokens = prompt_tokens([{"role": "user", "content": prompt}], self.base.tokenizer)
        room = min(max_tokens, self.base.context - len(tokens))
        if room < 1:
            what = f"the request to rewrite the template has {len(tokens)} tokens and fills the base's context"
            raise InputError(self.base.path, what, fix="shorten the template, or take a base with a longer context")
        ends = end_tokens(self.base.tokenizer)
        answer: list[int] = []
        for token, _ in generate_step(mx.array(tokens), self.model, max_tokens=room):
            if int(token) in ends:
                break
            answer.append(int(token))
        text = answer_text(answer, self.base.tokenizer)
        return text

    def close(self) -> None:
        """Free the weights and MLX's buffers."""
        import mlx.core as mx

        self.model = None
        mx.clear_cache()
