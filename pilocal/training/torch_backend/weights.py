"""The base's weights in PyTorch: MLX's packed groups become the floats that they stand for.

MLX's affine quantization keeps for each group of `group_size` weights a scale and a bias, w = scale * q + bias, with q
of `bits` bits, packed without gaps into uint32 words, the first in the lowest bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from safetensors import safe_open

from pilocal.base.base import Base
from pilocal.errors import ModelError

WORD = 32
"""Bits of a packed word."""

AT_ONCE = 1 << 24
"""Weights unpacked at a time: a vocabulary of 128,256 rows would take gigabytes."""


def read_weights(
    base: Base, *, dtype: torch.dtype, device: torch.device, unpack: bool = True
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every weight of a base with its name in transformers, unpacked, in `dtype` on `device`.

    Those of a module come one after the other. Without `unpack` what MLX packed comes as it is stored, in three parts,
    the words as int32. Raises ModelError where weights are packed in another way than MLX's affine one, or a module's
    parts do not fit together. A layer's experts, and what scores them, are unpacked in any case.
    """
    if base.gguf:
        numbers = base.gguf_weights
        for name in sorted(numbers.shapes, key=_by_module):
            yield name, torch.from_numpy(numbers.read(name)).to(device, dtype)
        return
    with ExitStack() as files:
        stored: dict[str, Any] = {}
        for path in base.weight_files:
            file = files.enter_context(safe_open(path, framework="pt"))
            stored |= dict.fromkeys(_used(base, file.keys()), file)
        for name in sorted(stored, key=_by_module):
            module, _, part = name.rpartition(".")
            packed = f"{module}.scales" in stored
            if packed and part == "weight":
                names = (name, f"{module}.scales", f"{module}.biases")
                parts = [stored[of].get_tensor(of).to(device) for of in names]
                bits = _checked_bits(base, module, parts)
                if unpack or base.architecture.is_sparse(name):
                    yield name, dequantize(*parts, bits=bits, dtype=dtype)
                else:
                    yield from zip(names, [parts[0].view(torch.int32), *parts[1:]], strict=True)
            elif not packed or part not in ("scales", "biases"):
                yield name, stored[name].get_tensor(name).to(device, dtype)


def _used(base: Base, names: Iterable[str]) -> list[str]:
    """Return the names of weights but for those that no program uses."""
    unused = base.architecture.unused(base.config)
    return [name for name in names if name.rpartition(".")[0] not in unused]


def _by_module(name: str) -> tuple[str, str]:
    module, _, part = name.rpartition(".")
    return module, part


def _checked_bits(base: Base, module: str, parts: Sequence[torch.Tensor]) -> int:
    """Return the bits of a packed module; raises ModelError when its parts do not fit together."""
    bits, size = grouping(base, module)
    packed, scales, biases = parts
    if scales.shape != biases.shape or scales.shape[-1] * size * bits != packed.shape[-1] * WORD:
        what, fix = (
            f"{module} does not hold groups of {size} weights of {bits} bits",
            "copy or download the model again",
        )
        raise ModelError(base.folder, what, got=list(packed.shape), fix=fix)
    return bits


def dequantize(
    packed: torch.Tensor, scales: torch.Tensor, biases: torch.Tensor, *, bits: int, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Return the weights (..., out, in) of packed words (..., out, in * bits / 32); scales, biases (..., out, groups).

    They are computed in float32, exactly as MLX does, and rounded to `dtype` at the end.

    >>> words = torch.tensor([[0x76543210] * 4], dtype=torch.int32).view(torch.uint32)
    >>> dequantize(words, torch.tensor([[0.5]]), torch.tensor([[-1.0]]), bits=4)[0, :5]
    tensor([-1.0000, -0.5000,  0.0000,  0.5000,  1.0000])
    """
    if packed.ndim > 2:
        parts = (part.flatten(0, -2) for part in (packed, scales, biases))
        return dequantize(*parts, bits=bits, dtype=dtype).view(*packed.shape[:-1], -1)
    rows, inputs = packed.shape[0], packed.shape[1] * WORD // bits
    weights = torch.empty((rows, inputs), dtype=dtype, device=packed.device)
    some = max(1, AT_ONCE // inputs)
    for i in range(0, rows, some):
        codes = _unpack(packed[i : i + some], bits).float()
        scale, bias = (part[i : i + some].float().unsqueeze(-1) for part in (scales, biases))
        grouped = codes.view(len(codes), scales.shape[1], -1) * scale + bias
        weights[i : i + some] = grouped.view(codes.shape).to(dtype)
    return weights


def _unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the codes (out, in) of words (out, in * bits / 32): WORD codes in every `bits` words."""
    words = packed.view(torch.int32)
    if WORD % bits == 0:  # no code lies in two words; the sign that is shifted in is masked away
        starts = torch.arange(0, WORD, bits, dtype=torch.int32, device=packed.device)
        return (words.unsqueeze(-1) >> starts & (1 << bits) - 1).flatten(1)
    # Signed 64 bits hold a word without a sign, and PyTorch shifts them everywhere.
    words = (words.long() & 0xFFFFFFFF).view(len(packed), -1, bits)
    starts = torch.arange(WORD, device=packed.device) * bits
    first, shift = starts // WORD, starts % WORD
    joined = words[..., first] | words[..., (first + 1).clamp(max=bits - 1)] << WORD
    return (joined >> shift & (1 << bits) - 1).flatten(1)


def grouping(base: Base, module: str) -> tuple[int, int]:
    """Return bits and group size of a packed module; exceptions stand under its name."""
    settings = base.config.get("quantization") or {}
    own = settings.get(module)
    chosen = {**settings, **own} if isinstance(own, dict) else settings
    mode = chosen.get("mode", "affine")
    if mode != "affine":
        fix = 'take a base that mlx_lm.convert made with --q-mode "affine", or one in floats'
        raise ModelError(base.folder, "the PyTorch backend reads MLX's affine quantization alone", got=mode, fix=fix)
    if "bits" not in chosen or "group_size" not in chosen:
        fix = "copy or download the model again"
        raise ModelError(base.folder, f"{module} is packed, and config.json does not say how", fix=fix)
    return int(chosen["bits"]), int(chosen["group_size"])
