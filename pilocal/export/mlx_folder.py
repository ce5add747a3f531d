"""A base with its adapter fused in, as a model folder for mlx-lm and LM Studio."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pilocal.base.base import Base
from pilocal.errors import ExportError, did_you_mean
from pilocal.export.card import Facts, Kind, card
from pilocal.export.fuse import FusedWeights
from pilocal.export.tensors import Entry, write_tensors
from pilocal.run_folder.files import disk_error, replacing, write_json
from pilocal.run_folder.tensors import Float32
from pilocal.task.text import MARK

SHARD_BYTES = 5 * 10**9
"""No file grows beyond this, unless one tensor does."""
GROUP_SIZE = 64
"""Weights of a row that share a scale and a bias, in 8 bits."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
)


@dataclass(frozen=True, slots=True)
class Form:
    """How fused weights are stored."""

    dtype: str
    """The float type, by MLX's name; what mlx-lm computes in."""
    bits: int | None = None
    """Of a matrix's weights, in MLX's affine quantization; None: floats throughout."""


FORMS = {"float16": Form("float16"), "bfloat16": Form("bfloat16"), "8bit": Form("float16", 8)}
DEFAULT_FORM = "float16"
"""It loses a hundredth of what the two others lose, which lose about the same; 8bit takes half the space."""


def write_mlx_folder(
    base: Base, adapter: Path | None, folder: Path, facts: Facts, *, form: str = DEFAULT_FORM
) -> list[Path]:
    """Write the weights in a form of FORMS, config.json, the tokenizer's files and README.md; return all of them.

    The adapter is added in float32, one tensor at a time. There is no form of 4 bits: it would round most of the
    adapter away. Raises ExportError when the adapter does not fit the base, or a weight the form; RunError when the
    disk is full.
    """
    if form not in FORMS:
        raise ExportError("form", "no such form of weights", got=form, fix=did_you_mean(form, FORMS))
    weights, stored = FusedWeights(base, adapter), FORMS[form]
    paths = _write_weights(folder, weights, stored)
    paths += _write_tokenizer(base, folder)
    paths += [path for path in write_chat_template(base, folder) if path not in paths]
    paths += [folder / "config.json", folder / "README.md"]
    write_json(paths[-2], _config(base, stored))
    with replacing(paths[-1]) as file:
        file.write(card(facts, _kind(form, facts)))
    return paths


def write_chat_template(base: Base, folder: Path) -> list[Path]:
    """Write the chat template as training used it, if that is not the base's own; return the file."""
    if base.layout.template == base.layout.source and not base.chat.facts:
        return []
    path = folder / "chat_template.jinja"
    with replacing(path) as file:  # what it leaves open is settled, as in training
        file.write(base.layout.template)
    return [path]


def _write_tokenizer(base: Base, folder: Path) -> list[Path]:
    """Copy the tokenizer's files, or make them of a GGUF file's; return them."""
    if base.gguf:
        try:
            return [Path(path) for path in base.tokenizer.save_pretrained(folder) if Path(path).is_file()]
        except OSError as error:
            raise disk_error(folder, error) from error
    paths = [folder / name for name in TOKENIZER_FILES if (base.folder / name).is_file()]
    for path in paths:
        with replacing(path, "wb") as file:
            file.write((base.folder / path.name).read_bytes().removeprefix(MARK.encode()))
    return paths


