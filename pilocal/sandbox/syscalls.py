"""The system calls that a sandboxed program on Linux may not make, as a seccomp filter.

Namespaces hide the rest of the machine; this keeps the program one process (so that a limit for a process is a limit
for all of it), away from memory that no limit counts, and away from the kernel's more adventurous interfaces.
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
        "add_key": 248,
        "request_key": 249,
        "keyctl": 250,
        "unshare": 272,
        "perf_event_open": 298,
        "setns": 308,
        "process_vm_readv": 310,
        "process_vm_writev": 311,
        "memfd_create": 319,
        "bpf": 321,
        "userfaultfd": 323,
    },
    "aarch64": {
        "unshare": 97,
        "ptrace": 117,
        "msgget": 186,
        "semget": 190,
        "shmget": 194,
        "socket": 198,
        "add_key": 217,
        "request_key": 218,
        "keyctl": 219,
        "perf_event_open": 241,
        "setns": 268,
        "process_vm_readv": 270,
        "process_vm_writev": 271,
        "memfd_create": 279,
        "bpf": 280,
        "userfaultfd": 282,
    },
}
"""By machine. A socketpair stays allowed (asyncio lives on one): it reaches nobody else."""

REFUSED_EVERYWHERE = {"io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "memfd_secret": 447}

CLONE = {"x86_64": 56, "aarch64": 220}
PRCTL = {"x86_64": 157, "aarch64": 167}
CLONE3 = 435
CLONE_THREAD = 0x10000
PR_SET_PDEATHSIG = 1

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
        # The program dies with its launcher, whatever it would like.
        (EQUAL, 0, 3, PRCTL[machine]),
        (LOAD, 0, 0, FIRST_ARGUMENT),
        (EQUAL, 0, 1, PR_SET_PDEATHSIG),
        (GIVE, 0, 0, NOT_PERMITTED),
        (GIVE, 0, 0, ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)
