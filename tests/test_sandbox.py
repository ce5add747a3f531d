"""The sandbox: whatever a program tries, it fails on its own, in time, and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pilocal.errors import SandboxError
from pilocal.sandbox import run as sandbox
from pilocal.sandbox.run import Limits, Outcome, run_apart

PACKAGE = Path(__file__).parent.parent / "pilocal"
LINUX = sys.platform == "linux"


def run(code: str, **limits: float) -> Outcome:
    began = time.monotonic()
    outcome = run_apart(
        [sys.executable, "-I", "-S", "main.py"],
        {"main.py": code},
        Limits(**{"seconds": 5, **limits}),  # type: ignore[arg-type]
    )
    assert time.monotonic() - began < limits.get("seconds", 5) + 10
    return outcome


@pytest.fixture(scope="module", autouse=True)
def isolation() -> None:
    try:
        run("")
    except SandboxError as error:
        pytest.skip(str(error))


def processes() -> str:
    return subprocess.run(["ps", "-axo", "pid,args"], capture_output=True, text=True, check=True).stdout


def test_a_program_runs_and_its_output_and_status_come_back() -> None:
    outcome = run("import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)")
    assert (outcome.code, outcome.stdout, outcome.stderr, outcome.limit) == (7, "out\n", "err\n", None)
    assert 0 < outcome.seconds < 5


def test_a_program_has_a_folder_of_its_own_threads_and_an_event_loop() -> None:
    code = """
import asyncio, os, tempfile, threading
from pathlib import Path
assert Path.cwd().resolve() == Path.home().resolve() == Path(tempfile.gettempdir()).resolve()
assert os.listdir() == ["main.py"]
Path("a").write_text("b")
seen = []
thread = threading.Thread(target=lambda: seen.append(Path("a").read_text()))
thread.start()
thread.join()
asyncio.run(asyncio.sleep(0.01))
print(seen, sorted(os.environ), end="")
"""
    outcome = run(code)
    said = "['b'] ['HOME', 'LC_ALL', 'PATH', 'TMPDIR'"
    assert outcome.stdout.startswith(said), outcome
    assert run("import os; print(os.listdir())").stdout == "['main.py']\n"


FORK_BOMB = """
import os
while True:
    os.fork()
"""
DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(4321)
"""
DEAF = """
import os, signal, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGXCPU, signal.SIGALRM):
    signal.signal(number, signal.SIG_IGN)
print("deaf", flush=True)
while True:
    time.sleep(1)
"""
MANY_THREADS = """
import threading
while True:
    threading.Thread(target=lambda: [0 for i in iter(int, 1)]).start()
"""


@pytest.mark.parametrize(
    ("code", "limits"),
    [
        (FORK_BOMB, [None]),
        ("import subprocess; subprocess.run(['/bin/sh', '-c', ':'])", [None]),
        ("import os; os.posix_spawn('/bin/sleep', ['sleep', '4321'], {})", [None]),
        (DAEMON, [None]),
        ("while True: pass", ["time"]),
        ("import time; time.sleep(4321)", ["time"]),
        (DEAF, ["time"]),
        (MANY_THREADS, ["time", None]),
        ("x = bytearray(10 << 30); x[::4096] = x[::4096]", [None if LINUX else "memory"]),
        ("x = [bytes(1 << 20) for i in iter(int, 1)]", [None if LINUX else "memory"]),
        ("import sys; sys.setrecursionlimit(10**9); f = lambda: f(); f()", [None, "memory", "time"]),
        ("while True: print('x' * 1000)", ["output"]),
        ("import os\nwhile True: os.write(2, b'x' * 65536)", ["output"]),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV); os.abort()", [None]),
        ("open('a', 'wb').write(bytes(50 << 20))", [None]),
    ],
)
def test_what_does_not_end_or_wants_too_much_is_ended_alone(code: str, limits: list[str | None]) -> None:
    outcome = run(code, seconds=1, memory_mb=256)
    assert outcome.code != 0
    assert outcome.limit in limits
    assert outcome.timed_out is (outcome.limit == "time")
    assert max(len(outcome.stdout), len(outcome.stderr)) <= Limits().output
    assert "4321" not in processes()
    assert run("print(1)").stdout == "1\n"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home" / "photos").mkdir(parents=True)
    (tmp_path / "home" / "photos" / "cat.txt").write_text("meow")
    return tmp_path / "home"


