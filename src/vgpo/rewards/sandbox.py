"""Privileges that a grader worker drops before it reads the first answer."""

import ctypes
import os
import platform
import resource
import sys
from typing import NamedTuple

# System calls that computing, and reading and writing what is already open, may need. All others fail with EPERM.
_ALLOWED = {
    "x86_64": {
        "brk": 12,
        "clock_getres": 229,
        "clock_gettime": 228,
        "clock_nanosleep": 230,
        "exit": 60,
        "exit_group": 231,
        "futex": 202,
        "getpid": 39,
        "getrandom": 318,
        "getrusage": 98,
        "gettid": 186,
        "gettimeofday": 96,
        "madvise": 28,
        "membarrier": 324,
        "mmap": 9,
        "mprotect": 10,
        "mremap": 25,
        "munmap": 11,
        "nanosleep": 35,
        "read": 0,
        "restart_syscall": 219,
        "rseq": 334,
        "rt_sigaction": 13,
        "rt_sigprocmask": 14,
        "rt_sigreturn": 15,
        "sched_yield": 24,
        "setitimer": 38,
        "sigaltstack": 131,
        "times": 100,
        "write": 1,
    },
    "aarch64": {
        "brk": 214,
        "clock_getres": 114,
        "clock_gettime": 113,
        "clock_nanosleep": 115,
        "exit": 93,
        "exit_group": 94,
        "futex": 98,
        "getpid": 172,
        "getrandom": 278,
        "getrusage": 165,
        "gettid": 178,
        "gettimeofday": 169,
        "madvise": 233,
        "membarrier": 283,
        "mmap": 222,
        "mprotect": 226,
        "mremap": 216,
        "munmap": 215,
        "nanosleep": 101,
        "read": 63,
        "restart_syscall": 128,
        "rseq": 293,
        "rt_sigaction": 134,
        "rt_sigprocmask": 135,
        "rt_sigreturn": 139,
        "sched_yield": 124,
        "setitimer": 103,
        "sigaltstack": 132,
        "times": 153,
        "write": 64,
    },
}
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # linux/audit.h

# linux/prctl.h, linux/seccomp.h, linux/filter.h
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_SECCOMP_MODE_FILTER = 2
_RET_ALLOW, _RET_EPERM = 0x7FFF0000, 0x00050001
_LOAD_WORD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_NUMBER, _ARCHITECTURE = 0, 4  # offsets in struct seccomp_data


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(_Instruction)))


class Filter(NamedTuple):
    """The allow-list of one machine. architecture: its number in linux/audit.h."""

    architecture: int
    system_calls: dict[str, int]


def system_call_filter() -> Filter | None:
    """The filter of this machine; None where there is none: not Linux, or not x86-64 or arm64."""
    machine = platform.machine()
    if not sys.platform.startswith("linux") or sys.maxsize < 2**32 or machine not in _ALLOWED:
        return None
    return Filter(_AUDIT_ARCH[machine], _ALLOWED[machine])


def end_with_parent(parent: int) -> None:
    """Let the kernel kill this process when `parent`, which has forked it, ends. Linux only."""
    if sys.platform.startswith("linux"):
        _prctl(_PR_SET_PDEATHSIG, 9)
    if os.getppid() != parent:
        os._exit(1)


def confine(descriptor: int, num_bytes: int) -> bool:
    """Restrict this process permanently to memory, a clock and `descriptor`. True if the kernel filters system calls.

    num_bytes: address-space limit. The limits forbid opening files and sockets and, except for root, forking; the
    filter forbids every other call with effects outside the process.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)
    os.closerange(3, descriptor)
    os.closerange(descriptor + 1, max(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 2**12))
    if sys.platform.startswith("linux"):  # not possible on macOS
        resource.setrlimit(resource.RLIMIT_AS, (num_bytes, num_bytes))
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC):
        resource.setrlimit(limit, (0, 0))
    allowed = system_call_filter()
    return allowed is not None and _filter_system_calls(allowed)


def _filter_system_calls(allowed: Filter) -> bool:
    """False if this kernel has no filters."""
    numbers = sorted(allowed.system_calls.values())
    program = [
        _Instruction(_LOAD_WORD, 0, 0, _ARCHITECTURE),
        _Instruction(_JUMP_IF_EQUAL, 1, 0, allowed.architecture),
        _Instruction(_RETURN, 0, 0, _RET_EPERM),
        _Instruction(_LOAD_WORD, 0, 0, _NUMBER),
        *(_Instruction(_JUMP_IF_EQUAL, len(numbers) - i, 0, number) for i, number in enumerate(numbers)),
        _Instruction(_RETURN, 0, 0, _RET_EPERM),
        _Instruction(_RETURN, 0, 0, _RET_ALLOW),
    ]
    instructions = (_Instruction * len(program))(*program)
    try:
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(_Program(len(program), instructions)))
    except OSError:
        return False
    return True


def _prctl(option: int, value: int, pointer: object = None) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(ctypes.c_int(option), ctypes.c_ulong(value), pointer or ctypes.c_ulong(0), *[ctypes.c_ulong(0)] * 2):
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value})")
