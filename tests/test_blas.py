"""The BLAS that MLX computes with: each claim in a process of its own, since a library is loaded once."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pilocal.base.blas import OLD_CORES, OPENBLAS, newer_core, processor_flags

linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere MLX has a BLAS of its own")

HIDDEN = "import pilocal.base.blas as blas; blas.OPENBLAS = 'libthere-is-none.so'; "
"""As on a machine that has no OpenBLAS."""

FOUND = """
import ctypes, mlx.core
class Symbol(ctypes.Structure):
    _fields_ = [("file", ctypes.c_char_p), *((name, ctypes.c_void_p) for name in ("begin", "name", "at"))]
everything, symbol = ctypes.CDLL(None), Symbol()
product = ctypes.cast(everything.sgemm_, ctypes.c_void_p) if hasattr(everything, "sgemm_") else None
everything.dladdr(product, ctypes.byref(symbol))
print(symbol.file and symbol.file.decode())
"""
"""The library in which MLX finds its products, if it is visible to the whole process."""

CORE = """
import ctypes, os, pilocal.base.blas as blas
library = ctypes.CDLL(blas.load_fast_blas())
library.openblas_get_corename.restype = ctypes.c_char_p
print(library.openblas_get_corename().decode(), blas.CORE in os.environ)
"""

MEAN = """
import time, mlx.core as mx
a, b = mx.ones((8, 256)), mx.ones((256, 256))
count, began = 0, time.perf_counter()
while time.perf_counter() - began < 3:
    mx.eval(a @ b)
    count += 1
    time.sleep(0.001)  # as between the products of a step
print((time.perf_counter() - began) / count)
"""


def python(code: str, cores: set[int] | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run code as from a shell in which no variable for a BLAS is set."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "OPENBLAS_", "GOMP_"))}
    if cores:
        code = f"import os; os.sched_setaffinity(0, {cores})\n{code}"
    return subprocess.run([sys.executable, "-c", code], env=env | variables, capture_output=True, text=True, check=True)


@contextmanager
def busy(cores: set[int], per_core: int) -> Iterator[None]:
    """Keep some cores busy with other processes."""
    code = f"import os; os.sched_setaffinity(0, {cores})\nwhile True: pass"
    loops = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(per_core * len(cores))]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


@linux
def test_the_blas_inside_pytorch_serves_where_there_is_no_openblas() -> None:
    """MLX finds its products by name: what the process finds under the name is PyTorch's."""
    pytest.importorskip("torch")
    name, product = python(f"{HIDDEN}print(blas.load_fast_blas()); {FOUND}").stdout.split()
    assert name.endswith("libtorch_cpu.so")
    assert product == name
    assert python(FOUND).stdout.split() == ["None"]


@linux
def test_what_serves_is_measured_not_believed() -> None:
    done = python(
        "import mlx.core\nfrom pilocal.base import blas\nprint(blas.load_fast_blas())\nblas.warn_of_slow_blas()"
    )
    assert done.stdout == "None\n"  # too late
    assert "warning: MLX computes with the reference BLAS" in done.stderr


@linux
def test_without_a_fast_blas_there_is_one_warning_with_the_command_that_mends_it() -> None:
    code = f"{HIDDEN}blas.torch_library = lambda: None\n"
    code += (
        "from pathlib import Path\nfrom pilocal.base.base import find_base\nfrom pilocal.base.load import load_base\n"
    )
    code += "for _ in range(2): load_base(find_base('starter', Path()))"
    said = python(code).stderr.splitlines()
    assert len(said) == 1
    assert "apt install libopenblas0-pthread" in said[0]
    assert "pip install 'pilocal[torch]'" in said[0]


@linux
def test_other_work_on_every_core_does_not_stop_small_products() -> None:
    pytest.importorskip("torch")
    cores = set(sorted(os.sched_getaffinity(0))[:2])
    with busy(cores, per_core=2):
        mean = float(python(f"{HIDDEN}blas.load_fast_blas()\n{MEAN}", cores).stdout)
    assert mean < 0.030  # 50 to 110 ms where threads spin while they wait, 2 to 8 ms where they sleep


@linux
def test_a_user_s_own_wait_policy_stays() -> None:
    code = "import os, pilocal; print(os.environ['OMP_WAIT_POLICY'])"
    assert python(code).stdout == "PASSIVE\n"
    assert python(code, OMP_WAIT_POLICY="ACTIVE").stdout == "ACTIVE\n"


@linux
def test_a_processor_that_openblas_does_not_know_gets_the_kernels_that_it_can_run() -> None:
    if python("import pilocal.base.blas as b; print(b.load_fast_blas())").stdout.strip() != OPENBLAS:
        pytest.skip("needs OpenBLAS")
    core, left_set = python(CORE).stdout.split()
    flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    assert core not in OLD_CORES or not {"avx2", "fma"} <= flags
    assert left_set == "False"
    if {"avx2", "fma"} <= flags:
        assert python(CORE, OPENBLAS_CORETYPE="Haswell").stdout.split() == ["Haswell", "True"]


