"""The compressor `llmlingua2`: drops the words that an LLMLingua-2 checkpoint (arXiv 2403.12968) marks as dispensable.

The llmlingua package splits the template, runs the checkpoint over it and reports which words it keeps, at each of the
hundred rates that it distinguishes. A word's score is the number of rates that keep it, so one order serves every tau.
The words are removed from the template itself, because the package's own output loses line ends, code and spaces.
Words for which the checkpoint has no token go last.
"""

from __future__ import annotations

import functools
import gc
import os
import random
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from pilocal.compress.compressor import Tools
from pilocal.compress.outline import Outline
from pilocal.compress.protect import Place
from pilocal.compress.removal import WordRemoval
from pilocal.errors import ModelError
from pilocal.packages import keep_torch_apart, require_packages
from pilocal.run_folder.files import MISSHAPEN, read_json
from pilocal.run_folder.hashes import fingerprint, sha256_file
from pilocal.task import Compression
from pilocal.task.hub import is_hub_id

FAMILIES = {"bert": "bert-base-multilingual-cased", "xlm-roberta": "xlm-roberta-large"}
"""The `model_type`s whose tokens llmlingua can join to words, and the name by which it knows each."""

RATES = tuple(percent / 100 for percent in range(99, 0, -1))
"""The package rounds rates to whole percents."""

REACH = 200
"""A word of the package is searched for within this many characters; the package omits what it cannot read."""

ADVICE = "set [compression] checkpoint to an LLMLingua-2 checkpoint: its Hub id or a local directory"


class LLMLingua2(WordRemoval):
    """Drops whole words, starting with those that the checkpoint marks as most dispensable."""

    name: ClassVar[str] = "llmlingua2"

    def __init__(self, config: Compression, tools: Tools) -> None:
        super().__init__(config, tools)
        require_packages('[compression] method = "llmlingua2"', "llmlingua", "torch")
        self._package: Any = None
        self._judged = functools.cache(self.judge)

    def inputs(self, taus: Sequence[float]) -> Any:
        """Return the Hub id, or the hash of every file of a local checkpoint."""
        folder = self.tools.folder / self.config.checkpoint
        if not folder.is_dir():
            return self.config.checkpoint
        files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
        return fingerprint([(path.name, sha256_file(path)) for path in files])

    def scores(self, outline: Outline) -> Sequence[float]:
        """Return how many of RATES keep each word; raises ModelError."""
        return word_levels(outline, self._judged(outline.template))

    def part_scores(self, template: str, places: Sequence[Place]) -> Sequence[float]:
        """Return how many of RATES keep each place; raises ModelError."""
        return place_levels(template, places, self._judged(template))

    def judge(self, template: str) -> list[tuple[str, int]]:
        """Return the words that the package finds in a text, in order, each with the number of RATES that keep it."""
        words: list[str] = []
        levels: dict[int, int] = {}
        with _undisturbed():
            self._package = self._package or _load(self._find(), pick_device(self.config.device), self._count_tokens)
            try:
                for rate in RATES:
                    said = self._package.compress_prompt_llmlingua2(
                        [template], rate=rate, return_word_label=True, word_sep="\n", label_sep=" "
                    )
                    pairs = [pair.rsplit(" ", 1) for pair in said["fn_labeled_original_prompt"].split("\n")]
                    words = [word for word, _ in pairs]
                    for number, (_, label) in enumerate(pairs):
                        levels[number] = levels.get(number, 0) + int(label)
            except (IndexError, ValueError) as error:  # a part of 510 tokens without a single known token
                raise ModelError(self.config.checkpoint, f"cannot read this template: {error}", fix=ADVICE) from None
        return [(word, levels[number]) for number, word in enumerate(words)]

    def close(self) -> None:
        """Delete the checkpoint and empty its device's caches."""
        if self._package is None:
            return
        import torch

        self._package = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if torch.backends.mps.is_available():
            torch.mps.empty_cache()

    def _find(self) -> Path:
        """Return the folder of the checkpoint, checked to be of the right kind."""
        checkpoint = self.config.checkpoint
        folder = self.tools.folder / checkpoint
        if not folder.is_dir():
            if not is_hub_id(checkpoint):
                raise ModelError(checkpoint, "no such checkpoint", fix=ADVICE)
            folder = self.tools.download(checkpoint)
        checked_checkpoint(folder)
        return folder


def checked_checkpoint(folder: Path) -> str:
    """Return the `model_type` of a checkpoint; raises ModelError for one that is damaged or of the wrong kind."""
    path = folder / "config.json"
    try:
        config = read_json(path)
        kinds = config.get("architectures") or ["no architecture"]
        labels = len(config.get("id2label") or ()) or config.get("num_labels", 2)
        kind = config.get("model_type")
        classifies = any("ForTokenClassification" in each for each in kinds)
    except FileNotFoundError:
        raise ModelError(folder, "no config.json: not a checkpoint", fix=ADVICE) from None
    except MISSHAPEN as error:
        what = " ".join(str(error).split())
        raise ModelError(path, f"damaged: {what}", fix="copy or download it again") from None
    if not classifies:
        what = "the wrong kind of model: it does not classify tokens"
        raise ModelError(folder, what, got=", ".join(map(str, kinds)), fix=ADVICE)
    if labels != 2:
        what = "the wrong kind of model: it needs two labels, drop and keep"
        raise ModelError(folder, what, got=labels, fix=ADVICE)
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ModelError(folder, f"llmlingua reads only {' and '.join(FAMILIES)} models", got=kind, fix=ADVICE)
    return kind


