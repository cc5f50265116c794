"""
Takes from this process system calls that no work on files needs.

A process with root's capabilities could mount, make namespaces in which it has all of
them, open files by their handles, or reach for other processes: this is the lock behind
the capabilities that a jail leaves. On machines other than those below, and kernels
without seccomp, there is none.

Source: linux/filter.h, linux/audit.h, asm/unistd.h.
"""

import errno
import os
import struct

from backends.system import libc

_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_JUMP_IF_AT_LEAST = 0x35
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000
# Places in what the kernel shows the filter.
_NUMBER_AT, _MACHINE_AT, _FIRST_ARGUMENT_AT = 0, 4, 16
# Numbers of another interface of the same kernel. Source: asm/unistd.h, x32.
_X32 = 0x40000000
_CLONE_NEWUSER = 0x10000000
# Call: its number on x86-64, and on arm64.
_REFUSED = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "io_uring_setup": (425, 425),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
}
# libc then uses `clone`, whose flags can be seen.
_CLONE, _CLONE3 = (56, 220), (435, 435)
_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
_Step = tuple[int, int, int, int]


def refuse() -> None:
    """Have the calls above fail with EPERM, in this process and what it starts."""
    machine = _MACHINES.get(os.uname().machine)
    if machine is None or struct.calcsize("P") != 8:
        return
    steps = _filter(*machine)
    libc.set_filter(len(steps), b"".join(struct.pack("=HBBI", *each) for each in steps))


def _filter(machine: int, column: int) -> list[_Step]:
    """Return the steps of the filter; jumps are counted from the step after."""
    numbers = sorted(numbers[column] for numbers in _REFUSED.values())
    # From a comparison to the steps at the end: `refused`, `absent`, `allowed`.
    end = 4 + len(numbers) + 4
    steps: list[_Step] = [
        (_LOAD, 0, 0, _MACHINE_AT),
        (_JUMP_IF_EQUAL, 0, end - 2, machine),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_JUMP_IF_AT_LEAST, end - 4, 0, _X32),
    ]
    steps += [
        (_JUMP_IF_EQUAL, end - len(steps) - at - 1, 0, number)
        for at, number in enumerate(numbers)
    ]
    steps += [
        (_JUMP_IF_EQUAL, 4, 0, _CLONE3[column]),
        (_JUMP_IF_EQUAL, 0, 4, _CLONE[column]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT_AT),
        (_JUMP_IF_ANY_BIT, 0, 2, _CLONE_NEWUSER),
        (_RETURN, 0, 0, _REFUSE | errno.EPERM),
        (_RETURN, 0, 0, _REFUSE | errno.ENOSYS),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return steps
