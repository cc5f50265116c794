"""
Which system calls change nothing that outlives a process; all others are steps.

The list names what is harmless, not what changes something: a call that nobody has
thought of is then one crash point too many, never one too few.

`stop_at_steps` has the kernel stop the calling process, with its threads and all the
programs that it starts, at each of their steps. libseccomp knows the calls' numbers on
every kind of processor. Source: seccomp(2), seccomp_unotify(2).
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from typing import Final

import pytest

# What reads, waits, and touches only memory, descriptors, processes and sockets.
# openat2: its flags lie in memory, where no filter sees them; ours opens what exists.
_HARMLESS: Final = """
    access alarm arch_prctl brk capget capset chdir clock_getres clock_gettime
    clock_nanosleep clone clone3 close close_range connect dup dup2 dup3
    epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_wait eventfd2 execve exit
    exit_group faccessat faccessat2 fadvise64 fchdir fcntl fgetxattr flistxattr
    flock fork fstat fstatfs futex get_mempolicy get_robust_list getcwd getdents
    getdents64 getegid geteuid getgid getgroups getpeername getpgid getpgrp getpid
    getppid getpriority getrandom getresgid getresuid getrlimit getrusage getsid
    getsockname getsockopt gettid gettimeofday getuid getxattr ioprio_get ioprio_set
    kill lgetxattr listen listxattr llistxattr lseek lstat madvise membarrier
    memfd_create mincore mlock mprotect mremap munlock munmap nanosleep newfstatat
    openat2
    pause pidfd_open pidfd_send_signal pipe pipe2 poll ppoll prctl pread64 preadv
    preadv2 prlimit64 pselect6 read readahead readlink readlinkat readv recvfrom
    recvmmsg recvmsg restart_syscall rseq rt_sigaction rt_sigpending rt_sigprocmask
    rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
    sched_get_priority_max sched_getaffinity sched_getparam sched_getscheduler
    sched_setaffinity sched_yield seccomp select sendmmsg sendmsg sendto
    set_robust_list set_tid_address setegid setfsgid setfsuid setgid setgroups
    setitimer setpgid setpriority setregid setresgid setresuid setreuid setrlimit
    setsid setsockopt setuid shutdown sigaltstack socket socketpair stat statfs
    statx sysinfo tgkill time timerfd_create timerfd_gettime timerfd_settime times
    umask uname unshare vfork wait4 waitid
"""
# A killed process leaves what it has written, whether it has flushed it or not: they
# succeed without being done, which nobody but a clock can tell. What a power loss
# leaves is not tried here.
_FLUSHES: Final = frozenset({"fdatasync", "fsync", "sync", "sync_file_range", "syncfs"})
HARMLESS: Final = frozenset(_HARMLESS.split()) | _FLUSHES

_ALLOW: Final = 0x7FFF_0000
_NOTIFY: Final = 0x7FC0_0000
_NOTHING_DONE: Final = 0x0005_0000  # SCMP_ACT_ERRNO(0): success
_SET_FILTER: Final = 1
_NEW_LISTENER: Final = 8
_ALL_THREADS: Final = 1 | 16
_INSTRUCTION_SIZE: Final = 8
_EQUAL: Final = 4  # SCMP_CMP_EQ
_MASKED: Final = 7  # SCMP_CMP_MASKED_EQ
_CREATES: Final = os.O_CREAT | os.O_TRUNC | (os.O_TMPFILE & ~os.O_DIRECTORY)
_WRITABLE: Final = 2  # PROT_WRITE
_SHARING: Final = 3  # MAP_TYPE, as far as mmap(2) knows types
_PRIVATE: Final = 2  # MAP_PRIVATE
# Questions to terminals and pipes, and what becomes of a descriptor.
_HARMLESS_IOCTLS: Final = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)

Condition = tuple[int, int, int, int]
# Argument, comparison and its operands: with these, a call is harmless as well.
_HARMLESS_IF: Final[Sequence[tuple[str, Condition]]] = (
    ("open", (1, _MASKED, _CREATES, 0)),
    ("openat", (2, _MASKED, _CREATES, 0)),
    ("mmap", (2, _MASKED, _WRITABLE, 0)),
    ("mmap", (3, _MASKED, _SHARING, _PRIVATE)),
    *(("ioctl", (1, _EQUAL, each, 0)) for each in _HARMLESS_IOCTLS),
)


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("one", ctypes.c_uint64),
        ("two", ctypes.c_uint64),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


_libc = ctypes.CDLL(None, use_errno=True)


@functools.cache
def _seccomp() -> ctypes.CDLL:
    """Return libseccomp; without it the test is skipped."""
    try:
        library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    except OSError:
        pytest.skip("needs libseccomp2")
    library.seccomp_init.argtypes = (ctypes.c_uint32,)
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_rule_add_array.argtypes = (
        *(ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int),
        *(ctypes.c_uint, ctypes.POINTER(_Comparison)),
    )
    library.seccomp_export_bpf.argtypes = (ctypes.c_void_p, ctypes.c_int)
    library.seccomp_release.argtypes = (ctypes.c_void_p,)
    library.seccomp_syscall_resolve_name.argtypes = (ctypes.c_char_p,)
    library.seccomp_syscall_resolve_num_arch.restype = ctypes.c_void_p
    return library


@functools.cache
def call_name(number: int) -> str:
    """Return the name of system call *number*."""
    found = _seccomp().seccomp_syscall_resolve_num_arch(0, number)
    if not found:
        return f"system call {number}"
    name = ctypes.string_at(found).decode("ascii")
    _libc.free(ctypes.c_void_p(found))
    return name


def stop_at_steps(program: bytes) -> int:
    """Stop this process at the steps of *program*; return who is told of them."""
    loaded = _Program(len(program) // _INSTRUCTION_SIZE, program)
    # Root needs no promise to gain no privileges, which would bind what is started.
    listener: int = _libc.syscall(
        _seccomp().seccomp_syscall_resolve_name(b"seccomp"),
        _SET_FILTER,
        _NEW_LISTENER | _ALL_THREADS,
        ctypes.byref(loaded),
    )
    if listener < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "seccomp")
    return listener


@functools.cache
def compiled(harmless: frozenset[str]) -> bytes:
    """Return the kernel's program that stops at all calls but the *harmless* ones."""
    context = _seccomp().seccomp_init(_NOTIFY)
    for name in harmless:
        _rule(context, _NOTHING_DONE if name in _FLUSHES else _ALLOW, name)
    for name, condition in _HARMLESS_IF:
        _rule(context, _ALLOW, name, condition)
    descriptor = os.memfd_create("program")
    with os.fdopen(descriptor, "r+b") as file:
        _checked(_seccomp().seccomp_export_bpf(context, descriptor))
        _seccomp().seccomp_release(context)
        file.seek(0)
        return file.read()


def _rule(context: int, action: int, name: str, *conditions: Condition) -> None:
    number = _seccomp().seccomp_syscall_resolve_name(name.encode("ascii"))
    if number < 0:
        return  # this kind of processor has no such call
    array = (_Comparison * len(conditions))(
        *(_Comparison(*each) for each in conditions)
    )
    _checked(
        _seccomp().seccomp_rule_add_array(
            context, action, number, len(conditions), array
        )
    )


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(-result, os.strerror(-result), "libseccomp")
    return result
