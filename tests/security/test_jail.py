"""What a program in a jail sees, and what it is not able to do there."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backends.system import system_calls
from backends.system.mountinfo import parse_mountinfo
from backends.system.mounts import users_of
from tests.support.host import REPOSITORY, wait_until
from tests.support.peers import COMMAND_DEADLINE_S, require_programs
from tests.support.processes import descendants, gone


def in_jail(staging: Path, script: str) -> list[str]:
    """Return the command that does *script* where rsync would be."""
    program = (
        f"import sys, os; sys.path.insert(0, {str(REPOSITORY)!r});"
        "from backends.system import jail;"
        "jail.enter(jail.Shown('staging', sys.argv[1], writable=True),"
        " jail.Shown('basis/tree', sys.argv[2]), capabilities=jail.WRITING,"
        " programs=True); os.chdir('/staging');"
        "os.execve('/bin/sh', ['sh', '-c', sys.argv[3]], {'PATH': '/usr/bin'})"
    )
    python = [sys.executable, "-IS", "-c", program]
    return [*python, str(staging), str(staging.parent), script]


def run_in_jail(staging: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Return what *script* does where rsync would be."""
    return subprocess.run(
        in_jail(staging, script),
        capture_output=True,
        text=True,
        timeout=COMMAND_DEADLINE_S,
        check=False,
    )


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    require_programs()
    directory = tmp_path / "pool/staging/x"
    directory.mkdir(parents=True)
    (tmp_path / "pool/precious").write_text("kept")
    return directory


def test_the_jail_has_programs_and_one_directory(staging: Path) -> None:
    done = run_in_jail(staging, "pwd; ls /; ls -a ..; echo in > file; cat /etc/passwd")
    assert done.stdout.split("\n")[0] == "/staging"
    listed = set(done.stdout.split())
    assert {"staging", "usr", "lib"} <= listed
    assert not {"etc", "proc", "sys", "tmp", "var", "run", "root"} & listed
    assert "passwd: No such file" in done.stderr
    assert (staging / "file").read_text() == "in\n"


@pytest.mark.parametrize(
    "path",
    [
        *("/x", "/usr/x", "/usr/bin/x", "/lib/x", "../x", "../../precious"),
        *("/staging/../x", "/bin/sh", "/usr/bin/rsync", "/tmp/x", "/basis/y"),
    ],
)
def test_outside_of_it_nothing_can_be_written(staging: Path, path: str) -> None:
    done = run_in_jail(staging, f"echo evil > {path}")
    assert done.returncode != 0
    assert "Read-only file system" in done.stderr or "nonexistent" in done.stderr
    assert (staging.parent.parent / "precious").read_text() == "kept"


