"""Rope scaling: the factors that a GGUF file stores, from Llama 3's four settings and back, and those of Phi.

Source: Llama 3.1's frequency-dependent scaling (`rope_type` "llama3"). Short waves stay, waves longer than the original
context are stretched by `factor`, the ones between in between.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pilocal.base.architecture import LONGROPE
from pilocal.run_folder.tensors import Float32

LONGROPES = (LONGROPE, "su")
"""Names of the scaling with factors for long contexts; the second is the older one."""

LOW, HIGH = 1.0, 4.0
"""`low_freq_factor` and `high_freq_factor` of every model that was released with this scaling."""

CLOSE = 1e-5
"""How far factors may be apart, relatively: they were computed in float32, in one order or another."""


def plain_ropes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.json whose `rope_parameters`, which transformers 5 writes, stand under the names before them.

    >>> plain_ropes({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6}})["rope_scaling"]
    {'rope_type': 'linear', 'factor': 2.0}
    """
    made, rope = dict(config), config.get("rope_parameters")
    if isinstance(rope, dict) and isinstance(rope.get("full_attention"), dict):
        local = rope.get("sliding_attention")
        if isinstance(local, dict) and local.get("rope_type", "default") == "default" and "rope_theta" in local:
            made.setdefault("rope_local_base_freq", local["rope_theta"])
            rope = made.pop("rope_parameters")["full_attention"]
    if isinstance(rope, dict):
        made.setdefault("rope_theta", rope.get("rope_theta", 10000.0))
        if rope.get("rope_type", "default") != "default":
            scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
            made["rope_scaling"] = made.get("rope_scaling") or scaling
    return made


def is_longrope(config: Mapping[str, Any]) -> bool:
    """Tell whether the rope has other factors for long contexts than for short ones."""
    scaling = config.get("rope_scaling")
    return isinstance(scaling, dict) and scaling.get("rope_type", scaling.get("type")) in LONGROPES


def short_factors(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config.json of which every program takes the rope factors of short contexts, whatever the length.

    mlx-lm always takes those of long ones, transformers by a sequence's length, llama.cpp by the room of all.

    >>> scaling = {"type": "su", "short_factor": [1.0, 1.5], "long_factor": [1.0, 9.0]}
    >>> short_factors({"rope_scaling": scaling, "original_max_position_embeddings": 8})["rope_scaling"]["long_factor"]
    [1.0, 1.5]
    """
    if not is_longrope(config):
        return config
    scaling = dict(config["rope_scaling"])
    original = config.get("original_max_position_embeddings", scaling.get("original_max_position_embeddings"))
    scaling |= {"type": LONGROPE, "rope_type": LONGROPE, "long_factor": scaling.get("short_factor")}
    scaling["original_max_position_embeddings"] = original
    return config | {"rope_scaling": scaling, "original_max_position_embeddings": original}


def longrope_scale(config: Mapping[str, Any]) -> float:
    """Return what queries and keys are multiplied by, the same for short and long contexts (LongRoPE, 2402.13753)."""
    original = config["original_max_position_embeddings"]
    factor = config["max_position_embeddings"] / original
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


def llama3_factors(theta: float, head_dim: int, scaling: Mapping[str, Any]) -> Float32:
    """Return what each rotation frequency is divided by, (head_dim / 2,)."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    keep = np.clip((scaling["original_max_position_embeddings"] / _waves(theta, head_dim) - low) / (high - low), 0, 1)
    factors: Float32 = (1 / (keep + (1 - keep) / scaling["factor"])).astype(np.float32)
    return factors


def llama3_scaling(factors: Float32, theta: float, head_dim: int) -> dict[str, Any] | None:
    """Return the settings that `llama3_factors` makes some factors of, or None where there are none.

    >>> scaling = llama3_scaling(llama3_factors(5e5, 128, {"factor": 32.0, "low_freq_factor": 1.0,
    ...     "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}), 5e5, 128)
    >>> scaling["factor"], scaling["original_max_position_embeddings"]
    (32.0, 8192)
    """
    if factors.shape != (head_dim // 2,) or not np.isfinite(factors).all():
        return None
    for factor in dict.fromkeys((float(round(factors[-1], 3)), float(factors[-1]))):
        for original in _originals(factors, factor, _waves(theta, head_dim)):
            scaling = {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": LOW,
                "high_freq_factor": HIGH,
                "original_max_position_embeddings": original,
            }
            if np.allclose(llama3_factors(theta, head_dim, scaling), factors, rtol=CLOSE, atol=0):
                return scaling
    return None


def _originals(factors: Float32, factor: float, waves: NDArray[np.float64]) -> Iterator[int]:
    """Yield the original contexts that may have led to some factors: as a factor in between says, or powers of two."""
    between = (factors > 1 + CLOSE) & (factors < factor * (1 - CLOSE))
    if between.any() and factor > 1:
        keep = (1 / factors[between].astype(np.float64) - 1 / factor) / (1 - 1 / factor)
        yield round(float(np.median(waves[between] * (LOW + keep * (HIGH - LOW)))))
    yield from (8192, *(1 << power for power in range(4, 22)))


def _waves(theta: float, head_dim: int) -> NDArray[np.float64]:
    """Return the wave length of each rotation frequency, in tokens."""
    found: NDArray[np.float64] = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    return found
