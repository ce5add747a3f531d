"""Bases of several bits: every number reaches the lossless file, in the smallest type that can hold it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from pilocal.base.base import Base
from pilocal.base.packed import Packed
from pilocal.export.blocks import exact_blocks
from pilocal.export.gate import candidates
from pilocal.export.lossless import cached_base, export_lossless
from pilocal.export.ship import ship
from pilocal.export.weights import BaseWeights
from tests.test_export_lossless import expected, reference_and_served, tensors
from tests.tiny import make_adapter, make_base

Arrays = dict[str, Any]

BITS, GROUPS = (2, 3, 4, 5, 6, 8), (32, 64, 128)
MIDDLE = {8: -128, 6: -32, 5: -16}
"""Biases, in scales, of weights that count from the middle."""

PARTS = [f"self_attn.{part}_proj" for part in "qkvo"] + [f"mlp.{part}_proj" for part in ("gate", "up", "down")]
LAYERS = 3
MODULES = [
    "model.embed_tokens",
    "lm_head",
    *(f"model.layers.{layer}.{part}" for layer in range(LAYERS) for part in PARTS),
]


def packings(*bits: int) -> dict[str, dict[str, int]]:
    """Every module's bits and group size: all pairs, one after the other, from the embedding's 8 bits on."""
    pairs = cycle(product(bits, GROUPS))
    return {module: {"bits": own, "group_size": size} for module, (own, size) in zip(MODULES, pairs, strict=False)}


def rewritten(base: Base, change: Callable[[Arrays], None]) -> Base:
    import mlx.core as mx

    path = base.folder / "model.safetensors"
    loaded: Any = mx.load(str(path))
    stored: Arrays = dict(loaded)
    change(stored)
    mx.save_safetensors(str(path), stored, {"format": "mlx"})
    return Base.at(base.folder)


def from_the_middle(how: dict[str, dict[str, int]]) -> Callable[[Arrays], None]:
    """Make every bias a whole multiple of its scale, some groups zeros and some scales 0."""

    def change(stored: Arrays) -> None:
        import mlx.core as mx

        for module, packing in how.items():
            scales = mx.array(stored[f"{module}.scales"])
            scales[5, 1] = 0
            biases = scales * MIDDLE.get(packing["bits"], 0)
            scales[6, 1] = 2.0**-24 * 1.5
            biases[6, 1] = 0
            words = mx.array(stored[f"{module}.weight"])
            words[6] = 0
            stored |= {f"{module}.scales": scales, f"{module}.biases": biases, f"{module}.weight": words}

    return change


def dequantized_by_mlx(base: Base) -> dict[str, np.ndarray]:
    """Every packed tensor as MLX computes it in float32."""
    import mlx.core as mx

    loaded: Any = mx.load(str(base.folder / "model.safetensors"))
    stored: Arrays = dict(loaded)
    found = {}
    for module in (name.removesuffix(".scales") for name in stored if name.endswith(".scales")):
        own = base.config["quantization"].get(module) or base.config["quantization"]
        how = {"group_size": own["group_size"], "bits": own["bits"]}
        scales, biases = (stored[f"{module}.{part}"].astype(mx.float32) for part in ("scales", "biases"))
        found[f"{module}.weight"] = np.array(mx.dequantize(stored[f"{module}.weight"], scales, biases, **how))
    return found


def mixed_base(folder: Path, starter: Base, *bits: int, dtype: str = "float16", **changes: Any) -> Base:
    return make_base(
        folder, starter.folder, dtype=dtype, exceptions=packings(*bits), num_hidden_layers=LAYERS, **changes
    )


@pytest.fixture(scope="module")
def quantized_by_mlx(tmp_path_factory: pytest.TempPathFactory, starter: Base) -> Base:
    return mixed_base(tmp_path_factory.mktemp("bases") / "mlx", starter, *BITS[::-1])


@pytest.fixture(scope="module")
def from_other_files(tmp_path_factory: pytest.TempPathFactory, starter: Base) -> Base:
    """As converted from Q8_0 and Q5_0, with the embedding as output matrix."""
    folder = tmp_path_factory.mktemp("bases") / "converted"
    base = mixed_base(folder, starter, *MIDDLE, dtype="bfloat16", tie_word_embeddings=True)
    how = {module: packing for module, packing in packings(*MIDDLE).items() if module != "lm_head"}
    return rewritten(base, from_the_middle(how))


@pytest.mark.parametrize("which", ["quantized_by_mlx", "from_other_files"])
def test_every_number_is_mlx_s_own(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    base: Base = request.getfixturevalue(which)
    made = export_lossless(base, tmp_path)
    by_mlx, weights = dequantized_by_mlx(base), BaseWeights(base)
    assert len(by_mlx) == len(MODULES) - (which == "from_other_files")
    assert all(np.array_equal(weights.read(name), numbers) for name, numbers in by_mlx.items())
    found, wanted = tensors(made.path), expected(base)
    kinds = {}
    for name, tensor in wanted.items():
        kinds[name], got = found[name]
        assert np.array_equal(got, tensor), name
    by_bits: dict[int, set[str]] = {bits: set() for bits in BITS}
    for module, packing in packings(*(BITS[::-1] if which == "quantized_by_mlx" else MIDDLE)).items():
        if f"{module}.weight" in by_mlx:
            by_bits[packing["bits"]].add(kinds[base.architecture.tensor(f"{module}.weight")])
    if which == "quantized_by_mlx":
        assert by_bits == {2: {"Q4_1"}, 3: {"Q4_1"}, 4: {"Q4_1"}, 5: {"Q5_1"}, 6: {"F32"}, 8: {"F32"}}
        assert {kind["type"] for kind in made.floats.values()} == {"F32"}
        assert set(made.floats) == {f"{m}.weight" for m, how in packings(*BITS[::-1]).items() if how["bits"] > 5}
    else:
        assert by_bits == {2: set(), 3: set(), 4: set(), 5: {"Q5_0"}, 6: {"Q8_0"}, 8: {"Q8_0"}}
        assert made.floats == {}
        assert made.path.name == "base-q8_0.gguf"


@pytest.mark.parametrize("which", ["quantized_by_mlx", "from_other_files"])
def test_llama_cpp_computes_what_mlx_computes(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    base: Base = request.getfixturevalue(which)
    adapter = make_adapter(tmp_path / "adapter", base)
    files = ship(base, adapter, tmp_path / "out", "lossless", name="tiny")
    assert files.floats == export_lossless(base, tmp_path / "again").floats == cached_base(base).floats
    reference_and_served(base, adapter, files)


def test_the_bytes_of_the_file_decide_when_auto_tries_it(quantized_by_mlx: Base, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", quantized_by_mlx)
    order = candidates(quantized_by_mlx, adapter)
    sizes = [ship(quantized_by_mlx, adapter, tmp_path / q, q, name="tiny").size for q in order]
    assert order.index("lossless") > order.index("q8_0")
    assert sizes == sorted(sizes)


@pytest.mark.parametrize(("dtype", "kind"), [("bfloat16", "BF16"), ("float32", "F32")])
def test_floats_beyond_float16_stay_as_they_are(dtype: str, kind: str, starter: Base, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.down_proj.weight"

    def change(stored: Arrays) -> None:
        stored[name][0, 0] = 1e5

    base = rewritten(make_base(tmp_path / "base", starter.folder, quantized=False, dtype=dtype), change)
    made = export_lossless(base, tmp_path / "out")
    found = tensors(made.path)
    assert found[base.architecture.tensor(name)][0] == kind
    assert all(np.array_equal(found[each][1], numbers) for each, numbers in expected(base).items())
    assert made.floats == {}


@pytest.mark.parametrize("group_size", GROUPS)
@pytest.mark.parametrize(
    ("bits", "bias", "kinds"),
    [
        (2, 0.37, ["Q4_1"]),
        (3, 0.37, ["Q4_1"]),
        (4, 0.37, ["Q4_1"]),
        (5, 0.37, ["Q5_1"]),
        (5, -16, ["Q5_0", "Q5_1"]),
        (6, -32, ["Q8_0"]),
        (6, 0, ["Q8_0"]),
        (6, 64, ["Q8_0"]),
        (6, 65, []),
        (6, 0.37, []),
        (8, -128, ["Q8_0"]),
        (8, -127, []),
        (8, -127.5, []),
    ],
)
def test_a_type_holds_rows_exactly_or_refuses_them(bits: int, bias: float, kinds: list[str], group_size: int) -> None:
    import mlx.core as mx

    rng = np.random.default_rng(bits)
    rows, width = 70, 512
    words = rng.integers(0, 2**32, (rows, width * bits // 32), dtype=np.uint32)
    scales = rng.normal(size=(rows, width // group_size)).astype(np.float16).astype(np.float32)
    # A bias beside the scales' own grid is a number of float16 all the same.
    biases = (scales * bias).astype(np.float16).astype(np.float32) if bias % 1 else scales * np.float32(bias)
    packed = Packed(words, scales, biases, group_size, bits)
    parts = [mx.array(part) for part in (words, scales, biases)]
    exact = np.array(mx.dequantize(parts[0], parts[1], parts[2], group_size=group_size, bits=bits))
    held = []
    for kind in ("Q4_1", "Q5_0", "Q5_1", "Q8_0"):
        if (blocks := exact_blocks(GGMLQuantizationType[kind], packed)) is not None:
            held.append(kind)
            assert np.array_equal(dequantize(blocks, GGMLQuantizationType[kind]), exact)
    # Numbers of fewer bits fit wider types, too.
    assert [kind for kind in held if kind in kinds] == kinds
    assert bool(held) == bool(kinds)
