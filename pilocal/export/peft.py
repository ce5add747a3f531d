"""An adapter as a folder for PEFT (transformers, vLLM and others): the same numbers under PEFT's names."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from pilocal.base.base import Base
from pilocal.export.adapter import Updates
from pilocal.export.card import HUB_ID, Facts, Kind, card
from pilocal.export.fuse import FusedWeights
from pilocal.export.mlx_folder import write_chat_template
from pilocal.export.tensors import Entry, write_tensors
from pilocal.run_folder.adapter import PEFT_FILES
from pilocal.run_folder.files import replacing, write_json
from pilocal.run_folder.tensors import Float32

OUTSIDE = -1
"""The layer of a module that is in none."""

PACKED = """transformers does not read weights that MLX packed into 4 bits: where the base is such a folder, name the
float model that it was made from. The adapter was trained on the rounded weights, so answers may differ a little."""
UNPACKED = "transformers unpacks the file's weights to floats, with the package gguf."
"""What transformers makes of the base."""

MOVED = """

The base is named by its path on the machine that exported this. Elsewhere, write its path there into
`base_model_name_or_path` in adapter_config.json."""
"""What the card says where the base is no Hub id."""

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as --max-lora-rank (`MaxLoRARanks` in its vllm/config/lora.py)."""

NAME = re.compile(r"[\w.-]+")
"""A task's name that vLLM takes as NAME=PATH; any other is written as JSON."""

SETTLED = (
    "from pathlib import Path\n\n",
    'template = Path("this/folder/chat_template.jinja").read_text(encoding="utf-8")\n',
    "chat_template=template, ",
)
"""What the call needs where training used another chat template than the base's own."""


def write_peft(base: Base, adapter: Path, folder: Path, facts: Facts) -> list[Path]:
    """Write PEFT's two files, README.md and the chat template if training changed it; return the files.

    Raises ExportError when the adapter does not fit the base, RunError when the disk is full.
    """
    weights = FusedWeights(base, adapter)
    trained = weights.adapter
    assert trained is not None
    tensors: dict[str, Float32] = {}
    for module, update in trained.by_module.items():
        name = f"base_model.model.{module}"
        tensors |= {f"{name}.lora_A.weight": update.lora_a.T, f"{name}.lora_B.weight": update.lora_b.T}
        if update.magnitude is not None:
            tensors[f"{name}.lora_magnitude_vector"] = update.magnitude
    known = [name.removesuffix(".weight") for name, shape in weights.shapes.items() if len(shape) > 1]
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": facts.base,
        **({"revision": facts.base_revision} if facts.base_revision else {}),
        "r": trained.rank,
        "lora_alpha": trained.scale * trained.rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_dora": trained.dora,
        "fan_in_fan_out": False,
        "inference_mode": True,
    } | targets(trained.by_module, known)
    paths = [folder / name for name in (*PEFT_FILES, "README.md")]
    layout = {name: Entry("F32", tensor.shape) for name, tensor in tensors.items()}
    write_tensors(paths[0], layout, tensors.values(), {"format": "pt"})
    write_json(paths[1], config)
    settled = write_chat_template(base, folder)
    with replacing(paths[2]) as file:
        kind = _kind(facts, trained.dora, settled=bool(settled), gguf=base.gguf)
        file.write(card(facts, replace(kind, how=f"{kind.how}\n\n{_vllm(facts, trained, settled=bool(settled))}")))
    return paths + settled


def targets(modules: Collection[str], known: Collection[str]) -> dict[str, Any]:
    r"""Return the settings by which PEFT finds exactly these modules among all that the base has.

    The short names that every tool reads, with the numbers of the layers where some are left out; a regular expression
    where these would find others, too.

    >>> known = [f"model.layers.{layer}.mlp.{part}_proj" for layer in (0, 1) for part in ("up", "down")]
    >>> targets(known, known)
    {'target_modules': ['down_proj', 'up_proj']}
    >>> targets(known[2:], known)
    {'target_modules': ['down_proj', 'up_proj'], 'layers_to_transform': [1]}
    >>> targets(known[1:3], known)
    {'target_modules': 'model\\.layers\\.0\\.mlp\\.down_proj|model\\.layers\\.1\\.mlp\\.up_proj'}
    """
    short = sorted({_last(module) for module in modules})
    layers = sorted({_layer(module) for module in modules})
    found = {module for module in known if _last(module) in short and _layer(module) in layers}
    if found != set(modules) or OUTSIDE in layers:
        return {"target_modules": "|".join(re.escape(module) for module in sorted(modules))}
    every = sorted({_layer(module) for module in known} - {OUTSIDE})
    return {"target_modules": short} | ({} if layers == every else {"layers_to_transform": layers})


def _last(module: str) -> str:
    return module.rpartition(".")[2]


def _layer(module: str) -> int:
    found = re.match(r"model\.layers\.(\d+)\.", module)
    return int(found[1]) if found else OUTSIDE


def _kind(facts: Facts, dora: bool, *, settled: bool, gguf: Path | None) -> Kind:
    path, read, given = SETTLED if settled else ("", "", "")
    where = f"{str(gguf.parent)!r}, gguf_file={gguf.name!r}" if gguf else repr(facts.base)
    how = f"""```python
{path}from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained({where})
model = PeftModel.from_pretrained(base, "this/folder")
tokenizer = AutoTokenizer.from_pretrained({where})
chat = {facts.chat}
{read}prompt = tokenizer.apply_chat_template(
    chat, {given}add_generation_prompt=True, return_tensors="pt", return_dict=True
)
answer = model.generate(**prompt, max_new_tokens=100, do_sample=False)
```

{UNPACKED if gguf else PACKED}"""
    how += "" if HUB_ID.fullmatch(facts.base) else MOVED
    tags = ["dora" if dora else "lora"]
    return Kind(library="peft", tags=tags, what=f"A PEFT adapter ({tags[0].replace('ra', 'RA', 1)})", how=how)


def _vllm(facts: Facts, trained: Updates, *, settled: bool) -> str:
    """Return how vLLM serves the adapter, or why it does not, by its documentation and its `PEFTHelper`."""
    if trained.dora:
        return "vLLM does not load DoRA."
    if trained.rank > VLLM_RANKS[-1]:
        return f"vLLM does not load a rank above {VLLM_RANKS[-1]}."
    rank = next(most for most in VLLM_RANKS if most >= trained.rank)
    named = {"name": facts.task, "path": "this/folder"}
    module = "{name}={path}".format(**named) if NAME.fullmatch(facts.task) else json.dumps(named, ensure_ascii=False)
    lines = [
        f"vllm serve {shlex.quote(facts.base)} --enable-lora --max-lora-rank {rank}",
        f"--lora-modules {shlex.quote(module)}",
        *(["--chat-template this/folder/chat_template.jinja"] if settled else []),
    ]
    command = " \\\n  ".join(lines)
    return f"""By its documentation, vLLM has it as the model `{facts.task}`; the base is to be in floats there, too:

```sh
{command}
```"""
