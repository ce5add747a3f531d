"""The system calls that a sandboxed program on Linux may not make, as a seccomp filter.

Namespaces hide the rest of the machine; this keeps the program one process (so that a limit for a process is a limit
for all of it), away from memory that no limit counts, and away from the kernel's more adventurous interfaces.
What an answer has no use for is refused even where the namespaces make it harmless.
"""

from __future__ import annotations

import struct

REFUSED: dict[str, dict[str, int]] = {
    "x86_64": {
        "shmget": 29,
        "socket": 41,
        "fork": 57,
        "vfork": 58,
        "semget": 64,
        "msgget": 68,
        "ptrace": 101,
        "syslog": 103,
        "pivot_root": 155,
        "chroot": 161,
        "acct": 163,
        "mount": 165,
        "umount2": 166,
        "swapon": 167,
        "init_module": 175,
        "quotactl": 179,
        "io_setup": 206,
        "kexec_load": 246,
        "add_key": 248,
        "request_key": 249,
        "keyctl": 250,
        "migrate_pages": 256,
        "unshare": 272,
        "vmsplice": 278,
        "move_pages": 279,
        "perf_event_open": 298,
        "fanotify_init": 300,
        "name_to_handle_at": 303,
        "open_by_handle_at": 304,
        "setns": 308,
        "process_vm_readv": 310,
        "process_vm_writev": 311,
        "kcmp": 312,
        "finit_module": 313,
        "seccomp": 317,
        "memfd_create": 319,
        "bpf": 321,
        "userfaultfd": 323,
    },
    "aarch64": {
        "io_setup": 0,
        "umount2": 39,
        "mount": 40,
        "pivot_root": 41,
        "chroot": 51,
        "quotactl": 60,
        "vmsplice": 75,
        "acct": 89,
        "unshare": 97,
        "kexec_load": 104,
        "init_module": 105,
        "syslog": 116,
        "ptrace": 117,
        "msgget": 186,
        "semget": 190,
        "shmget": 194,
        "socket": 198,
        "add_key": 217,
        "request_key": 218,
        "keyctl": 219,
        "swapon": 224,
        "migrate_pages": 238,
        "move_pages": 239,
        "perf_event_open": 241,
        "fanotify_init": 262,
        "name_to_handle_at": 264,
        "open_by_handle_at": 265,
        "setns": 268,
        "process_vm_readv": 270,
        "process_vm_writev": 271,
        "kcmp": 272,
        "finit_module": 273,
        "seccomp": 277,
        "memfd_create": 279,
        "bpf": 280,
        "userfaultfd": 282,
    },
}
"""By machine."""

REFUSED_EVERYWHERE = {
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "pidfd_open": 434,
    "pidfd_getfd": 438,
    "process_madvise": 440,
    "mount_setattr": 442,
    "memfd_secret": 447,
    "process_mrelease": 448,
}

CLONE = {"x86_64": 56, "aarch64": 220}
PRCTL = {"x86_64": 157, "aarch64": 167}
SOCKETPAIR = {"x86_64": 53, "aarch64": 199}
CLONE3 = 435
CLONE_THREAD = 0x10000
PR_SET_PDEATHSIG = 1
AF_UNIX = 1

ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32 = 0x40000000

# Of BPF: load a word, jump if equal, if at least, if any bit is set, return; from linux/bpf_common.h.
LOAD, EQUAL, AT_LEAST, ANY_BIT, GIVE = 0x20, 0x15, 0x35, 0x45, 0x06
KILL, NOT_PERMITTED, NOT_THERE, ALLOW = 0x80000000, 0x00050001, 0x00050026, 0x7FFF0000
NUMBER, MACHINE, FIRST_ARGUMENT = 0, 4, 16
"""Offsets in struct seccomp_data."""


def make_filter(machine: str) -> bytes:
    """Return the filter's instructions, 8 bytes each; raises KeyError for a machine whose numbers are not known.

    >>> len(make_filter("x86_64")) % 8
    0
    """
    steps = [
        # Another architecture's calls have other numbers.
        (LOAD, 0, 0, MACHINE),
        (EQUAL, 1, 0, ARCHITECTURE[machine]),
        (GIVE, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER),
        (AT_LEAST, 0, 1, X32),
        (GIVE, 0, 0, KILL),
    ]
    for number in (REFUSED[machine] | REFUSED_EVERYWHERE).values():
        steps += [(EQUAL, 0, 1, number), (GIVE, 0, 0, NOT_PERMITTED)]
    steps += [
        # clone3's flags lie in memory, where a filter cannot look; without it libc takes clone.
        (EQUAL, 0, 1, CLONE3),
        (GIVE, 0, 0, NOT_THERE),
        # Threads, but no processes.
        (EQUAL, 0, 4, CLONE[machine]),
        (LOAD, 0, 0, FIRST_ARGUMENT),
        (ANY_BIT, 1, 0, CLONE_THREAD),
        (GIVE, 0, 0, NOT_PERMITTED),
        (GIVE, 0, 0, ALLOW),
        # asyncio lives on a pair of sockets, which reaches nobody else; other families would load a module for it.
        (EQUAL, 0, 4, SOCKETPAIR[machine]),
        (LOAD, 0, 0, FIRST_ARGUMENT),
        (EQUAL, 1, 0, AF_UNIX),
        (GIVE, 0, 0, NOT_PERMITTED),
        (GIVE, 0, 0, ALLOW),
        # The program dies with its launcher, whatever it would like.
        (EQUAL, 0, 3, PRCTL[machine]),
        (LOAD, 0, 0, FIRST_ARGUMENT),
        (EQUAL, 0, 1, PR_SET_PDEATHSIG),
        (GIVE, 0, 0, NOT_PERMITTED),
        (GIVE, 0, 0, ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)
