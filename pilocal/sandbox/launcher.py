"""Starts one program in isolation, watches it, and ends it; `sandbox.py` runs this file as a script.

Standard library only, and none of pilocal. Standard input brings one line of JSON and stays open: when it ends, whoever
asked is gone or has seen enough, and the program is killed. What became of it is one JSON object on the control pipe.
On Linux the program is process 1 of its own namespaces and sees a tree of its own: system folders and Python,
read-only, and a small folder in memory. On macOS the program's own command is sandbox-exec; only limits are set here.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

LINUX = sys.platform == "linux"

# From linux/sched.h, linux/mount.h, linux/prctl.h and asm/unistd.h.
NEW_MOUNTS, NEW_UTS, NEW_IPC, NEW_USERS, NEW_PIDS, NEW_NET = (1 << bit for bit in (17, 26, 27, 28, 29, 30))
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
SECCOMP_MODE_FILTER = 2
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
MOUNT_SETATTR = 442
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
ATTR_RDONLY, ATTR_NOSUID = 1, 2

RUSAGE_INFO_V0, FOOTPRINT = 0, 72
"""Of macOS's proc_pid_rusage: the flavour, and where ri_phys_footprint lies in its structure (sys/resource.h)."""

LOOK_EVERY = 0.02
"""Seconds between two looks at the memory of a program on macOS, which has no limit for it."""

THREADS = 256
"""Of a program on Linux."""

DEVICES = ("null", "zero", "full", "random", "urandom")

libc: Any = ctypes.CDLL(None, use_errno=True)


def call(what: str, function: Any, *arguments: Any) -> None:
    """Call a function of the C library with whole numbers as longs; raises OSError that says what was tried."""
    ready = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    if function(*ready) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """Add a file system, or a folder a second time: the system call of that name."""
    words = [None if word is None else word.encode() for word in (source, target, kind, options)]
    call(f"mount {target}", libc.mount, *words[:3], flags, words[3])


def enter_namespaces(as_root: bool) -> None:
    """Leave every namespace; without root, through a user namespace in which this process may mount."""
    user, group = os.geteuid(), os.getegid()
    flags = NEW_MOUNTS | NEW_PIDS | NEW_NET | NEW_IPC | NEW_UTS
    call("unshare", libc.unshare, flags if as_root else flags | NEW_USERS)
    if not as_root:
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="ascii")


def build_root(spec: dict[str, Any]) -> None:
    """Make a tree of what the program may see, read-only but for the program's folder, and forget every other."""
    os.umask(0o022)
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for folder in ("old", "new"):
        Path("/tmp", folder).mkdir()
    enter_root("/tmp", "/tmp/old")
    os.chdir("/")
    mount("tmpfs", "/new", "tmpfs", MS_NOSUID, "size=1m,mode=755")
    own = "/new" + spec["folder"]
    for folder in ("/new/dev", own):
        Path(folder).mkdir()
    user, group = spec["user"] or (os.geteuid(), os.getegid())
    options = f"size={spec['disk']},nr_inodes=4096,mode=700,uid={user},gid={group}"
    mount("tmpfs", own, "tmpfs", MS_NOSUID | MS_NODEV, options)
    for link, target in spec["links"].items():
        Path("/new" + link).symlink_to(target)
    # Parents before children, so that a mount never hides an earlier one.
    for path, source in sorted((spec["readable"] | {f"/dev/{name}": f"/dev/{name}" for name in DEVICES}).items()):
        target = Path("/new" + path)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            if Path("/old" + source).is_dir():
                target.mkdir()
            else:
                target.touch()
        mount("/old" + source, str(target), None, MS_BIND | MS_REC)
    if not Path("/new/tmp").exists():  # Python itself may lie below it
        Path("/new/tmp").symlink_to(spec["folder"])
    for path, flags, given, taken in (
        (b"/new", AT_RECURSIVE, ATTR_RDONLY | ATTR_NOSUID, 0),
        (own.encode(), 0, 0, ATTR_RDONLY),
    ):
        attributes = (ctypes.c_uint64 * 4)(given, taken, 0, 0)
        how = (AT_FDCWD, path, flags, attributes, ctypes.sizeof(attributes))
        call("mount_setattr", libc.syscall, MOUNT_SETATTR, *how)
    os.chdir("/new")
    enter_root(".", ".")


def enter_root(new: str, old: str) -> None:
    """Change the root, see pivot_root(2).

    Where both are one folder, the old root ends up on top of the new one and is taken away.
    """
    call("pivot_root", libc.syscall, PIVOT_ROOT[platform.machine()], new.encode(), old.encode())
    if new == old:
        call("umount", libc.umount2, b".", MNT_DETACH)


