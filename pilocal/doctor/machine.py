"""What the machine is: found without loading any library."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pilocal
from pilocal.base.places import ollama_models
from pilocal.run_folder.files import cache_folder

PATIENCE = 300
"""Seconds that a probe may take: it may have to read gigabytes of libraries from a slow disk."""

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables that keep a BLAS to some cores."""


def system_facts() -> dict[str, Any]:
    """Return the system, the processor, its cores and what keeps a program from using them."""
    return {
        "system": platform.platform(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": cores(),
        "python": platform.python_version(),
        "variables": {name: os.environ[name] for name in THREADS if name in os.environ},
        "nvidia": _nvidia(),
    }


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_flags() -> frozenset[str]:
    """Return what the processor can do, as Linux names it; empty elsewhere."""
    return frozenset(_cpuinfo("flags").split())


def _processor() -> str:
    if name := _cpuinfo("model name"):
        return name
    return _said("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), "")


def _nvidia() -> str | None:
    """Return the names of the NVIDIA GPUs that the driver sees, or None."""
    return _said("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or None


def _said(*command: str) -> str:
    """Return what a program prints, in one line; nothing where it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    return ", ".join(done.stdout.split("\n")).strip(", ")


def memory_facts() -> dict[str, int | None]:
    """Return the bytes of memory: all, what is free for programs, and the limit of this process's group."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"total": total, "available": _available(), "limit": _limit()}


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _limit() -> int | None:
    """Return the memory limit of the control group, as containers have one; None for none."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            said = Path("/sys/fs/cgroup", name).read_text(encoding="utf-8").strip()
        except OSError:
            continue
        if said.isdecimal() and int(said) < 1 << 60:
            return int(said)
    return None


def disk_facts() -> dict[str, dict[str, Any]]:
    """Return, for each place that is written to, its folder, the bytes that are free there, and whether it can be."""
    places = {"here": Path.cwd(), "cache": cache_folder(), "hub": hub_folder()}
    return {name: _disk(folder) for name, folder in places.items()}


def _disk(folder: Path) -> dict[str, Any]:
    there = next(each for each in (folder, *folder.parents) if each.exists())
    writable = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    return {"folder": str(folder), "free": shutil.disk_usage(there).free, "writable": writable}


def hub_folder() -> Path:
    """Return where huggingface_hub keeps what it has downloaded."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def model_facts() -> dict[str, list[str]]:
    """Return the models that lie on this machine: in the Hub's cache, in Ollama, and those of packages."""
    hub = sorted(folder.name.removeprefix("models--").replace("--", "/") for folder in hub_folder().glob("models--*"))
    return {"hub": hub, "ollama": list(ollama_models())}


def probe(name: str) -> dict[str, Any]:
    """Return what a probe found, run as a program of its own; `error` says why it found nothing."""
    root = str(Path(pilocal.__file__).parent.parent)
    path = os.pathsep.join([root, *filter(None, sys.path)])
    command = [sys.executable, "-P", "-m", "pilocal.doctor.probe", name]
    env = {**os.environ, "PYTHONPATH": path}
    try:
        done = subprocess.run(
            command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=PATIENCE, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"error": f"no answer in {PATIENCE} seconds"}
    if done.returncode < 0:
        return {"error": f"the program ended by {signal.Signals(-done.returncode).name}"}
    return _answer(done.stdout) or {"error": (done.stderr.strip().splitlines() or ["no answer"])[-1][:400]}


def _answer(printed: str) -> dict[str, Any] | None:
    """Return the JSON object in the last line of what a probe printed; None where there is none."""
    try:
        found = json.loads(printed.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return None
    return found if isinstance(found, dict) else None
