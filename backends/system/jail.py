"""
A root of its own, for a program that touches a tree which others can write to.

Whatever that tree leads the program into (a link to /etc, a name with `..`, a directory
that becomes a link meanwhile, a device), it ends inside of the jail: an empty root in
memory, and in it the directories that the program was given. There is no network, no
other process, and of root's capabilities those that are named. ADR 23 says who works in
one.

Standard library alone and quick to import: programs that start in a bare Python use it.
Source: mount(2), pivot_root(2), namespaces(7), capabilities(7), seccomp(2).
"""

import errno
import os
import signal
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from backends.system import libc, mount_namespace, system_calls
from backends.system.beneath import open_beneath

# How the tables of mounts show a jail: no user of a volume, whatever is mounted in it.
ROOT_SOURCE: Final = "remora-jail"
# Programs and their libraries: directories, or links into /usr.
_PROGRAM_DIRECTORIES = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
# Where a jail is made before it becomes the root.
MOUNT_POINT: Final = "/run"
# CLONE_NEWPID and CLONE_NEWNET. Source: linux/sched.h.
_NEW_PROCESSES, _NEW_NETWORK = 0x20000000, 0x40000000
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38

# Source: linux/capability.h.
CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETGID, SETUID = 0, 1, 3, 4, 6, 7
SYS_ADMIN, MKNOD, SETFCAP = 21, 27, 31
# What it takes to read everything, `trusted.*` attributes included. DAC_READ_SEARCH
# would do for a part, but opens any file of the disk by its handle.
READING: Final = frozenset({DAC_OVERRIDE, SYS_ADMIN})
# And to make files of any kind, owner and mode.
WRITING: Final = READING | {CHOWN, FOWNER, FSETID, MKNOD, SETFCAP}
# And to act as their owner, where a server makes nobody of root.
WRITING_AS_OWNER: Final = WRITING | {SETUID, SETGID}


class Shown(NamedTuple):
    """
    The directory *path* below the trusted directory *top*, at `/name` in the jail.

    Or the file, if it *is_file*. No component of *path* may be a link. It is looked up
    as user *uid* and group *gid*.
    """

    name: str
    top: str
    path: str = ""
    writable: bool = False
    uid: int = 0
    gid: int = 0
    is_file: bool = False


def enter(
    *shown: Shown,
    capabilities: Collection[int],
    programs: bool = False,
    own_files: bool = False,
) -> None:
    """
    Confine this process, which has one thread, to the directories *shown*.

    It goes on as a child, which sees no other process; the one that called ends as the
    child does. It keeps *capabilities*. With *programs* it sees the machine's programs
    and their libraries, and /dev/null as an empty file, with *own_files* what it has
    open, as /proc/self/fd.

    Raises:
        OSError: a directory is not there, or the kernel refuses.

    """
    _become_first_process()
    mount_namespace.enter_own_mounts()
    libc.call("unshare", _NEW_NETWORK, about="network")
    opened = [(each, _open(each)) for each in shown]
    own = _own_files() if own_files else -1
    mount_namespace.mount_memory(MOUNT_POINT, "mode=0755", source=ROOT_SOURCE)
    if programs:
        _show_programs()
    for each, place in opened:
        target = f"{MOUNT_POINT}/{each.name}"
        if each.is_file:
            _make_file(target)
        else:
            os.makedirs(target)
        mount_namespace.bind(place, target, read_only=not each.writable)
        os.close(place)
    if own >= 0:
        os.makedirs(f"{MOUNT_POINT}/proc/self/fd")
        mount_namespace.bind(own, f"{MOUNT_POINT}/proc/self/fd")
        os.close(own)
    mount_namespace.pivot(MOUNT_POINT)
    mount_namespace.restrict("/", read_only=True)
    _give_up_all_but(capabilities)
    system_calls.refuse()


def die_with_caller() -> None:
    """Be killed when the process, or the thread, ends that started this one."""
    libc.set_death_signal(signal.SIGKILL)


@contextmanager
def as_user(uid: int, gid: int) -> Iterator[None]:
    """Work as that user, unless we do so already."""
    if not uid or os.geteuid() != 0:
        yield
        return
    # Each change undoes what was ordered for the end of our caller.
    ordered = libc.death_signal()
    os.setegid(gid)
    os.seteuid(uid)
    libc.set_death_signal(ordered)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        libc.set_death_signal(ordered)


def _become_first_process() -> None:
    """Go on as the first process of a namespace; when it ends, all in there do."""
    libc.call("unshare", _NEW_PROCESSES, about="processes")
    child = os.fork()
    if child == 0:
        die_with_caller()
        os.setsid()  # a signal to one's process group leaves the namespace
        return
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os._exit(status if status >= 0 else 128 - status)


def _open(shown: Shown) -> int:
    flags = os.O_PATH | os.O_NOFOLLOW
    top = os.open(shown.top, flags | os.O_DIRECTORY)
    if not shown.path:
        return top
    if not shown.is_file:
        flags |= os.O_DIRECTORY
    try:
        with as_user(shown.uid, shown.gid):
            return open_beneath(shown.path, flags, top=top)
    finally:
        os.close(top)


def _make_file(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444))


def _own_files() -> int:
    # Not by our number, which is another one in the machine's /proc.
    return os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY)


def _show_programs() -> None:
    # The machine's own is a device that root in here could take from everybody.
    os.mkdir(f"{MOUNT_POINT}/dev")
    _make_file(f"{MOUNT_POINT}{os.devnull}")
    for name in _PROGRAM_DIRECTORIES:
        source, target = f"/{name}", f"{MOUNT_POINT}/{name}"
        if os.path.islink(source):
            os.symlink(os.readlink(source), target)
        elif os.path.isdir(source):
            os.mkdir(target)
            directory = os.open(source, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
            mount_namespace.bind(directory, target, read_only=True, programs=True)
            os.close(directory)


def _give_up_all_but(capabilities: Collection[int]) -> None:
    """Keep *capabilities* alone, also for programs that this one becomes."""
    for each in range(libc.CAPABILITIES_MAX):
        if each not in capabilities:
            try:
                libc.call("prctl", _PR_CAPBSET_DROP, each, 0, 0, 0, about="prctl")
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                break  # the kernel knows no more of them
    libc.set_capabilities(capabilities)
    libc.call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, about="prctl")
