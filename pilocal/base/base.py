"""The base model: one value that is found once and tells all that its folder tells."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pilocal.base.architecture import Architecture
from pilocal.base.architectures import ARCHITECTURES, architecture_of
from pilocal.base.chat import OWN, ChatSettings
from pilocal.base.gguf_file import GgufFile, open_gguf
from pilocal.base.hub import download
from pilocal.base.layers import check_layers, settled
from pilocal.base.places import OLLAMA, SMOLLM2, ollama_blob, packaged_smollm2
from pilocal.base.rope import is_longrope, plain_ropes, short_factors
from pilocal.base.tokenizer import load_tokenizer
from pilocal.base.unsupported import check_answers, refusal
from pilocal.base.yarn import gathered
from pilocal.errors import InputError, ModelError, nearest
from pilocal.prompt.default_system import QUERY
from pilocal.prompt.tokens import Layout, layout_of, prompt_tokens
from pilocal.run_folder.hashes import fingerprint, remembered_sha256
from pilocal.task import STARTER
from pilocal.task.hub import is_hub_id, split_hub_id
from pilocal.task.text import absent, from_home, meant

if TYPE_CHECKING:
    from pilocal.base.gguf_weights import GgufWeights

AGAIN = "copy or download the model again"

MOST_JSON = 64 * 2**20
"""Bytes of a config.json, or of the list of a model's parts."""

POINTER = b"version https://git-lfs"

MOST_NAME = 255
"""Bytes of a file's name, in every file system."""

MOST = 2**53
"""No number of a model is beyond it."""

MOSTS = {"num_hidden_layers": 512, "hidden_size": 2**20, "head_dim": 2**20, "partial_rotary_factor": 1}
"""Bounds of single numbers: llama.cpp's LLAMA_MAX_LAYERS, widths far beyond any model's."""

WHOLE = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size")
"""The numbers that every config.json has."""

OPTIONAL = (
    *("head_dim", "max_position_embeddings", "num_key_value_heads", "original_max_position_embeddings"),
    *("sliding_window", "num_global_key_value_heads"),
)
ROPES = ("rope_theta", "rope_local_base_freq")
PARTIAL = "partial_rotary_factor"
"""The numbers that it may have."""


