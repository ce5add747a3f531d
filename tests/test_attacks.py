"""What an answer may try against the machine: each attack runs in the sandbox, and gets nowhere."""

from __future__ import annotations

import json
import os
import platform
import socket
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest

from pilocal.errors import SandboxError
from pilocal.evaluate.scoring.metrics import make_metric
from pilocal.sandbox.run import Limits, Outcome, run_apart
from pilocal.sandbox.syscalls import REFUSED, REFUSED_EVERYWHERE
from pilocal.task import Scoring

linux = pytest.mark.skipif(sys.platform != "linux", reason="what the kernel refuses on Linux")

ATTEMPTS = """
import ctypes, json, os, signal, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
said = {}
def attempt(name):
    def run(way):
        try: said[name] = repr(way())
        except BaseException as error: said[name] = f"{type(error).__name__} {getattr(error, 'errno', '')}"
    return run
def call(number, *given):
    found = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(each) for each in given])
    return found if found >= 0 else -ctypes.get_errno()
"""


def tried(code: str, **limits: float) -> dict[str, str]:
    """Return what a program said of each of its attempts."""
    outcome = run(f"{ATTEMPTS}\n{code}\nprint(json.dumps(said))", **limits)
    found: dict[str, str] = json.loads(outcome.stdout or "{}")
    assert found, outcome
    return found


def run(code: str, **limits: float) -> Outcome:
    given = Limits(**{"seconds": 30, **limits})  # type: ignore[arg-type]
    try:
        return run_apart([sys.executable, "-I", "-S", "main.py"], {"main.py": code}, given)
    except SandboxError as error:
        pytest.skip(str(error))


@linux
def test_no_family_of_sockets_is_to_be_had() -> None:
    families = range(47)
    code = f"""
for family in {families!r}:
    for kind in (1, 2, 3, 5):
        attempt(f"{{family}}/{{kind}}")(lambda: socket.socket(family, kind))
    if family != 1: attempt(f"pair {{family}}")(lambda: socket.socketpair(family))
attempt("name")(lambda: socket.getaddrinfo("localhost", 80) and socket.create_connection(("localhost", 80)))
attempt("urllib")(lambda: __import__("urllib.request").request.urlopen("http://127.0.0.1:9"))
"""
    found = tried(code)
    assert len(found) > 200
    assert {answer for name, answer in found.items() if name not in ("name", "urllib")} == {"PermissionError 1"}
    assert found["name"].startswith(("gaierror", "PermissionError"))
    assert found["urllib"].startswith(("URLError", "PermissionError"))


@linux
def test_every_call_that_the_filter_names_is_refused() -> None:
    names = REFUSED[platform.machine()] | REFUSED_EVERYWHERE
    code = f"for name, number in {names!r}.items(): attempt(name)(lambda: call(number, 0, 0, 0, 0, 0, 0))"
    assert tried(code) == dict.fromkeys(names, "-1")


@linux
def test_the_rest_of_the_machine_is_not_there() -> None:
    victim = os.getpid()
    code = f"""
for path in ("/proc/self/mem", "/proc/1/environ", "/proc/{victim}/environ", "/proc/sys/kernel/core_pattern", "/sys",
             "/dev/mem", "/dev/kmsg", "/dev/shm", "/dev/tty", "/etc/passwd", "/root/.ssh", "/run",
             "/var/run/docker.sock"):
    attempt(path)(lambda: os.stat(path) and (open(path).read() if not os.path.isdir(path) else os.listdir(path)))
"""
    found = tried(code)
    assert set(found.values()) == {"FileNotFoundError 2"}, found


@linux
def test_no_signal_reaches_anyone_else() -> None:
    code = f"""
for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM):
    for target in ({os.getpid()}, {os.getppid()}, 2, 3, os.getppid()):
        if target > 0: attempt(f"kill {{target}} {{number}}")(lambda: os.kill(target, number))
    attempt(f"all {{number}}")(lambda: os.kill(-1, number))
    attempt(f"group {{number}}")(lambda: os.killpg(2, number))
attempt("parent")(os.getppid)
attempt("alone")(lambda: call(200 if {platform.machine()!r} == "x86_64" else 130, 2, 9))
"""
    found = tried(code)
    assert found.pop("parent") == "0"
    assert found.pop("alone") == "-3"
    assert set(found.values()) == {"ProcessLookupError 3"}


@linux
def test_what_pilocal_has_open_is_closed_and_its_environment_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILOCAL_API_KEY", "secret-4711")
    with socket.create_server(("127.0.0.1", 0)) as server, Path(__file__).open() as file:
        os.set_inheritable(server.fileno(), True)
        os.set_inheritable(file.fileno(), True)
        found = tried("""
for number in range(1024):
    try: os.fstat(number)
    except OSError: continue
    said[str(number)] = "open"
said["environment"] = " ".join(os.environ.values())
""")
    environment = found.pop("environment")
    assert set(found) == {"0", "1", "2"}
    assert "secret" not in environment