@contextmanager
def waiting_in_jail(staging: Path) -> Iterator[tuple[int, int]]:
    """Yield who waits for a program in a jail, and that one's process."""
    with subprocess.Popen(
        in_jail(staging, "echo here; read line"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        [child] = descendants(process.pid)
        yield process.pid, child
        process.communicate("\n", timeout=COMMAND_DEADLINE_S)


def test_a_jail_ends_with_who_waits_for_it(staging: Path) -> None:
    with waiting_in_jail(staging) as (caller, pid):
        os.kill(caller, signal.SIGKILL)
        wait_until(lambda: gone([pid]), timeout_s=20, what="it has ended")


def test_how_a_program_in_a_jail_ends_is_told(staging: Path) -> None:
    assert run_in_jail(staging, "exit 24").returncode == 24
    # The first process of a namespace gets no signal from itself; its child does.
    assert run_in_jail(staging, "sh -c 'kill -9 $$'; exit $?").returncode == 137


def test_who_kills_its_process_group_ends_nothing_outside(staging: Path) -> None:
    done = subprocess.run(
        in_jail(staging, "sh -c 'kill -9 0'; echo lives"),
        capture_output=True,
        text=True,
        timeout=COMMAND_DEADLINE_S,
        start_new_session=True,  # which would be killed
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "lives\n")


def test_who_is_killed_with_its_caller_stays_so_as_another_user() -> None:
    program = (
        f"import sys, signal; sys.path.insert(0, {str(REPOSITORY)!r})\n"
        "from backends.system import jail, libc\n"
        "for ordered in 0, signal.SIGKILL:\n"
        "    libc.set_death_signal(ordered)\n"
        "    with jail.as_user(1000, 1000):\n"
        "        print(libc.death_signal())\n"
        "    print(libc.death_signal())\n"
    )
    done = subprocess.run(
        [sys.executable, "-IS", "-c", program],
        capture_output=True,
        text=True,
        timeout=COMMAND_DEADLINE_S,
        check=True,
    )
    assert done.stdout.split() == ["0", "0", "9", "9"]


def test_a_jail_is_no_user_of_what_it_shows(staging: Path) -> None:
    with waiting_in_jail(staging):
        assert users_of(staging) == []


def test_whoever_names_a_root_as_a_jail_does_is_still_a_user(
    staging: Path, tmp_path: Path
) -> None:
    """A container that may mount can do so; it is not below us."""
    (tmp_path / "seen").mkdir()
    script = (
        f"mount --bind {staging} {tmp_path}/seen; mount -t tmpfs remora-jail /run;"
        " echo $$; exec sleep 60"
    )
    unshared = f"unshare -m --propagation private sh -c '{script}'"
    done = subprocess.run(
        ["sh", "-c", f"{unshared} > {tmp_path}/pid 2> {tmp_path}/errors &"],
        timeout=COMMAND_DEADLINE_S,
        check=True,
    )
    assert done.returncode == 0
    told = tmp_path / "pid"
    wait_until(
        lambda: told.exists() and told.read_text() != "",
        timeout_s=20,
        what="it has mounted",
    )
    pid = int(told.read_text())
    try:
        assert [each.pid for each in users_of(staging)] == [pid]
    finally:
        os.kill(pid, signal.SIGKILL)


def test_no_mount_of_the_machine_is_left_in_there(staging: Path) -> None:
    with waiting_in_jail(staging) as (_, pid):
        table = Path(f"/proc/{pid}/mountinfo").read_text()
        for each in ("mnt", "net", "pid"):
            own = Path(f"/proc/self/ns/{each}").stat().st_ino
            assert Path(f"/proc/{pid}/ns/{each}").stat().st_ino != own
    points = {each.mount_point for each in parse_mountinfo(table)}
    allowed = {"/", "/basis/tree", "/staging"}
    allowed |= {f"/{each}" for each in ("usr", "bin", "sbin", "lib", "lib32", "lib64")}
    assert {"/", "/staging", "/usr"} <= points <= allowed | {"/libx32"}
    assert "/staging" not in Path("/proc/self/mountinfo").read_text()


def python_in_jail(staging: Path, script: str) -> str:
    """Return what the Python *script* prints in a jail with *staging* at /staging."""
    program = (
        f"import sys, os, errno; sys.path.insert(0, {str(REPOSITORY)!r})\n"
        "from backends.system import jail, libc\n"
        "import fcntl, socket\n"
        "outside = os.open('/etc', os.O_PATH)\n"
        "outside_pid = os.getppid()\n"
        "jail.enter(jail.Shown('staging', sys.argv[1], writable=True),"
        " capabilities=jail.WRITING, own_files=True)\n"
        "def device():\n"
        "    os.mknod('/staging/d', 0o20666, os.makedev(1, 3))\n"
        "def says(action):\n"
        "    try:\n"
        "        print('done', action())\n"
        "    except OSError as error:\n"
        "        print(errno.errorcode[error.errno])\n"
        f"{script}"
    )
    done = subprocess.run(
        [sys.executable, "-IS", "-c", program, str(staging)],
        capture_output=True,
        text=True,
        timeout=COMMAND_DEADLINE_S,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("action", "answer"),
    [
        # A device can be made, for a copy has to be whole, but not opened.
        ("os.mknod('/staging/d', 0o20666, os.makedev(1, 3))", "done None"),
        ("open(['/staging/d', device()][0], 'rb')", "EACCES"),
        # What is refused looks as if the kernel had no such call.
        ("libc.mount(b'x', b'/staging', b'tmpfs', 0)", "ENOSYS"),
        ("libc.umount(b'/staging', libc.MNT_DETACH)", "ENOSYS"),
        ("libc.call('unshare', 0x10000000)", "ENOSYS"),  # CLONE_NEWUSER
        ("libc.call('setns', 0, 0)", "ENOSYS"),
        ("libc.call('chroot', b'/staging')", "ENOSYS"),
        ("libc.call('open_by_handle_at', 0, b'', 0)", "ENOSYS"),
        ("libc.call('ptrace', 16, os.getppid(), 0, 0)", "ENOSYS"),
        # open_tree_attr(2), Linux 6.15, undoes read-only, nodev, nosuid and noexec.
        ("libc.call('syscall', 467, -100, b'/staging', 1, bytes(32), 32)", "ENOSYS"),
        # Commands to a disk, to a file; FIOQSIZE, which every file answers, is one.
        ("fcntl.ioctl(os.open('/staging', 0), 0x5460, bytes(8))", "ENOTTY"),
        ("fcntl.ioctl(os.pipe()[0], 0x5421, bytes(4))", "done b'\\x00\\x00\\x00\\x00'"),
        ("(os.getpid(), os.getppid())", "done (1, 0)"),  # and so it has nobody to kill
        ("os.kill(outside_pid, 0)", "ESRCH"),
        ("libc.call('shmget', 0, 1, 0o600)", "ENOSYS"),
        # What is connected to its peer alone, and no datagram to anywhere.
        ("[each.send(b'x') for each in socket.socketpair()]", "done [1, 1]"),
        ("socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)", "EPERM"),
        ("socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)", "EPERM"),
        ("socket.socketpair(socket.AF_UNIX, socket.SOCK_RAW)", "EPERM"),
        ("socket.socketpair(socket.AF_VSOCK, socket.SOCK_STREAM)", "EPERM"),
        ("socket.socketpair(socket.AF_TIPC, socket.SOCK_STREAM)", "EPERM"),
        ("socket.socketpair()[0].sendto(b'x', '/staging/socket')", "EPERM"),
        ("os.stat('/dev/null')", "ENOENT"),
        ("os.setxattr('/staging', 'trusted.x', b'1')", "done None"),
        ("os.seteuid(1000)", "EPERM"),
        ("socket.socket(socket.AF_UNIX)", "ENOSYS"),
        ("os.mkdir('/new')", "EROFS"),
        ("os.open('/staging/../etc', 0)", "ENOENT"),
    ],
)  # fmt: skip
def test_what_it_may_do(staging: Path, action: str, answer: str) -> None:
    assert python_in_jail(staging, f"says(lambda: {action})") == f"{answer}\n"


def test_a_process_with_all_capabilities_of_its_own_cannot_be_made(
    staging: Path,
) -> None:
    # clone(2) with CLONE_NEWUSER, where unshare(2) is refused already.
    script = (
        "number = {'x86_64': 56, 'aarch64': 220}[os.uname().machine]\n"
        "says(lambda: libc.call('syscall', number, 0x10000000 | 17, 0, 0, 0, 0))"
    )
    assert python_in_jail(staging, script) == "EPERM\n"


@pytest.mark.parametrize("machine", [*system_calls._MACHINES])
def test_the_calls_that_are_allowed_have_their_numbers(machine: str) -> None:
    library = ctypes.CDLL("libseccomp.so.2")
    resolve = library.seccomp_syscall_resolve_name_arch
    resolve.argtypes = (ctypes.c_uint32, ctypes.c_char_p)
    code, column = system_calls._MACHINES[machine]
    words = system_calls._ALLOWED.split()
    for each in (*system_calls._IF, system_calls._IOCTL):
        words += map(str, each)
    for name, number in zip(words[::3], words[column::3], strict=True):
        # It has less than 0 for calls that this machine, or the library, has not.
        known = resolve(code, name.encode())
        assert number == (str(known) if known >= 0 else "-"), name


@pytest.mark.parametrize(
    ("program", "slow"),
    [
        ("backends.system.jailed", "dataclasses inspect pathlib socket subprocess"),
        ("backends.nfs.agent.unmount", "collections re typing"),
    ],
)
def test_a_program_of_ours_is_quick_to_load(program: str, slow: str) -> None:
    """These modules together take longer to load than a bare Python takes to start."""
    script = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n"
        f"import {program}; print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-IS", "-c", script],
        capture_output=True,
        text=True,
        timeout=COMMAND_DEADLINE_S,
        check=True,
    )
    assert not set(slow.split()) & set(done.stdout.split())


def test_the_place_that_is_shown_may_not_lead_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "top/real/below").mkdir(parents=True)
    (tmp_path / "top/link").symlink_to("/etc")
    (tmp_path / "top/real/up").symlink_to("..")
    program = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n"
        "from backends.system import jail\n"
        "try: jail.enter(jail.Shown('x', *sys.argv[1:3]), capabilities=())\n"
        "except OSError as error: print(error.strerror)"
    )
    answers = {}
    for path in ("real/below", "link", "link/ssl", "real/up", "real/../..", "/etc"):
        done = subprocess.run(
            [sys.executable, "-IS", "-c", program, str(tmp_path / "top"), path],
            capture_output=True,
            text=True,
            timeout=COMMAND_DEADLINE_S,
            check=False,
        )
        answers[path] = done.stdout.strip() + done.stderr
    assert answers.pop("real/below") == ""
    wrong = {"Too many levels of symbolic links", "Invalid cross-device link"}
    wrong.add("Not a directory")  # the link itself, as O_DIRECTORY sees it
    assert set(answers.values()) <= wrong, answers
