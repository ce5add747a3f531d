"""What `pilocal --version` prints; quick, since nothing is loaded but a BLAS."""

from __future__ import annotations

from platform import platform, python_version

from pilocal.base.blas import named_blas
from pilocal.packages import versions

PACKAGES = ("mlx", "mlx-lm", "llama-cpp-python", "torch", "transformers", "numpy")
"""What decides the numbers of a run; llama.cpp comes with llama-cpp-python."""


def version_lines() -> list[str]:
    """Return the version of pilocal, those of the packages that are installed, and BLAS, Python and system."""
    found = versions(*PACKAGES)
    own = f"pilocal, version {found.pop('pilocal')}"
    packages = [", ".join(f"{name} {version}" for name, version in found.items())] if found else []
    return [own, *packages, f"BLAS {named_blas()}, Python {python_version()}, {platform()}"]
