"""What counts as a volume's mount, and as a usable control group."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import pytest

from backends.system import mounts
from backends.system.mountinfo import parse_mountinfo, sees_less
from plugin.fencing import cgroups, processes, writers
from plugin.fencing.cgroups import Hierarchy
from plugin.fencing.held import HeldVolume
from tests.fencing.world import HEADLESS, WAIT_S, Volume, container
from tests.support.host import wait_until
from tests.support.namespaces import enter_private_mounts

DISK = HeldVolume("i", "8:1", "/pool/i/live", "/mounts/i", 0)
SHARE = HeldVolume("i", "0:50", "/", "/mounts/i", 0, source="server:/export/i")


@pytest.mark.parametrize(
    ("volume", "line", "shows"),
    [
        (DISK, "8:1 /pool/i/live /v rw - ext4 /dev/sda1 rw", True),
        (DISK, "8:1 /pool/i/live/sub /v rw - ext4 /dev/sda1 rw", True),
        (DISK, "8:1 /pool/i/live2 /v rw - ext4 /dev/sda1 rw", False),
        (DISK, "8:1 / / rw - ext4 /dev/sda1 rw", False),
        (DISK, "8:2 /pool/i/live /v rw - ext4 /dev/sdb1 rw", False),
        # All volumes of a server are one device there, and every root is shown as /.
        (SHARE, "0:50 / /v rw - nfs4 server:/export/i rw", True),
        (SHARE, "0:50 / /v rw - nfs4 server:/export/i/sub rw", True),
        (SHARE, "0:51 / /v rw - nfs4 server:/export/i rw", True),
        (SHARE, "0:50 / /v rw - nfs4 server:/export/i2 rw", False),
        (SHARE, "0:50 / /v rw - nfs4 server:/export rw", False),
    ],
)
def test_a_mount_of_the_volume(volume: HeldVolume, line: str, shows: bool) -> None:
    text = f"100 50 {line}"
    [entry] = parse_mountinfo(text)
    assert writers._shows(entry, volume) == shows
    if shows:
        assert writers._clue(volume) in text.encode()


_MANY_MOUNTS = """
import ctypes, os
libc = ctypes.CDLL(None)
assert libc.mount(b"none", b"/", None, 0x44000, None) == 0
assert libc.mount(b"x", os.fsencode({at!r}), b"tmpfs", 0, None) == 0
os.chdir({at!r})
for _ in range(14):
    os.mkdir("n" * 250)
    os.chdir("n" * 250)
for number in range(2500):
    name = b"%d" % number
    os.mkdir(name)
    assert libc.mount(name, name, None, 4096, None) == 0