def _parts(name: str, shape: tuple[int, ...], form: Form) -> dict[str, Entry]:
    """Return the tensors that one becomes."""
    plain = {"float16": "F16", "bfloat16": "BF16"}[form.dtype]
    if form.bits is None or len(shape) == 1 or shape[-1] % GROUP_SIZE:
        return {name: Entry(plain, shape)}
    module, (*rows, columns) = name.removesuffix(".weight"), shape
    groups = Entry(plain, (*rows, columns // GROUP_SIZE))
    return {
        name: Entry("U32", (*rows, columns * form.bits // 32)),
        f"{module}.scales": groups,
        f"{module}.biases": groups,
    }


def _pack(tensor: Float32, bits: int | None, dtype: str, where: str) -> list[NDArray[Any]]:
    """Return the numbers of a tensor's parts; bfloat16 as the uint16 of its bits."""
    import mlx.core as mx

    whole = mx.array(tensor)
    # From float32: rounding the weights first would add to the error of the 8 bits.
    parts = list(mx.quantize(whole, group_size=GROUP_SIZE, bits=bits)) if bits else [whole]
    parts = [part if part.dtype == mx.uint32 else part.astype(getattr(mx, dtype)) for part in parts]
    if not all(mx.isfinite(part).all() for part in parts):
        fix = "look for a training that went astray"
        raise ExportError(where, f"does not fit {dtype}", got=float(np.abs(tensor).max()), fix=fix)
    return [np.array(part.view(mx.uint16) if part.dtype == mx.bfloat16 else part) for part in parts]


def _shards(plan: Mapping[str, Mapping[str, Entry]]) -> list[list[str]]:
    """Return which tensors go into which file."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, parts in plan.items():
        own = sum(part.nbytes for part in parts.values())
        if shards[-1] and size + own > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += own
    return shards


def _write_weights(folder: Path, weights: FusedWeights, form: Form) -> list[Path]:
    """Write every shard, and an index where there are several; an older export's files give way."""
    plan = {name: _parts(name, shape, form) for name, shape in weights.shapes.items()}
    shards = _shards(plan)

    def tensors(names: Sequence[str]) -> Iterator[NDArray[Any]]:
        for name in names:
            bits = form.bits if len(plan[name]) > 1 else None
            yield from _pack(weights.read(name), bits, form.dtype, name)

    files: dict[Path, dict[str, Entry]] = {}
    for number, names in enumerate(shards, 1):
        count = f"-{number:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        path = folder / f"model{count}.safetensors"
        files[path] = {part: stored for name in names for part, stored in plan[name].items()}
        write_tensors(path, files[path], tensors(names), {"format": "mlx"})
    index = folder / "model.safetensors.index.json"
    # mlx-lm reads every model*.safetensors that it finds.
    for path in (*folder.glob("model*.safetensors"), index):
        if path not in files:
            path.unlink(missing_ok=True)
    if len(files) == 1:
        return [*files]
    size = sum(stored.nbytes for parts in files.values() for stored in parts.values())
    where = {name: path.name for path, parts in files.items() for name in parts}
    write_json(index, {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))})
    return [*files, index]


def _config(base: Base, form: Form) -> dict[str, Any]:
    """Return the base's config.json, with rope settings where mlx-lm looks for them and the weights' new form."""
    config = dict(base.config)
    for former in ("quantization", "quantization_config", "dtype"):
        config.pop(former, None)
    if form.bits:
        settings = {"group_size": GROUP_SIZE, "bits": form.bits, "mode": "affine"}
        config |= {"quantization": settings, "quantization_config": settings}
    # What mlx-lm takes for granted and transformers does not.
    tied = config.get("tie_word_embeddings", True)
    return config | {"torch_dtype": form.dtype, "tie_word_embeddings": tied}


def _kind(name: str, facts: Facts) -> Kind:
    residue = facts.residue.template
    system = f" --system-prompt {shlex.quote(residue)}" if residue else ""
    prompt = shlex.quote(facts.residue.user_turn) if facts.residue.slots else '"the query"'
    how = f"""```sh
mlx_lm.generate --model this/folder{system} --prompt {prompt} --temp 0
```

```python
from mlx_lm import generate, load

model, tokenizer = load("this/folder")
chat = {facts.chat}
print(generate(model, tokenizer, prompt=tokenizer.apply_chat_template(chat, add_generation_prompt=True)))
```

LM Studio takes the folder as it is, below its folder of models as `owner/name`."""
    return Kind(library="mlx", tags=["mlx", "text-generation"], what=f"An MLX model ({name} weights)", how=how)
