"""What a GGUF file's numbers take in memory, and why more than on disk."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pilocal.base.gguf_weights import FLOAT_BYTES, GROUP, GgufWeights

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Held:
    """How a model's weights are held."""

    bytes: int
    """Of all of them."""
    matrices: int
    """How many there are."""
    floats: int
    """How many are floats here, and packed in the file."""
    float_bytes: int
    """What these take."""
    file_bytes: int
    """What these take in the file."""
    types: tuple[str, ...]
    """Of these, by llama.cpp's names."""

    def __str__(self) -> str:
        """Return it as a line for the user."""
        if not self.floats:
            return f"the base takes {self.bytes / GIB:.2f} GiB: every weight in the bits of its file"
        kinds = ", ".join(self.types)
        return (
            f"the base takes {self.bytes / GIB:.2f} GiB: {self.floats} of {self.matrices} matrices ({kinds}) are held "
            f"as floats, {self.float_bytes / GIB:.2f} GiB instead of {self.file_bytes / GIB:.2f}"
        )


def held_packed(weights: GgufWeights) -> Held:
    """Return how MLX holds the weights where it keeps them packed: what it has no way to pack is float32."""
    return _held(weights, {name: _packed_bytes(weights, name) for name in weights.shapes}, keep_packed=True)


def held_as_floats(weights: GgufWeights, size: int = 4) -> Held:
    """Return how the weights are held where all are floats of `size` bytes."""
    return _held(weights, {name: size * math.prod(shape) for name, shape in weights.shapes.items()}, keep_packed=False)


def _held(weights: GgufWeights, sizes: dict[str, int], *, keep_packed: bool) -> Held:
    matrices = [name for name, shape in weights.shapes.items() if len(shape) > 1]
    unpacked = [
        name
        for name in matrices
        if weights.type(name) not in FLOAT_BYTES and not (keep_packed and weights.packed_bits(name))
    ]
    return Held(
        bytes=sum(sizes.values()),
        matrices=len(matrices),
        floats=len(unpacked),
        float_bytes=sum(sizes[name] for name in unpacked),
        file_bytes=sum(map(weights.nbytes, unpacked)),
        types=tuple(sorted({weights.type(name) for name in unpacked})),
    )


def _packed_bytes(weights: GgufWeights, name: str) -> int:
    """Return the bytes of a tensor that is packed if it can be; each group has a float32 for its scale and its bias."""
    count = math.prod(weights.shapes[name])
    if bits := weights.packed_bits(name):
        return count * bits // 8 + count // GROUP * 8
    return count * FLOAT_BYTES.get(weights.type(name), 4)