print("made", flush=True)
input()
"""


def test_a_long_table_of_somebody_s_takes_no_memory(tmp_path: Path) -> None:
    """The guard's is locked, and an unprivileged user may make namespaces."""
    enter_private_mounts()
    live, at = tmp_path / "live", tmp_path / "at"
    for directory in (live, at):
        directory.mkdir()
    mounts.bind(live, live, suid=False)  # in the namespace of the other one as well
    entry = mounts.entry_covering(live)
    held = HeldVolume("live", entry.device, entry.root, str(live), 0)
    program = [sys.executable, "-c", _MANY_MOUNTS.format(at=str(at))]
    with subprocess.Popen(
        ["unshare", "-m", *program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as somebody:
        assert somebody.stdout is not None
        assert somebody.stdout.readline() == b"made\n"
        size = len(Path(f"/proc/{somebody.pid}/mountinfo").read_bytes())
        tracemalloc.start()
        writers.find([held], never=(), open_files=False)
        mounts.users_of(live)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        somebody.kill()
    mounts.unmount(live)
    assert size > 8 * 2**20
    assert peak < size / 4


@pytest.mark.parametrize(
    ("script", "is_use"),
    [
        ("true", False),  # a service with private mounts
        ("mkdir $at/host; mount --rbind / $at/host", False),  # -v /:/host
        ("mount --bind $live $target", False),  # stacked by a daemon that was killed
        ("mkdir $at/data; mount --bind $live $at/data", True),
        ("mkdir -p $at/x/$id; mount --bind $live $at/x/$id", True),  # -v db:/x/<id>
        ("mkdir -p $at/mounts/x; mount --bind $live $at/mounts/x", True),
        (
            "mount -t tmpfs x $at/mounts; mkdir $target; mount --bind $live $target",
            True,  # a container that has our path, in a filesystem of its own
        ),
    ],
)
def test_a_copy_of_our_mount_is_no_use_whatever_a_container_calls_its_own(
    tmp_path: Path, script: str, is_use: bool
) -> None:
    enter_private_mounts()
    volume = Volume.make(tmp_path)
    names = {"at": tmp_path, "live": volume.live, "target": volume.target}
    with subprocess.Popen(
        ["unshare", "-m", "sh", "-ec", f"{script}; echo made; read line"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "id": volume.id, **{key: str(names[key]) for key in names}},
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"made\n"
        users = mounts.users_of_root(
            volume.root, device=volume.device, own=(volume.target,)
        )
        found = writers.find([volume.held(60)], never=(), open_files=False)
        other.communicate(b"\n", timeout=10)
    assert [each.pid for each in users] == ([other.pid] if is_use else [])
    assert bool(found[volume.id].namespaces) == is_use


def test_who_goes_on_without_a_first_thread_is_seen(tmp_path: Path) -> None:
    """With its mounts, and with the files of a thread that shares none."""
    enter_private_mounts()
    volume = Volume.make(tmp_path)
    apart = (
        "import ctypes, os, sys, threading, time; libc = ctypes.CDLL(None)\n"
        "def work():\n"
        "  libc.unshare(0x400); os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n"
        "  print('open', flush=True); time.sleep(600)\n"
        "threading.Thread(target=work).start(); time.sleep(600)"
    )
    opened = [sys.executable, "-S", "-c", apart, str(volume.target / "file")]
    with (
        container(volume, HEADLESS) as inside,
        subprocess.Popen(opened, stdout=subprocess.PIPE) as outside,
    ):
        assert outside.stdout is not None
        assert outside.stdout.readline() == b"open\n"
        stat = Path(f"/proc/{inside.pid}/stat")
        wait_until(
            lambda: stat.read_text().rpartition(") ")[2][0] == "Z",
            timeout_s=WAIT_S,
            what="its first thread has ended",
        )
        users = mounts.users_of_root(
            volume.root, device=volume.device, own=(volume.target,)
        )
        [found] = writers.find([volume.held(60)], never=(), open_files=False).values()
        paths = [*writers._open_paths(outside.pid)]
        process = processes.look(inside.pid)
        outside.kill()
    assert [each.pid for each in users] == [inside.pid]
    assert found.namespaces
    assert str(volume.target / "file") in paths
    assert process is not None
    assert process.alive


def test_a_thread_with_mounts_of_its_own_is_a_user(tmp_path: Path) -> None:
    """So dockerd copies files of a container, beside all that it does else."""
    enter_private_mounts()
    volume = Volume.make(tmp_path)
    (tmp_path / "seen").mkdir()
    script = (
        "import ctypes, os, subprocess, sys, threading; libc = ctypes.CDLL(None)\n"
        "def work():\n"
        "  assert libc.unshare(0x20200) == 0\n"
        "  assert libc.mount(b'x', b'/', None, 0x44000, None) == 0\n"
        "  assert libc.mount(*map(os.fsencode, sys.argv[1:]), None, 4096, None) == 0\n"
        "  print('mounted', flush=True); sys.stdin.readline()\n"
        "threading.Thread(target=work).start()"
    )
    command = [sys.executable, "-S", "-c", script, str(volume.live)]
    with subprocess.Popen(
        [*command, str(tmp_path / "seen")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"mounted\n"
        users = mounts.users_of_root(
            volume.root, device=volume.device, own=(volume.target,)
        )
        other.communicate(b"\n", timeout=10)
    assert [each.pid for each in users] == [other.pid]


def test_a_thread_that_sees_less_of_its_mounts_hides_no_user(tmp_path: Path) -> None:
    """It has a root of its own, and its process another one."""
    enter_private_mounts()
    volume = Volume.make(tmp_path)
    for name in ("seen", "rooted"):
        (tmp_path / name).mkdir()
    script = (
        "import ctypes, os, subprocess, sys, threading; libc = ctypes.CDLL(None)\n"
        "def work():\n"
        "  assert libc.unshare(0x20200) == 0\n"
        "  assert libc.mount(b'x', b'/', None, 0x44000, None) == 0\n"
        "  at = [*map(os.fsencode, sys.argv[1:])]\n"
        "  for each in (at[:2], [at[2], at[2]]):\n"
        "    assert libc.mount(*each, None, 4096, None) == 0\n"
        "  if (child := os.fork()) == 0: os.execlp('cat', 'cat')\n"
        "  os.chroot(at[2])\n"
        "  print(child, flush=True); os.waitpid(child, 0)\n"
        "threading.Thread(target=work).start()"
    )
    command = [sys.executable, "-S", "-c", script, str(volume.live)]
    with subprocess.Popen(
        [*command, str(tmp_path / "seen"), str(tmp_path / "rooted")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        child = int(other.stdout.readline())
        users = mounts.users_of_root(
            volume.root, device=volume.device, own=(volume.target,)
        )
        other.communicate(timeout=10)
    assert [each.pid for each in users] == [child]


# It has a root of its own, but its first thread has ended; then it makes `ended`.
_ROOTED_HEADLESS = """
import ctypes, os, sys, threading, time
stat = open("/proc/self/stat")
ctypes.CDLL("libgcc_s.so.1")  # pthread_exit needs it
os.chroot(sys.argv[1])
def work():
    while stat.read().rpartition(") ")[2][0] != "Z":
        stat.seek(0)
    os.mkdir("/in/ended")
    time.sleep(600)
threading.Thread(target=work).start()
ctypes.CDLL(None).pthread_exit(None)
"""


@pytest.mark.parametrize(
    "script",
    ["$rooted & exec sleep 60", "sleep 60 & exec $rooted", "$headless & exec sleep 60"],
)
def test_a_process_with_a_root_of_its_own_hides_no_volume(
    tmp_path: Path, script: str
) -> None:
    """Its table ends at that root; another process's shows the whole."""
    enter_private_mounts()
    volume = Volume.make(tmp_path)
    new, data = tmp_path / "new", tmp_path / "data"
    rooted = f"busybox chroot {new} /busybox sleep 60"
    headless = shlex.join([sys.executable, "-S", "-c", _ROOTED_HEADLESS, str(new)])
    made = (
        f"mkdir -p {new}/in {data}; mount --bind {volume.live} {data};"
        f" mount --bind {new}/in {new}/in; cp $(command -v busybox) {new}/busybox;"
        f" {script.replace('$rooted', rooted).replace('$headless', headless)}"
    )
    with subprocess.Popen(
        ["unshare", "-m", "sh", "-ec", made], start_new_session=True
    ) as other:
        try:
            wait_until(
                lambda: (
                    (new / "in/ended").exists()
                    if "headless" in script
                    else sum(map(sees_less, pids_of_session(other.pid))) == 1
                ),
                timeout_s=20,
                what="one has its own root",
            )
            users = mounts.users_of_root(
                volume.root, device=volume.device, own=(volume.target,)
            )
            found = writers.find([volume.held(60)], never=(), open_files=False)
        finally:
            os.killpg(other.pid, signal.SIGKILL)
    assert [each.mount_point for each in users] == [str(data)]
    assert len(found[volume.id].namespaces) == 1


def test_a_thread_that_was_made_last_is_no_process_of_its_own(tmp_path: Path) -> None:
    """It has no signals of its own, and one of the daemon's is the daemon."""
    enter_private_mounts()
    volume = Volume.make(tmp_path)
    found = set()
    with (volume.target / "file").open("w"):
        for _ in range(20):
            go_on = threading.Event()
            thread = threading.Thread(target=go_on.wait)
            thread.start()
            [each] = writers.find([volume.held(60)], never=(), open_files=True).values()
            found |= each.pids & {thread.native_id}
            go_on.set()
            thread.join()
    assert found == set()


def pids_of_session(session: int) -> list[int]:
    listed = ["ps", "-o", "pid=", "-s", str(session)]
    done = subprocess.run(listed, capture_output=True, timeout=20, check=True)
    return [int(each) for each in done.stdout.split()]


@pytest.mark.parametrize(
    ("root", "ids"),
    [("/pool/a", {"a"}), ("/pool/a/below", {"a", "below"}), ("/pool/b", set())],
)
def test_one_clue_may_begin_another(root: str, ids: set[str]) -> None:
    volumes = [
        HeldVolume("a", "8:1", "/pool/a", "/mounts/a", 0),
        HeldVolume("below", "8:1", "/pool/a/below", "/mounts/below", 0),
    ]
    space = writers._Namespace()
    line = f"100 50 8:1 {root} /v rw - ext4 /dev/sda1 rw\n".encode()
    nothing = writers._Points({}, [])
    writers._note(space, line, writers._Clues(volumes), writers._Own(nothing))
    assert space.shown == ids


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_the_group_of_a_process(
    kind: cgroups.Kind, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the part of the hierarchy that is mounted; what is not in it has none."""
    inside = tmp_path / "docker" / "x"
    inside.mkdir(parents=True)
    name = {"v1": "freezer.state", "v2": "cgroup.freeze"}[kind]
    (inside / name).touch()
    line = {"v1": "7:cpu,freezer:{}", "v2": "0::{}"}[kind]

    def group(path: str, root: str) -> str | None:
        text = "1:name=systemd:/elsewhere\n" + line.format(path) + "\n"
        monkeypatch.setattr(cgroups.processes, "read", lambda _: text.encode())
        return cgroups.group_of(os.getpid(), Hierarchy(kind, root, str(tmp_path)))

    assert group("/docker/x", "/") == str(inside)
    assert group("/outer/docker/x", "/outer") == str(inside)
    assert group("/outer/docker/x", "/out") is None
    assert group("/docker/gone", "/") is None
    assert group("/../docker/x", "/") is None
    # The topmost one cannot be frozen.
    assert group("/", "/") is None