def fake_openblas(folder: Path, core: str) -> str:
    """Build a library that says that it computes for `core`."""
    source, library = folder / "fake.c", folder / "fake.so"
    source.write_text(f'char *openblas_get_corename(void) {{ return "{core}"; }}\n', encoding="utf-8")
    subprocess.run([shutil.which("cc") or "cc", "-shared", "-fPIC", "-o", library, source], check=True)
    return str(library)


@linux
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize(
    ("core", "flags", "chosen"),
    [
        ("Prescott", "fpu avx2 fma avx512f avx512bw avx512cd avx512dq avx512vl", "SkylakeX"),
        ("Prescott", "fpu avx2 fma avx512f", "Haswell"),
        ("Nehalem", "fpu avx", None),
        ("Zen", "fpu avx2 fma", None),
        ("SkylakeX", "fpu avx2 fma avx512f avx512bw avx512cd avx512dq avx512vl", None),
    ],
)
def test_only_old_kernels_are_replaced_and_only_by_what_runs(
    core: str, flags: str, chosen: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\n", encoding="utf-8")
    assert processor_flags(cpuinfo) >= set(flags.split())
    assert processor_flags(tmp_path / "none") == frozenset()
    library = fake_openblas(tmp_path, core)
    assert newer_core(library, cpuinfo) == chosen
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Nehalem")
    assert newer_core(library, cpuinfo) is None


CHOOSE = """
import ctypes, json, pilocal.base.blas as blas
assert blas.load_fast_blas() == blas.OPENBLAS
library = ctypes.CDLL(blas.OPENBLAS)
class Clock:  # each product takes its time, by the threads that compute it
    now = 0.0
    def perf_counter(self):
        self.now += 1.0 if library.openblas_get_num_threads() == 1 else TOGETHER
        return self.now
blas.time = Clock()
found = [blas.choose_threads(192), library.openblas_get_num_threads()]
blas.set_threads(None)
print(json.dumps([*found, library.openblas_get_num_threads()]))
"""


@linux
def test_a_busy_machine_computes_in_one_thread_unless_it_is_told_otherwise() -> None:
    cores = len(os.sched_getaffinity(0))
    if cores < 2 or python("import pilocal.base.blas as b; print(b.load_fast_blas())").stdout.strip() != OPENBLAS:
        pytest.skip("needs OpenBLAS and two cores")
    busy, quiet = f"TOGETHER = 17{CHOOSE}", f"TOGETHER = 0.6{CHOOSE}"
    assert json.loads(python(busy).stdout) == [1, 1, cores]
    assert json.loads(python(quiet).stdout) == [None, cores, cores]
    assert json.loads(python(busy, OPENBLAS_NUM_THREADS="2").stdout) == [None, 2, 2]


def test_no_module_imports_mlx_before_the_fast_blas_is_loaded() -> None:
    for path in [*Path("pilocal").rglob("*.py"), *Path("tests/bench").rglob("*.py")]:
        body = ast.parse(path.read_text(encoding="utf-8")).body
        loads = [node.lineno for node in body if isinstance(node, ast.Expr) and "load_fast_blas" in ast.unparse(node)]
        imports = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
        of_mlx = [node.lineno for node in imports if ast.unparse(node).startswith(("import mlx", "from mlx"))]
        early = [line for line in of_mlx if line < min(loads, default=0)]
        assert not early, f"{path}: {early}"


ATTENTION = """
import hashlib, torch
torch.manual_seed(0)
a, b = torch.randn(100, 3001), torch.randn(3001, 100)
q = torch.randn(2, 4, 700, 64, requires_grad=True)
torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True).square().sum().backward()
print(*(hashlib.sha256(each.numpy().tobytes()).hexdigest() for each in (a @ b, torch.mv(a, b[:, 0]), q.grad)))
"""


@linux
@pytest.mark.parametrize("tokenizer_first", [False, True])
def test_pytorch_computes_with_its_own_blas_whatever_was_loaded_before(tokenizer_first: bool) -> None:
    pytest.importorskip("torch")
    before = "import pilocal.base.blas as blas; blas.load_fast_blas(); import mlx.core\n"
    if tokenizer_first:  # transformers imports PyTorch, too
        before += "from pilocal.base.tokenizer import load_tokenizer; from pathlib import Path\n"
        before += "load_tokenizer(Path('pilocal/starter/model'))\n"
    before += "import pilocal.training.torch_backend\n"
    assert python(before + ATTENTION).stdout == python(ATTENTION).stdout