@pytest.mark.parametrize(
    "attack",
    [
        "import shutil; shutil.rmtree(HOME)",
        "import os; os.chmod(HOME, 0)",
        "import os; os.rename(HOME, HOME + '2')",
        "import os; os.truncate(HOME + '/photos/cat.txt', 0)",
        "open(HOME + '/new', 'w')",
        "open('/etc/new', 'w')",
        "import os; os.kill(PARENT, 9)",
        "import os; os.kill(-1, 15); raise OSError",
        "import os; os.setpriority(os.PRIO_PROCESS, 0, -20)",
    ],
)
def test_nothing_outside_can_be_harmed(attack: str, home: Path) -> None:
    code = f"HOME, PARENT = {str(home)!r}, {os.getpid()}\ntry:\n    {attack}\nexcept OSError: print('refused')"
    mode = stat.S_IMODE(home.stat().st_mode)
    assert run(code).stdout == "refused\n"
    assert (home / "photos" / "cat.txt").read_text() == "meow"
    assert [path.name for path in home.iterdir()] == ["photos"]
    assert stat.S_IMODE(home.stat().st_mode) == mode


@pytest.mark.skipif(not LINUX, reason="what a program sees is a tree of its own on Linux")
def test_a_python_below_tmp_is_there_and_read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        Path(folder, "seen").write_text("seen")
        links, readable = sandbox._tree()
        monkeypatch.setattr(sandbox, "_tree", lambda: (links, readable | {folder: folder}))
        outcome = run(f"""
import os
print(open({folder!r} + "/seen").read(), os.listdir())
open("mine", "w").write("written")
try: open({folder!r} + "/new", "w")
except OSError as error: print(error.errno)
""")
        assert outcome.stdout == "seen ['main.py']\n30\n"
        assert [path.name for path in Path(folder).iterdir()] == ["seen"]


@pytest.mark.skipif(not LINUX, reason="limits that macOS does not know")
def test_limits_that_are_lower_already_stay() -> None:
    code = f"""
import resource
from pilocal.sandbox.run import *
resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48))
text = "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE))"
print(run_apart([{sys.executable!r}, "-I", "-S", "main.py"], {{"main.py": text}}, Limits()).stdout, end="")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    assert done.stdout == "(48, 48)\n"


@pytest.mark.skipif(not LINUX, reason="macOS bounds a program's threads itself")
def test_threads_are_counted_however_small_they_are() -> None:
    outcome = run("""
import os, threading
threading.stack_size(32768)
stop = threading.Event()
try:
    for number in range(1000): threading.Thread(target=stop.wait).start()
except RuntimeError: print(number, flush=True)
os._exit(0)
""")
    assert 200 < int(outcome.stdout) < 300


def test_what_is_written_to_tmp_stays_inside() -> None:
    name = f"pilocal-test-{os.getpid()}"
    run(f"open('/tmp/{name}', 'w').write('x')")
    assert not Path("/tmp", name).exists()


def test_files_of_the_home_cannot_be_read(home: Path) -> None:
    where = home if LINUX else Path.home()
    assert "Error" in run(f"import os; os.listdir({str(where)!r})").stderr


@pytest.mark.skipif(not LINUX, reason="what a program sees is a tree of its own on Linux")
def test_python_itself_is_read_only_and_no_other_process_is_there() -> None:
    code = (
        "import os, sys\ntry: os.chmod(sys.prefix, 0o777)\nexcept OSError as e: print(e.errno, os.path.exists('/proc'))"
    )
    assert run(code).stdout == "30 False\n"
    assert run("import os; print(os.getpid(), os.getuid() != 0)").stdout == "1 True\n"


def test_nothing_is_reached_over_the_network(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, tempfile.TemporaryDirectory(dir="/tmp") as folder:
        local = socket.socket(socket.AF_UNIX)
        local.bind(f"{folder}/s")
        local.listen()
        for family, address in (("INET", server.getsockname()), ("UNIX", f"{folder}/s")):
            outcome = run(f"import socket; socket.socket(socket.AF_{family}).connect({address!r})")
            assert outcome.code == 1
            assert "Error" in outcome.stderr
        for listener in (server, local):
            listener.settimeout(0.05)
            with pytest.raises(TimeoutError):
                listener.accept()
        local.close()


@pytest.mark.skipif(not LINUX, reason="system calls of Linux")
@pytest.mark.parametrize(
    "call",
    [
        "libc.unshare(0x10000000)",  # a new user namespace
        "libc.memfd_create(b'x', 0)",
        "libc.shmget(0, 1 << 30, 0o1600)",
        "libc.ptrace(0, 0, 0, 0)",
        "libc.prctl(1, 0, 0, 0, 0)",  # outliving the launcher
        "libc.syscall(425, 8, 0)",  # io_uring
        "libc.syscall(435, 0, 0)",  # clone3
    ],
)
def test_system_calls_that_no_answer_needs_are_refused(call: str) -> None:
    assert run(f"import ctypes; libc = ctypes.CDLL(None); print({call})").stdout == "-1\n"


def test_a_program_dies_with_the_process_that_asked_for_it() -> None:
    code = f"""