@linux
def test_no_link_and_no_handle_leads_out_of_the_folder() -> None:
    code = (
        f"SECRET = {__file__!r}"
        + """
os.symlink(SECRET, "secret"); os.symlink("../../../../..", "up")
attempt("symlink")(lambda: open("secret"))
attempt("climb")(lambda: open("up" + SECRET))
attempt("hard link")(lambda: os.link("/usr/bin/env", "env"))
attempt("write through")(lambda: open("up/usr/new", "w"))
attempt("replace")(lambda: os.rename("main.py", "/usr/main.py"))
attempt("node")(lambda: os.mknod("disk", 0o60666, os.makedev(254, 0)) or open("disk").read(1))
attempt("setuid")(lambda: os.setuid(0))
attempt("chroot")(lambda: os.chroot("."))
attempt("root")(lambda: os.fchdir(os.open("/", os.O_RDONLY)) or sorted(os.listdir("../..")))
attempt("keyring")(lambda: call(250 if sys.maxsize and os.uname().machine == "x86_64" else 219, 0, -3, 1))
attempt("core")(lambda: __import__("resource").setrlimit(4, (1 << 20, 1 << 20)))
attempt("host name")(lambda: socket.sethostname("mine"))
"""
    )
    found = tried(code)
    root = found.pop("root")
    assert "'program'" in root
    assert not any(f"'{name}'" in root for name in ("proc", "home", "var", "run"))
    assert found.pop("keyring") == "-1"
    assert found.pop("core") == "ValueError "
    assert all("Error" in answer for answer in found.values()), found


@linux
def test_the_disk_is_bounded_however_it_is_filled() -> None:
    code = """
def fill():
    for n in range(100000):
        with open(f"f{n}", "wb") as file: file.write(bytes(1 << 20))
def nodes():
    for n in range(100000): open(f"n{n}", "w").close()
def deep():
    for n in range(100000): os.mkdir("d"); os.chdir("d")
def sparse():
    with open("sparse", "wb") as file: file.truncate(1 << 40)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
attempt("fallocate")(lambda: os.posix_fallocate(os.open("a", os.O_RDWR | os.O_CREAT), 0, 1 << 34))
attempt("sparse")(sparse); attempt("fill")(fill); attempt("nodes")(nodes); attempt("deep")(deep)
said["files"] = str(len(os.listdir("/program")))
"""
    found = tried(code)
    assert int(found.pop("files")) <= 4096
    assert set(found.values()) <= {"OSError 27", "OSError 28"}, found


@linux
def test_memory_that_is_not_the_process_s_own_is_bounded_too() -> None:
    code = """
import fcntl, mmap, resource
def pipes():
    kept = []
    while True:
        kept += os.pipe(); fcntl.fcntl(kept[-1], 1031, 1 << 20); os.set_blocking(kept[-1], False)
        os.write(kept[-1], bytes(1 << 20))
def shared():
    kept = []
    while True: kept.append(mmap.mmap(-1, 64 << 20)); kept[-1][::4096] = bytes(len(range(0, 64 << 20, 4096)))
attempt("pipes")(pipes)
attempt("shared")(shared)
attempt("locked")(lambda: libc.mlockall(3) or "locked")
for limit in ("AS", "NPROC", "NOFILE", "CPU", "FSIZE", "MEMLOCK"):
    number = getattr(resource, f"RLIMIT_{limit}")
    attempt(limit)(lambda: resource.setrlimit(number, (1 << 40, 1 << 40)))
"""
    found = tried(code, memory_mb=256)
    assert found["pipes"].startswith(("OSError 24", "PermissionError 1", "BlockingIOError")), found
    assert found["shared"].startswith(("OSError 12", "MemoryError")), found
    assert found["locked"] == "-1"
    assert {found[limit] for limit in ("AS", "NPROC", "NOFILE", "CPU", "FSIZE", "MEMLOCK")} == {"ValueError "}


@linux
@pytest.mark.parametrize(
    "sleep",
    [
        "import ctypes; ctypes.CDLL(None).sleep(4321)",
        "import ctypes, signal; signal.pthread_sigmask(0, range(1, 65)); ctypes.PyDLL(None).sleep(4321)",
        "import re; re.match('(a*)*b', 'a' * 64)",
        "x = 10 ** (10 ** 9)",
    ],
)
def test_time_that_is_lost_in_c_ends_as_well(sleep: str) -> None:
    outcome = run(sleep, seconds=1)
    assert outcome.code == -9 or outcome.limit == "time", outcome


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("database") / "rivers.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("create table t as select 1 as x")
        connection.commit()
    return path


FOR_EVER = "with recursive t(x) as (select 1 union all select x + 1 from t)"


@pytest.mark.parametrize(
    "query",
    [
        f"{FOR_EVER} select count(*) from t",
        f"{FOR_EVER} select sum(length(randomblob(1000000))) from t",
        f"{FOR_EVER} select group_concat(randomblob(100000)) from t",
        f"{FOR_EVER} select randomblob(1000000) from t limit 9999",
        f"{FOR_EVER} select x, randomblob(500000) as y from t order by y",
        "with recursive t(x) as (select '' union select randomblob(900000) from t) select count(*) from t",
        "select zeroblob(2000000000)",
        "select printf('%.*c', 2000000000, 'x')",
        "attach 'other.sqlite' as other",
        "pragma writable_schema = 1",
        "pragma hard_heap_limit = 0",
        "select load_extension('x')",
        "select * from pragma_database_list",
        "select readfile('/etc/passwd')",
        "select writefile('x', 'y')",
        "create virtual table f using fts5(x)",
        "vacuum into 'copy.sqlite'",
        "select 1; drop table t",
        f"select {'(' * 5000}1{')' * 5000}",
        "select '\0' || x'00' from \ud800",
    ],
)  # fmt: skip
def test_no_query_lasts_grows_or_leaves(query: str, database: Path) -> None:
    metric = make_metric("sqlite", Scoring(database=database.name, timeout=1.0), database.parent)
    assert metric.objection(query) is not None
    assert metric.objection("select x from t") is None
    assert [path.name for path in database.parent.iterdir()] == [database.name]