@dataclass(frozen=True)
class Base:
    """A base model; make it with `find_base`, or with `Base.at` where the folder is known.

    What it tells is read when it is first asked for and kept, so the folder must not change while it is in use.
    """

    folder: Path
    model: str
    """What the task calls it: "starter", a directory, or a Hub id, pinned or not."""
    local: bool
    """Whether it lies where the user said; False for a copy of a Hub id's files."""
    chat: ChatSettings = OWN
    """What the task changes about how it writes chats."""
    gguf: Path | None = None
    """The GGUF file that it is, or its first part; `folder` then only holds it."""
    weights: bool = True
    """Whether its weights are looked at; without, they need not be there, and only a plan can be made."""

    @classmethod
    def at(cls, folder: Path) -> Base:
        """Return the base in a folder, unchecked; `check` tells whether it is whole."""
        return cls(folder, str(folder), local=True)

    @classmethod
    def of_gguf(cls, path: Path, model: str | None = None) -> Base:
        """Return the base that a GGUF file is, unchecked."""
        return cls(path.parent, model or str(path), local=True, gguf=path)

    @property
    def path(self) -> Path:
        """What messages name: the GGUF file, or the folder."""
        return self.gguf or self.folder

    @property
    def config_path(self) -> Path:
        """What messages about a setting name: the GGUF file, or config.json."""
        return self.gguf or self.folder / "config.json"

    @property
    def address(self) -> str:
        """Where another program finds it: the path, or the Hub id without its revision."""
        return str(self.path.resolve()) if self.local else split_hub_id(self.model)[0]

    @property
    def revision(self) -> str | None:
        """The commit of the Hub that its files are of; None for one that lies where the user said."""
        return None if self.local else self.folder.name

    @cached_property
    def gguf_file(self) -> GgufFile:
        """What the file of a base in GGUF says of itself; raises ModelError for one that cannot be used."""
        assert self.gguf is not None
        return open_gguf(self.gguf)

    @cached_property
    def gguf_weights(self) -> GgufWeights:
        """The numbers of a base in GGUF; raises ModelError for tensors that do not fit together."""
        from pilocal.base.gguf_weights import GgufWeights

        return GgufWeights(self.gguf_file, self.config)

    @cached_property
    def file(self) -> Mapping[str, Any]:
        """config.json as it is, or what a GGUF file says instead; raises ModelError when it is missing or damaged."""
        if self.gguf:
            from pilocal.base.gguf_config import config_of

            return config_of(self.gguf_file)
        path = self.folder / "config.json"
        if not path.is_file():
            files = sorted(self.folder.glob("*.gguf"))
            fix = f"name the file: {files[0]}" if files else "point model at a Hugging Face folder or a GGUF file"
            raise ModelError(self.folder, "no config.json: not a model folder", fix=fix)
        return _read_object(path)

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """config.json with rope settings under the names that mlx-lm reads; raises ModelError as `file` does.

        transformers 5 writes `rope_parameters`; mlx-lm's Llama reads `rope_theta` and `rope_scaling` and would silently
        fall back to its defaults.
        """
        config = dict(self.file)
        if "num_local_experts" in config:  # as transformers 5 writes it
            config.setdefault("num_experts", config["num_local_experts"])
        if ARCHITECTURES.get(str(config.get("model_type")), ARCHITECTURES["llama"]).unlike_layers:
            return settled(config)
        return short_factors(gathered(plain_ropes(config)))

    @property
    def architecture(self) -> Architecture:
        """What its kind of model is like; raises ModelError for one that is not supported."""
        kind = self.config.get("model_type")
        if not isinstance(kind, str) or kind not in ARCHITECTURES:
            raise refusal(self.config_path, self.file)
        return architecture_of(self.config)

    @property
    def stock_reads_rope(self) -> bool:
        """Whether mlx-lm by itself finds in config.json the rope settings that `config` has."""
        if self.architecture.reads_rope_parameters:
            return True
        names = {"rope_theta": 10000.0, "rope_local_base_freq": 10000.0, "rope_scaling": None}
        return all(self.file.get(name, default) == self.config.get(name, default) for name, default in names.items())

    @property
    def context(self) -> int:
        """The longest sequence that the model was made for, in tokens.

        With rope factors for short and for long contexts, it is the longest that has the short ones. Where a layer sees
        only a window of the last tokens, as in Mistral 7B v0.1, that is the window: llama.cpp computes none for these
        architectures, and up to there nothing differs.
        """
        longest = int(self.config.get("max_position_embeddings") or 2048)
        windowed = self.architecture.has_window(self.config)
        if is_longrope(self.config):
            longest = min(longest, int(self.config["original_max_position_embeddings"] or longest))
        return min(longest, int(self.config["sliding_window"])) if windowed else longest

    @property
    def quantized(self) -> bool:
        """Whether its weights are packed, as mlx-lm packs them."""
        return bool(self.config.get("quantization"))

    @cached_property
    def weight_files(self) -> tuple[Path, ...]:
        """The files of weights, sorted by name; all parts of a base in GGUF. None where weights are not looked at."""
        if not self.weights:
            return ()
        return self.gguf_file.parts if self.gguf else tuple(sorted(self.folder.glob("model*.safetensors")))

    @cached_property
    def sha256(self) -> str:
        """One SHA-256 over everything that decides what the model says; that of a large file is remembered.

        For a base in a single GGUF file, with its own way to write chats, it is that file's own.
        """
        changes = [self.chat.facts] if self.chat.facts else []
        if self.gguf:
            parts = list(self.file_hashes.values())
            return parts[0] if len(parts) == 1 and not changes else fingerprint(parts, *changes)
        names = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json")
        files = [self.folder / name for name in names if (self.folder / name).is_file()]
        hashes = [(path.name, remembered_sha256(path)) for path in (*files, *self.weight_files)]
        return fingerprint(hashes, *changes)

    @cached_property
    def file_hashes(self) -> Mapping[str, str]:
        """The SHA-256 of each file of weights, by name; that of a large file is remembered."""
        return {path.name: remembered_sha256(path) for path in self.weight_files}

    @cached_property
    def tokenizer(self) -> Any:
        """The transformers tokenizer, with the task's chat template if it has one.

        Raises ModelError when it is damaged, GGUF's name of it is not known, or its chat template is not one that the
        task's settings can change.
        """
        if self.gguf:
            from pilocal.base.gguf_tokenizer import load_gguf_tokenizer

            tokenizer = load_gguf_tokenizer(self.gguf_file.metadata, self.gguf)
        else:
            tokenizer = load_tokenizer(self.folder)
        try:
            self.chat.apply(tokenizer)
        except InputError as error:
            raise self._chat_error(error) from None
        return tokenizer

    @property
    def layout(self) -> Layout:
        """How it writes chats; raises ModelError for a chat template that is missing, broken, or changes a prompt."""
        try:
            return layout_of(self.tokenizer)
        except InputError as error:
            raise self._chat_error(error) from None

    @property
    def default_system_tokens(self) -> int:
        """How many tokens of a bare query are a default system message's, left out or not; 0 where there is none."""
        counts = []
        for kept in (True, False):
            base = replace(self, chat=replace(self.chat, default_system=kept))
            try:
                counts.append(len(prompt_tokens([QUERY], base.tokenizer)))
            except (InputError, ModelError):  # it cannot be left out
                return 0
        return counts[0] - counts[1]

    def _chat_error(self, error: InputError) -> ModelError:
        """Return what is wrong with the chat template as an error of the base's, or of the task's file."""
        if self.chat.file is None:
            return ModelError(self.path, error.problem, got=error.got, fix=error.fix)
        return ModelError(self.chat.file, error.problem, got=error.got, fix=error.fix)

    def check(self) -> None:
        """Raise ModelError unless it is a whole model of a known kind with a tokenizer; weights as `weights` says."""
        if self.gguf:
            _check_numbers(self.config_path, self.config, self.architecture)
            _ = self.gguf_weights
            return
        folder = self.folder
        check_answers(folder, self.config, self.architecture.causal)
        _check_numbers(self.config_path, self.config, self.architecture)
        if self.weights and not self.weight_files:
            raise ModelError(folder, "no model*.safetensors", fix=_instead(folder))
        for path in (*self.weight_files, folder / "tokenizer.json"):
            _check_fetched(path)
        for path in self.weight_files:
            _check_safetensors(path)
        index = folder / "model.safetensors.index.json"
        if self.weights and index.is_file():
            parts = _read_object(index).get("weight_map")
            shards = set(map(str, parts.values())) if isinstance(parts, dict) else set[str]()
            if missing := sorted(shards.difference(path.name for path in self.weight_files)):
                raise ModelError(folder, f"missing weights: {', '.join(missing)}", fix=AGAIN)
        if not (folder / "tokenizer.json").is_file():
            raise ModelError(folder, "no tokenizer.json", fix=AGAIN)