from pilocal.sandbox.run import *
text = "import time; print(1, flush=True); time.sleep(600)"
run_apart([{sys.executable!r}, "-I", "-S", "main.py", "8642"], {{"main.py": text}}, Limits(seconds=600))
"""
    caller = subprocess.Popen([sys.executable, "-c", code], cwd=PACKAGE.parent)
    argv = "-I -S main.py 8642"
    wait_until(lambda: argv in processes())
    caller.send_signal(signal.SIGKILL)
    caller.wait()
    wait_until(lambda: argv not in processes())


def wait_until(holds: Callable[[], bool]) -> None:
    ends = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_where_nothing_can_be_kept_apart_nothing_runs_and_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "launcher.py"
    text = (PACKAGE / "sandbox" / "launcher.py").read_text()
    where = '    call("unshare"' if LINUX else "    os.execve("
    assert where in text
    broken.write_text(text.replace(where, f"    raise PermissionError(1, 'not here')\n{where}"))
    monkeypatch.setattr("pilocal.sandbox.launcher.__file__", str(broken))
    with pytest.raises(SandboxError, match="cannot keep a program apart here; got 'not here'; ") as caught:
        run("print(1)")
    assert len(str(caught.value).splitlines()) == 1


def test_a_program_that_is_not_there_is_a_clear_error() -> None:
    if not LINUX:
        pytest.skip("sandbox-exec reports it as the program's own failure")
    with pytest.raises(SandboxError, match="No such file"):
        run_apart(["/nowhere/python"], {}, Limits())


@pytest.mark.skipif(not LINUX or os.geteuid() != 0, reason="for root, who is otherwise the only one tested")
def test_an_ordinary_user_is_kept_apart_too() -> None:
    python = "/usr/bin/python3"
    if not Path(python).exists() or subprocess.call([python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]):
        pytest.skip("no Python 3.11 that every user may run")
    code = f"""
import os, sys
from pilocal.sandbox.run import *
home = sys.argv[1]
def run(text):
    return run_apart([{python!r}, "-I", "-S", "main.py"], {{"main.py": text}}, Limits(seconds=1, memory_mb=256))
seen = f"1 {{os.getuid()}} ['main.py']\\n"
assert run("import os; print(os.getpid(), os.getuid(), os.listdir('/tmp'))").stdout == seen
for attack in {[FORK_BOMB, DAEMON]!r}:
    assert run(attack).code == 1
assert run("import threading; t = threading.Thread(target=print, args=['th']); t.start(); t.join()").stdout == "th\\n"
assert run({DEAF!r}).timed_out
assert "Error" in run("bytearray(10 << 30)").stderr
assert "Error" in run(f"import shutil; shutil.rmtree({{home!r}})").stderr
assert "Error" in run("import socket; socket.socket()").stderr
assert "Read-only" in run("import os; os.chmod('/usr/bin', 0o700)").stderr
assert run("print(1)").stdout == "1\\n"
print("kept apart")
"""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        parts = ["__init__", "errors", "sandbox/__init__", "sandbox/run", "sandbox/launcher", "sandbox/syscalls"]
        for part in parts:
            path = Path(folder, "pilocal", f"{part}.py")
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(PACKAGE / f"{part}.py", path)
        Path(folder, "home").mkdir()
        for path in (Path(folder), *Path(folder).rglob("*")):
            os.chown(path, 65534, 65534)
        done = subprocess.run(
            [python, "-c", code, f"{folder}/home"],
            check=False, cwd=folder, user=65534, group=65534, extra_groups=[], env={}, capture_output=True, text=True,
        )  # fmt: skip
        assert (done.stdout, done.stderr) == ("kept apart\n", "")
        assert Path(folder, "home").is_dir()