def word_levels(outline: Outline, judged: Sequence[tuple[str, int]]) -> list[float]:
    """Return the level of each word of a template: the highest level of the package's words in it, except punctuation.

    The package's words come in the same order, without those for which the checkpoint has no token. A word about which
    nothing is known gets the highest level.
    """
    starts = [start for start, _ in outline.spans]
    levels: list[float] = [-1.0] * len(starts)
    for (found, _), word, level in _located(outline.template, judged):
        number = max(0, bisect_right(starts, found) - 1)
        if _is_word(word) or not _is_word(outline.words[number]):
            levels[number] = max(levels[number], level)
    return [level if level >= 0 else float(len(RATES)) for level in levels]


def place_levels(template: str, places: Sequence[Place], judged: Sequence[tuple[str, int]]) -> list[float]:
    """Return the level of each place: the highest level of the package's words that overlap it, as for `word_levels`.

    >>> place_levels("one, two", [(0, 4), (4, 8)], [("one", 3), (",", 9), ("two", 5)])
    [3.0, 5.0]
    """
    words = _located(template, judged)
    levels = []
    for start, end in places:
        is_word = _is_word(template[start:end])
        inside = [level for (a, b), word, level in words if a < end and start < b and _is_word(word) >= is_word]
        levels.append(max(inside, default=float(len(RATES))))
    return levels


def _located(template: str, judged: Sequence[tuple[str, int]]) -> list[tuple[Place, str, float]]:
    """Return where each of the package's words stands, with its level, without those that are not found."""
    text = "".join(char.lower() if len(char.lower()) == 1 else char for char in template)
    position = 0
    places: list[tuple[Place, str, float]] = []
    for word, level in judged:
        found = text.find(word.lower(), position, position + len(word) + REACH)
        if found >= 0 and word:  # XLM-RoBERTa has a token for the space alone
            position = found + len(word)
            places.append(((found, position), word, float(level)))
    return places


def _is_word(text: str) -> bool:
    return any(char.isalnum() for char in text)


def pick_device(device: str) -> str:
    """Return a torch device: the given one, or the first available; raises ModelError if it is not available."""
    keep_torch_apart()
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(name for name, holds in there.items() if holds)
    if not there[device]:
        known = ", ".join(name for name, holds in there.items() if holds)
        raise ModelError("[compression] device", "torch has no such device here", got=device, fix=f"available: {known}")
    return device


def _load(folder: Path, device: str, count_tokens: Callable[[str], int]) -> Any:
    """Return llmlingua's PromptCompressor with a local checkpoint; its forward pass runs once per input."""
    from llmlingua import PromptCompressor
    from transformers.utils import logging

    class Tokens:
        """Counts tokens as the base does, so that rates are shares of the tokens that are served."""

        def encode(self, text: str) -> range:
            return range(count_tokens(text))

    family = FAMILIES[checked_checkpoint(folder)]
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # Its own __init__ would download a tokenizer for its price estimates; the rest of it is here.
    package = PromptCompressor.__new__(PromptCompressor)
    package.model_name, package.use_llmlingua2, package.oai_tokenizer = family, True, Tokens()
    try:
        package.load_model(str(folder), device, {"trust_remote_code": False, "local_files_only": True})
        package.init_llmlingua2()
    except Exception as error:  # whatever a damaged folder makes the libraries raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(folder, f"cannot be loaded: {reason}", fix="copy or download it again") from None
    package.max_seq_len = min(package.max_seq_len, package.max_position_embeddings)
    package.model = _Remembering(package.model.eval())
    return package


class _Remembering:
    """A model that remembers its outputs, because the package runs it again for every rate."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._known: dict[bytes, Any] = {}

    def __call__(self, *, input_ids: Any, attention_mask: Any) -> Any:
        key = input_ids.cpu().numpy().tobytes() + attention_mask.cpu().numpy().tobytes()
        if key not in self._known:
            self._known[key] = self._model(input_ids=input_ids, attention_mask=attention_mask)
        return self._known[key]


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Restore what the package changes for the whole process: random states and cuDNN's settings."""
    import numpy as np
    import torch

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    hash_seed = os.environ.get("PYTHONHASHSEED")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the package uses deprecated names of transformers
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
        if hash_seed is None:
            os.environ.pop("PYTHONHASHSEED", None)
        else:
            os.environ["PYTHONHASHSEED"] = hash_seed