def find_base(model: str, relative_to: Path, chat: ChatSettings = OWN, *, weights: bool = True) -> Base:
    """Return the checked base that a task names.

    It is the starter, "smollm2", a directory, a GGUF file (the first, if it has parts), "ollama:NAME", or a Hub id,
    which is downloaded once; with owner/name@REVISION that commit, tag or branch is. A `~` at the start of a path is
    the home folder; `chat` is what the task changes; without `weights` these are neither downloaded nor looked at.
    Raises ModelError when the base cannot be had or is not whole, InputError where a package is missing.
    """
    if "\0" in model or any(len(part.encode("utf-8", "replace")) > MOST_NAME for part in Path(model).parts):
        raise ModelError(model[:MOST_NAME], "no such model: a name is too long or no path", fix="correct it")
    found = _named(model) or _at(model, relative_to / from_home(model), weights=weights)
    base = replace(found, chat=chat, weights=weights)
    base.check()
    return base


def _named(model: str) -> Base | None:
    """Return the base of a name that is no path, if it is one."""
    if model == STARTER:
        return Base(Path(__file__).parent.parent / "starter" / "model", model, local=True)
    if model == SMOLLM2:
        return Base.of_gguf(packaged_smollm2(), model)
    return Base.of_gguf(ollama_blob(model), model) if model.startswith(OLLAMA) else None


