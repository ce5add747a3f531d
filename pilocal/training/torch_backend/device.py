"""What this backend needs and cannot do, told before any work."""

from __future__ import annotations

import os

from pilocal.errors import InputError, PilocalError
from pilocal.packages import require_packages
from pilocal.task import Lora, Training

DEVICES = ("cpu", "cuda", "mps")

PACKAGES = ("torch", "transformers", "peft")


def check_installed() -> None:
    """Raise InputError when a package that the backend needs is missing; imports nothing heavy."""
    require_packages("--backend torch", *PACKAGES)


def check_bitsandbytes() -> None:
    """Raise InputError when bitsandbytes is missing; imports nothing."""
    require_packages("--weights nf4", "bitsandbytes")


def find_device(asked: str | None) -> str:
    """Return the kind of device to compute on: the one that is asked for, else CUDA, MPS or the CPU.

    Raises InputError when it is not there, or PyTorch cannot be imported.
    """
    check_installed()
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if asked is None:
        return next(device for device, found in there.items() if found)
    if not there[asked]:
        name = {"cuda": "CUDA", "mps": "Metal (MPS)"}[asked]
        fix = "leave --device out, or install a PyTorch that was built for this GPU and its driver"
        raise InputError(f"--device {asked}", f"PyTorch {torch.__version__} finds no {name} here", fix=fix)
    return asked


def free_memory(device: str) -> int:
    """Return how many bytes a process may use: what a GPU has free, or its share of all that the machine has."""
    import torch

    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def refusals(lora: Lora, training: Training) -> list[PilocalError]:
    """Return what a task asks for and this backend does not do."""
    fix = "or take --backend mlx"
    faults: list[PilocalError] = []
    if lora.kind != "lora":
        what = "the PyTorch backend does not train magnitudes (DoRA)"
        faults.append(InputError("[lora] kind", what, got=lora.kind, fix=f'set it to "lora", {fix}'))
    if training.compile:
        what = "the PyTorch backend does not compile"
        faults.append(InputError("[training] compile", what, fix=f"leave it out, {fix}"))
    return faults