def set_limits(spec: dict[str, Any]) -> None:
    """Bound what the program may use."""
    seconds = int(spec["seconds"]) + 1
    bounds = {
        resource.RLIMIT_CPU: (seconds, seconds + 1),
        resource.RLIMIT_FSIZE: (spec["disk"], spec["disk"]),
        resource.RLIMIT_NOFILE: (64, 64),
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_MEMLOCK: (0, 0),
    }
    if LINUX:
        bounds[resource.RLIMIT_AS] = (spec["memory"], spec["memory"])
        # Threads: of a user whom nobody else is, or of this user in this user namespace.
        bounds[resource.RLIMIT_NPROC] = (THREADS, THREADS)
        bounds[resource.RLIMIT_MSGQUEUE] = (0, 0)
    for kind, (soft, hard) in bounds.items():
        # Whoever started pilocal may have set less, which cannot be raised again.
        set_before = resource.getrlimit(kind)[1]
        most = hard if set_before == resource.RLIM_INFINITY else min(hard, set_before)
        resource.setrlimit(kind, (min(soft, most), most))


def give_up_rights(spec: dict[str, Any]) -> None:
    """Become a user that nobody is where this is root, and lose the system calls that no answer needs, for ever."""
    if spec["user"]:
        user, group = spec["user"]
        os.setgroups([])
        os.setresgid(group, group, group)
        os.setresuid(user, user, user)
    call("parent's death", libc.prctl, PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    call("no new privileges", libc.prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))

    steps = bytes.fromhex(spec["filter"])
    call(
        "seccomp", libc.prctl, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(Program(len(steps) // 8, steps)), 0, 0
    )


def become(spec: dict[str, Any]) -> NoReturn:
    """Turn this process into the program; raises OSError, saying what cannot be had."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if LINUX:
        build_root(spec)
    os.chdir(spec["folder"])
    for name, text in spec["files"].items():
        Path(name).write_text(text, encoding="utf-8", errors="surrogatepass")
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    set_limits(spec)
    if LINUX:
        give_up_rights(spec)
    # Every other descriptor but those in spec["keep"] closes itself here.
    os.execve(spec["argv"][0], spec["argv"], spec["environment"])


def memory_of(program: int) -> int:
    """Return the bytes that a process holds on macOS; 0 when it is gone."""
    room = ctypes.create_string_buffer(512)
    if libc.proc_pid_rusage(program, RUSAGE_INFO_V0, room):
        return 0
    return ctypes.c_uint64.from_buffer(room, FOOTPRINT).value


def watch(program: int, wake: int, spec: dict[str, Any]) -> dict[str, Any]:
    """Wait until the program has ended, or end it."""
    began = time.monotonic()
    while True:
        left = max(0.0, began + spec["seconds"] - time.monotonic())
        ready, _, _ = select.select([0, wake], [], [], left if LINUX else min(left, LOOK_EVERY))
        ended, status = os.waitpid(program, os.WNOHANG)
        limit = None
        if not ended:
            if 0 in ready:
                limit = "stopped"
            elif time.monotonic() >= began + spec["seconds"]:
                limit = "time"
            elif not LINUX and memory_of(program) > spec["memory"]:
                limit = "memory"
            else:
                continue
            os.kill(program, signal.SIGKILL)
            _, status = os.waitpid(program, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == -signal.SIGXCPU:
            limit = "time"
        return {"code": code, "limit": limit, "seconds": time.monotonic() - began}


def launch(spec: dict[str, Any]) -> dict[str, Any]:
    """Run the program and return what became of it; raises OSError when there is no isolation to be had."""
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken)
    if LINUX:
        enter_namespaces(as_root=spec["user"] is not None)
    told, tell = os.pipe()
    program = os.fork()
    if program == 0:
        try:
            become(spec)
        except BaseException as error:
            os.write(tell, (getattr(error, "strerror", None) or repr(error)).encode()[:500])
        os._exit(1)
    for kept in (tell, *spec["keep"]):
        os.close(kept)  # the other end of a pipe learns when the program is gone
    broken = os.read(told, 500)
    if broken:
        os.waitpid(program, 0)
        return {"broken": broken.decode(errors="replace")}
    return watch(program, wake, spec)


def main() -> None:
    """Read what to run, run it, and say on the control pipe what became of it."""
    spec = json.loads(sys.stdin.buffer.readline())
    os.set_inheritable(spec["control"], False)
    try:
        result = launch(spec)
    except OSError as error:
        result = {"broken": error.strerror or str(error)}
    os.write(spec["control"], json.dumps(result).encode())


if __name__ == "__main__":
    main()