def _at(model: str, path: Path, *, weights: bool) -> Base:
    """Return the base at a path, or the one that the Hub has under that name."""
    if path.is_dir():
        return Base(path, model, local=True)
    if path.is_file():
        return Base.of_gguf(path, model)
    missing = absent(path, "no such model")
    if not is_hub_id(model) or missing != "no such model":
        fix = f'give a directory, a GGUF file, "{OLLAMA}NAME", a Hub id such as owner/name, or "{STARTER}"'
        near = meant(path) or nearest(model, (STARTER, SMOLLM2))
        raise ModelError(model, missing, fix=f"did you mean {near}?" if near else fix)
    return Base(download(model, weights=weights), model, local=False)


def _read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; raises ModelError when it is damaged or holds something else."""
    try:
        if path.stat().st_size > MOST_JSON:
            raise ModelError(path, f"more than {MOST_JSON >> 20} MiB", got=path.stat().st_size, fix=AGAIN)
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ModelError(path, f"cannot read it: {error.strerror}", fix=AGAIN) from None
    except (ValueError, RecursionError) as error:
        raise ModelError(path, f"damaged: {error}", fix=AGAIN) from None
    if not isinstance(found, dict):
        raise ModelError(path, "must be a JSON object", got=type(found).__name__, fix=AGAIN)
    return found


def _check_numbers(path: Path, config: Mapping[str, Any], architecture: Architecture) -> None:
    """Raise ModelError for a config.json that lacks a number, or has something else in its place."""
    whole = (*WHOLE, *architecture.required, *architecture.counts, *(key for key in OPTIONAL if config.get(key)))
    numbers = (
        "rms_norm_eps",
        *architecture.multipliers,
        *(key for key in (*ROPES, PARTIAL) if config.get(key) is not None),
    )
    for key in (*whole, *numbers):
        value: Any = config.get(key)
        kind = "whole number" if key in whole else "number"
        known = isinstance(value, int if key in whole else int | float) and not isinstance(value, bool)
        most = MOSTS.get(key, MOST)
        if not known or not 0 < value <= most:
            raise ModelError(
                path, f"{key} must be a {kind} above 0" + f", {most} at most" * (most < MOST), got=value, fix=AGAIN
            )
    if architecture.unlike_layers:
        check_layers(path, config)


def _instead(folder: Path) -> str:
    """Return what to do about a folder without weights, by what it has instead."""
    if (folder / "adapter_config.json").is_file():
        return "this is an adapter: name the model that it was made for"
    if list(folder.glob("*.bin")) or list(folder.glob("*.pth")):
        return "its weights are pickles, which can run code as they are read: take the model as safetensors or GGUF"
    return AGAIN


def _check_fetched(path: Path) -> None:
    """Raise ModelError for what Git leaves in a file's place where Git LFS is not installed."""
    try:
        with path.open("rb") as file:
            pointer = file.read(len(POINTER)) == POINTER
    except OSError:
        return  # what reads it says why
    if pointer:
        raise ModelError(path, "a pointer of Git LFS, not the file", fix=f"run `git lfs pull` in {path.parent}")


def _check_safetensors(path: Path) -> None:
    """Compare the header's promise with the file, which finds a download that was cut short, and a file that lies."""
    from pilocal.run_folder.tensors import stored_in

    try:
        stored_in(path)
    except OSError as error:
        raise ModelError(path, f"cannot read it: {error.strerror}", fix=AGAIN) from None
    except ValueError as error:
        problem, _, got = str(error).partition("; got ")
        raise ModelError(path, f"damaged: {problem}", got=got or None, fix=AGAIN) from None
