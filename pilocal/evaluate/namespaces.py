"""Runs one program inside Linux namespaces; started as a script by `sandbox.py`, standard library only.

Three processes: this one unshares and waits; process 1 of the new namespaces builds the file system, watches the memory
and ends everything with its own end; its child gives up all rights and becomes the program. The program sees a tree
of its own: system folders and Python, read-only; a small private /tmp; no /proc, no home, no network, no other process.
What became of it is one JSON line on the control pipe.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import resource
import secrets
import signal
import struct
import sys
from pathlib import Path
from typing import Any, NoReturn

# From linux/sched.h, linux/mount.h and linux/prctl.h.
NEW_MOUNTS, NEW_UTS, NEW_IPC, NEW_USERS, NEW_PIDS, NEW_NET = (1 << bit for bit in (17, 26, 27, 28, 29, 30))
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
MOUNT_SETATTR = 442
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
ATTR_RDONLY, ATTR_NOSUID = 1, 2

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
FORBIDDEN = {
    "x86_64": (272, 308, 165, 166, 101, 321, 323, 298, 250, 248, 249, 310, 311, 304, 319, 29),
    "aarch64": (97, 268, 40, 39, 117, 280, 282, 241, 219, 217, 218, 270, 271, 265, 279, 194),
}
"""unshare setns mount umount2 ptrace bpf userfaultfd perf_event_open keyctl add_key request_key process_vm_readv
process_vm_writev open_by_handle_at memfd_create shmget: rights over the kernel, or memory that no process owns."""
FORBIDDEN_EVERYWHERE = (425, 428, 429, 430, 431, 432, 433, 438, 442, 447)
"""io_uring_setup open_tree move_mount fsopen fsconfig fsmount fspick pidfd_getfd mount_setattr memfd_secret."""
CLONE = {"x86_64": 56, "aarch64": 220}
CLONE3 = 435

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/alternatives",
          "/etc/localtime", "/nix/store", "/gnu/store")  # fmt: skip
DEVICES = ("null", "zero", "full", "random", "urandom")
LOOK_EVERY = 0.02
"""Seconds between two looks at the memory."""

libc = ctypes.CDLL(None, use_errno=True)


def call(what: str, result: int) -> int:
    """Return the result of a system call, or raise OSError that says what was tried."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """mount(2); raises OSError."""
    arguments = (source.encode(), target.encode(), kind.encode() or None, flags, options.encode() or None)
    call(f"mount {target}", libc.mount(*arguments[:3], ctypes.c_ulong(flags), arguments[4]))


def pivot_root(new: str, old: str) -> None:
    """pivot_root(2); raises OSError."""
    call("pivot_root", libc.syscall(PIVOT_ROOT[platform.machine()], new.encode(), old.encode()))


def enter_namespaces(as_root: bool) -> None:
    """Leave every namespace that matters; without root, through a user namespace in which this process may mount."""
    user, group = os.geteuid(), os.getegid()
    flags = NEW_MOUNTS | NEW_PIDS | NEW_NET | NEW_IPC | NEW_UTS | (0 if as_root else NEW_USERS)
    call("unshare", libc.unshare(flags))
    if not as_root:
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"1000 {user} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"1000 {group} 1", encoding="ascii")


def build_root(spec: dict[str, Any], owner: int) -> int:
    """Make the program's file system this process's own, and return an open /proc that lies outside it."""
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for folder in ("old", "new"):
        Path("/tmp", folder).mkdir()
    pivot_root("/tmp", "/tmp/old")
    os.chdir("/")
    mount("tmpfs", "/new", "tmpfs", MS_NOSUID, "size=1m,mode=755")
    shown: list[str] = []
    for path in sorted({*SYSTEM, *spec["readable"]}):
        source = os.path.realpath("/old" + path) if not Path("/old" + path).is_symlink() else _inside_old(path)
        if any(path == other or path.startswith(other + "/") for other in shown) or not os.path.exists(source):  # noqa: PTH110
            continue
        target = Path("/new" + path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if Path(source).is_dir():
            target.mkdir(exist_ok=True)
            shown.append(path)
        else:
            target.touch()
        mount(source, str(target), flags=MS_BIND | MS_REC)
    for folder in ("dev", "tmp"):
        Path("/new", folder).mkdir(exist_ok=True)
    for device in DEVICES:
        Path("/new/dev", device).touch()
        mount(f"/old/dev/{device}", f"/new/dev/{device}", flags=MS_BIND)
    Path("/new/dev/shm").symlink_to("/tmp")
    mount("proc", "/new/tmp", "proc")
    proc = os.open("/new/tmp", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    call("umount", libc.umount2(b"/new/tmp", MNT_DETACH))
    attributes = struct.pack("QQQQ", ATTR_RDONLY | ATTR_NOSUID, 0, 0, 0)
    arguments = (AT_FDCWD, b"/new", AT_RECURSIVE, attributes, ctypes.c_size_t(len(attributes)))
    call("mount_setattr", libc.syscall(MOUNT_SETATTR, *arguments))
    options = f"size={spec['disk']},nr_inodes=4096,mode=700,uid={owner},gid={owner}"
    mount("tmpfs", "/new/tmp", "tmpfs", MS_NOSUID | MS_NODEV, options)
    os.chdir("/new")
    pivot_root(".", ".")
    call("umount", libc.umount2(b".", MNT_DETACH))
    os.chdir("/tmp")
    return proc


def _inside_old(path: str) -> str:
    """Follow the symbolic links of a path whose root is /old."""
    for _ in range(40):
        full = Path("/old" + path)
        if not full.is_symlink():
            break
        path = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(full)))  # noqa: PTH115, PTH118, PTH120
    return "/old" + path


def give_up_rights(spec: dict[str, Any], owner: int, as_root: bool) -> None:
    """Bound what the program may use, and make sure that it can gain nothing; of root nothing stays."""
    seconds = int(spec["seconds"]) + 1
    bounds = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_AS: spec["memory"],
        resource.RLIMIT_FSIZE: spec["disk"],
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_NPROC: spec["processes"] + 2,  # of the same user are the two that watch
    }
    for kind, bound in bounds.items():
        resource.setrlimit(kind, (bound, bound))
    if as_root:
        os.setgroups([])
        os.setresgid(owner, owner, owner)
        os.setresuid(owner, owner, owner)
    call("no_new_privs", libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    forbid_system_calls()


def forbid_system_calls() -> None:
    """Refuse the system calls that no answer needs, with a seccomp filter."""
    machine = platform.machine()
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF: ld abs, jeq, jge, jset, ret
    kill, refuse, absent, allow = 0x80000000, 0x00050001, 0x00050026, 0x7FFF0000
    new_namespaces = 0x7E020080
    program = [(load, 0, 0, 4), (equal, 1, 0, AUDIT_ARCH[machine]), (give, 0, 0, kill), (load, 0, 0, 0)]
    program += [(at_least, 0, 1, 0x40000000), (give, 0, 0, kill)]  # x32's numbers
    for number in (*FORBIDDEN[machine], *FORBIDDEN_EVERYWHERE):
        program += [(equal, 0, 1, number), (give, 0, 0, refuse)]
    # Its flags lie in memory, where a filter cannot look; libc then takes clone.
    program += [(equal, 0, 1, CLONE3), (give, 0, 0, absent)]
    program += [(equal, 0, 3, CLONE[machine]), (load, 0, 0, 16), (any_bit, 0, 1, new_namespaces), (give, 0, 0, refuse)]
    program += [(give, 0, 0, allow)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    call("seccomp", libc.prctl(PR_SET_SECCOMP, 2, ctypes.byref(header), 0, 0))


def become(spec: dict[str, Any]) -> NoReturn:
    """Turn into the program, with standard input and output, the report pipe as descriptor 3, and nothing else."""
    os.dup2(spec["report"], 3)
    os.closerange(4, 65536)
    os.execve(spec["argv"][0], spec["argv"], spec["environment"])


def watch(program: int, proc: int, memory: int) -> dict[str, Any]:
    """Wait for the program, reaping whatever it leaves, and end it when all its processes hold too much memory."""
    page = os.sysconf("SC_PAGE_SIZE")
    while True:
        signal.sigtimedwait({signal.SIGCHLD}, LOOK_EVERY)
        while True:
            try:
                ended, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if ended == program:
                return {"code": os.waitstatus_to_exitcode(status)}
            if not ended:
                break
        used = 0
        for name in os.listdir(proc):
            if name.isdecimal() and name != "1":
                with contextlib.suppress(OSError):
                    file = os.open(f"{name}/statm", os.O_RDONLY, dir_fd=proc)
                    used += page * int(os.read(file, 200).split()[1])
                    os.close(file)
        if used > memory:
            return {"memory": True}


def first_process(spec: dict[str, Any], as_root: bool) -> dict[str, Any]:
    """Be process 1: build the root, start the program, and return what became of it."""
    call("pdeathsig", libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
    owner = 0x60000000 + secrets.randbelow(1 << 24) if as_root else 1000  # of root's, a user that nobody else is
    proc = build_root(spec, owner)
    call("dumpable", libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    told, tell = os.pipe()
    program = os.fork()
    if program == 0:
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            give_up_rights(spec, owner, as_root)
            os.set_inheritable(tell, False)
            high = os.dup(tell)
            del high
            become(spec)
        except BaseException as error:
            os.write(tell, str(error).encode()[:200])
            os._exit(126)
    os.close(tell)
    broken = os.read(told, 200)
    return {"broken": broken.decode()} if broken else watch(program, proc, spec["memory"])


def main() -> None:
    """Run the program that the first argument describes, and say on the control pipe what became of it."""
    spec = json.loads(sys.argv[1])
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    as_root = os.geteuid() == 0
    control: int = spec["control"]
    try:
        enter_namespaces(as_root)
        first = os.fork()
        if first:
            # The watchers hold no end of the pipes that the program reads or writes.
            os.closerange(0, 3)
            os.close(spec["report"])
            os.waitpid(first, 0)
            os._exit(0)
        result = first_process(spec, as_root)
    except OSError as error:
        result = {"broken": error.strerror or str(error)}
    os.write(control, json.dumps(result).encode())
    os._exit(0)


if __name__ == "__main__":
    main()
