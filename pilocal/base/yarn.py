"""YaRN's rope scaling (Peng et al., arXiv 2309.00071) and queries scaled by position: settings that all read alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pilocal.base.architecture import YARN, head_dim
from pilocal.base.architectures import ARCHITECTURES, architecture_of

BETA = "llama_4_scaling_beta"
ORIGINAL = "original_max_position_embeddings"

USUAL: Mapping[str, Any] = {"beta_fast": 32.0, "beta_slow": 1.0, "mscale_all_dim": 0.0}
"""What every program takes where a setting is left out."""

MOST = 2**32
"""A whole number of a GGUF file, and any setting here, is below it."""

NEAR = 1e-3
"""How far a bound in float32 may be from the same in float64; it is rounded to a whole number."""


def gathered(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config.json with its rope settings in every place where a program reads them.

    mlx-lm reads `rope_parameters` alone where queries are scaled by position, and so do others before anything else.

    >>> ropes = {"rope_theta": 1e6, "type": "yarn", "factor": 16.0}
    >>> found = gathered({"model_type": "ministral3", "rope_theta": 1e4, "rope_parameters": ropes})
    >>> found["rope_theta"], found["rope_scaling"]
    (1000000.0, {'type': 'yarn', 'factor': 16.0, 'rope_type': 'yarn'})
    """
    known = ARCHITECTURES.get(str(config.get("model_type")))
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    if known is None or not known.scales_queries or not isinstance(rope, dict):
        return config
    thetas = (rope.get("rope_theta"), config.get("rope_theta"), known.rope_theta)
    theta = next(each for each in thetas if each is not None)
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    scaling["rope_type"] = rope.get("rope_type", rope.get("type", "default"))
    return config | {"rope_theta": theta, "rope_scaling": scaling, "rope_parameters": {**scaling, "rope_theta": theta}}


def misread(config: Mapping[str, Any]) -> str | None:
    """Return a rope setting of which MLX, PyTorch and llama.cpp make different things; None for none.

    >>> scaling = {"rope_type": "yarn", "factor": 16.0, ORIGINAL: 16384, BETA: 0.1}
    >>> config = {"model_type": "ministral3", "head_dim": 128, "rope_theta": 1e6}
    >>> [misread({**config, "rope_scaling": {**scaling, **said}}) for said in (
    ...     {}, {"mscale": 1.0, "mscale_all_dim": 1.0}, {"mscale": 2.0}, {"attention_factor": 1.2}, {ORIGINAL: 0.5})]
    [None, None, 'mscale', 'attention_factor', 'original_max_position_embeddings']
    """
    scaling, architecture = config.get("rope_scaling"), architecture_of(config)
    said: Mapping[str, Any] = {**USUAL, **scaling} if isinstance(scaling, dict) else USUAL
    kinds = [said[key] for key in ("type", "rope_type") if said.get(key)]
    wrong = [BETA] * (architecture.scales_queries and not _is_number(said.get(BETA), 0))
    if YARN in architecture.scalings and kinds and all(kind == YARN for kind in kinds):
        wrong += _wrong_original(said, config) or _wrong_of_yarn(said, config)
    elif architecture.scales_queries:
        wrong += _wrong_original(said, config)
    return wrong[0] if wrong else None


def _wrong_original(said: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """Return the original context where it is none, or not the one outside of the scaling, which transformers takes."""
    original = said.get(ORIGINAL)
    whole = isinstance(original, int) and _is_number(original, 1)
    return [ORIGINAL] * (not whole or config.get(ORIGINAL, original) != original)


def _wrong_of_yarn(said: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """Return the settings that are not read alike; no frequency is computed of one that is no number."""
    architecture = architecture_of(config)
    least = {"factor": 1, "beta_fast": NEAR, "beta_slow": NEAR, "mscale_all_dim": 0}
    wrong = [key for key, number in least.items() if not _is_number(said.get(key), number)]
    wrong += ["attention_factor"] * (said.get("attention_factor") is not None)
    wrong += ["truncate"] * (said.get("truncate", True) is not True)
    if not architecture.reads_yarn:
        wrong += [key for key, usual in USUAL.items() if said[key] != usual]
    # transformers looks at neither where one is missing, mlx-lm takes 1, and llama.cpp knows no other.
    wrong += ["mscale"] * (said.get("mscale", 0 if said["mscale_all_dim"] else 1) != 1)
    theta = float(config.get("rope_theta") or architecture.rope_theta)
    wrong += ["rope_theta"] * (not 1 < theta < MOST)
    return wrong or ["beta_fast"] * (stretched(said, theta, head_dim(config)) is None)


def stretched(said: Mapping[str, Any], theta: float, size: int) -> tuple[int, int] | None:
    """Return the last frequency that stays and the first that is stretched whole, of a head with `size` dimensions.

    None where rounding decides between two, or no frequency is in between: programs then differ.

    >>> stretched({ORIGINAL: 16384, "beta_fast": 32.0, "beta_slow": 1.0}, 1e6, 128)
    (20, 37)
    """
    fast, slow = (
        size * math.log(said[ORIGINAL] / (turns * 2 * math.pi)) / (2 * math.log(theta))
        for turns in (said["beta_fast"], said["beta_slow"])
    )
    found = {(max(math.floor(fast + error), 0), min(math.ceil(slow + error), size - 1)) for error in (-NEAR, 0.0, NEAR)}
    bounds = found.pop()
    return None if found or bounds[0] > bounds[1] else bounds


def _is_number(value: Any, least: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value < MOST
