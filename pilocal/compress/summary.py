"""The compressor `summary`: the base itself rewrites the template to a token budget, greedily.

Needs a base that follows instructions. Every tau is rewritten from the whole template. A result that is too long is
given back to be shortened, as long as it gets shorter. Protected texts that got lost are added at the end if the budget
allows it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, ClassVar

from pilocal.compress.compressor import Compressor, LanguageModel, Tools
from pilocal.compress.outline import Outline
from pilocal.compress.protect import protected_texts
from pilocal.errors import InputError, ModelError
from pilocal.task import Compression
from pilocal.task.slots import slot_marks

TRIES = 3
"""How often the base is asked per tau."""

WORDS_A_TOKEN = 0.7
"""Models count words better than tokens. A little below the usual three quarters: they tend to write too much."""

PROMPT = """\
Rewrite the instructions below in at most {words} words. Keep every rule, name, code, number and format; leave out \
courtesies, repetitions and examples. Write the shortened instructions only.{copy}

Instructions:
{text}"""

COPY = " Copy each of these exactly as it stands: {texts}"

LEAST = 0.1
"""A text below this share of its budget is not a rewriting: the base did not follow the instruction."""

ADVICE = "take another compressor, such as rules or surprisal, or a base that follows instructions better"


def request(text: str, budget: int, protected: Sequence[str]) -> str:
    """Return the instruction to rewrite a text within a budget of tokens."""
    copy = COPY.format(texts=", ".join(protected)) if protected else ""
    return PROMPT.format(words=max(1, int(WORDS_A_TOKEN * budget)), copy=copy, text=text)


class Summary(Compressor):
    """Has the base rewrite the template."""

    name: ClassVar[str] = "summary"

    def __init__(self, config: Compression, tools: Tools) -> None:
        self.config = config
        self.tools = tools
        self._model: LanguageModel | None = None
        self._taus: tuple[float, ...] = ()
        self._rewritten = functools.cache(self._rewrite)

    def inputs(self, taus: Sequence[float]) -> Any:
        """Return all taus, because a text is at least as long as the texts of smaller taus."""
        return sorted(set(taus))

    def check(self, template: str, taus: Sequence[float]) -> None:
        """Raise InputError when the protected texts do not fit the smallest tau; note the taus."""
        self._taus = tuple(sorted({tau for tau in taus if 0 < tau < 1}))
        if not self._taus:
            return
        kept = "\n".join(protected_texts(template, self.config.protected))
        budget = int(self._taus[0] * self.tools.count_tokens(template))
        if self.tools.count_tokens(kept) > budget:
            texts = "the texts to keep, slots among them," if slot_marks(template) else "the texts to keep"
            what = f"{texts} do not fit tau {self._taus[0]:.4g}, which allows {budget} tokens"
            got = f"{self.tools.count_tokens(kept)} tokens"
            raise InputError("[compression] keep", what, got=got, fix="keep less, or raise the smallest tau")

    def compress(self, template: str, tau: float) -> str:
        """Return the base's rewriting, which has at most `tau` of the template's tokens.

        If the text of a smaller tau has more tokens, it is taken instead, so that texts never grow as tau falls. Raises
        ModelError when the base writes too much, or next to nothing.
        """
        text = self._rewritten(template, tau)
        for smaller in reversed([other for other in self._taus if other < tau]):
            text = max(text, self._rewritten(template, smaller), key=self.tools.count_tokens)
        return text

    def close(self) -> None:
        """Free the base."""
        if self._model:
            self._model.close()
        self._model = None

    def _rewrite(self, template: str, tau: float) -> str:
        self._model = self._model or self.tools.load_model()
        whole = self.tools.count_tokens(template)
        budget = int(tau * whole)
        protected = protected_texts(template, self.config.protected)
        where = f"compressor {self.name} at tau {tau:.4g}"
        source, got = self._without_dropped(template), ""
        fewest: int | None = None
        for _ in range(TRIES):
            written = self._model.rewrite(request(source, budget, protected), whole).strip()
            lost = [text for text in protected if text not in written]
            text = "\n".join([written, *lost])
            tokens, own = self.tools.count_tokens(text), self.tools.count_tokens(written)
            if own < LEAST * budget:
                what = f"the base wrote only {own} tokens for a budget of {budget}"
                raise ModelError(where, what, got=written, fix=ADVICE)
            if tokens <= budget:
                return text
            if fewest is not None and tokens >= fewest:
                break
            got = f"{tokens} tokens" if tokens < whole else f"{whole} tokens or more"
            got += f" for a budget of {budget}"
            got += f", with {', '.join(map(repr, lost))}, which it had left out" if lost else ""
            source, fewest = written, tokens
        raise ModelError(where, f"the base wrote {got}", fix=ADVICE)

    def _without_dropped(self, template: str) -> str:
        """Return the template without the sentences, entries and code that contain a text of `drop_first`."""
        if not self.config.drop_first:
            return template
        outline = Outline(template)
        kept, dropped = outline.overlapping(self.config.protected), outline.overlapping(self.config.drop_first)
        units = [set(unit.words) for unit in outline.units]
        return outline.text({word for words in units if words & dropped and not words & kept for word in words})
