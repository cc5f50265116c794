"""Paths at which the daemon itself has a volume mounted are no use of it by others."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from backends.system import mounts
from backends.system.mountinfo import Place
from plugin.fencing import processes, writers
from plugin.fencing.held import HeldVolume
from tests.fencing.world import WAIT_S, Volume
from tests.support.host import wait_until
from tests.support.namespaces import enter_private_mounts


@pytest.mark.parametrize(
    ("places", "gathered"),
    [
        ([], []),
        (
            [("/k/pods/a/v", "8:1", "/k/pods/a/v")],
            [("/k/pods/a/v", "8:1", "/k/pods/a/v")],
        ),
        (
            # The kubelet's directory is a disk of its own, or a part of one.
            [
                ("/k/pods/a/v", "8:1", "/x/pods/a/v"),
                ("/k/pods/b/w", "8:1", "/x/pods/b/w"),
            ],
            [("/k/pods", "8:1", "/x/pods")],
        ),
        (
            [("/k/a", "8:1", "/a"), ("/k/b", "8:2", "/b"), ("/m/c", "8:1", "/m/c")],
            [("/k/a", "8:1", "/a"), ("/k/b", "8:2", "/b"), ("/m/c", "8:1", "/m/c")],
        ),
        (
            [("/k", "8:1", "/"), ("/k/b", "8:1", "/b")],
            [("/k", "8:1", "/")],
        ),
    ],
)
def test_places_in_one_mount_are_one(
    places: list[tuple[str, str, str]], gathered: list[tuple[str, str, str]]
) -> None:
    found = writers._gathered([Place(*each) for each in places])
    assert sorted(each[:3] for each in found) == sorted(gathered)


def test_what_is_published_is_no_use_by_those_who_see_it(tmp_path: Path) -> None:
    """The mounts of pods come into the namespaces of the machine's services."""
    enter_private_mounts()
    live, root = tmp_path / "live", tmp_path / "kubelet"
    targets = [root / f"pods/{pod}/volume" for pod in "ab"]
    for each in (live, root, *targets):
        each.mkdir(parents=True, exist_ok=True)
    mounts.bind(root, root, suid=False)
    subprocess.run(["mount", "--make-shared", root], check=True, timeout=10)
    mounts.bind(live, live, suid=False)
    entry = mounts.mounted_at(live)
    assert entry is not None
    unshare = ["unshare", "--mount", "--propagation", "slave", "sleep", "60"]
    with subprocess.Popen(unshare) as service:
        wait_until(
            lambda: (
                processes.mount_namespace(service.pid)
                not in (0, processes.mount_namespace(os.getpid()))
            ),
            timeout_s=WAIT_S,
            what="it has a namespace",
        )
        for each in targets:
            mounts.bind(live, each, suid=False)
        held = HeldVolume("i", entry.device, entry.root, str(live), 0)
        found = writers.find([held], never=(), open_files=True)["i"]
        service.kill()
    for each in (*targets, live, root):
        mounts.unmount(each)
    assert found == writers.Writers()


@pytest.mark.parametrize("shown", ["pods", "pods/a", "pods/a/volume"])
def test_what_is_published_is_no_use_by_those_who_see_a_part(
    tmp_path: Path, shown: str
) -> None:
    """The containers of other drivers see the kubelet's directory and no more."""
    enter_private_mounts()
    volume = Volume.make(tmp_path)  # in the same filesystem, but not in that part
    root, seen = tmp_path / "kubelet", tmp_path / "seen"
    targets = [root / f"pods/{pod}/volume/mount" for pod in "ab"]
    for each in (seen, *targets):
        each.mkdir(parents=True)
    for each in targets:
        mounts.bind(volume.target, each, suid=False)
    script = f"mount --rbind {root / shown} {seen}; echo made; exec sleep 60"
    with subprocess.Popen(
        ["unshare", "--mount", "sh", "-ec", script], stdout=subprocess.PIPE
    ) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == b"made\n"
        found = writers.find([volume.held(60)], never=(), open_files=True)
        driver.kill()
    for each in (*targets, volume.target):
        mounts.unmount(each)
    assert found[volume.id] == writers.Writers()


def test_a_mount_in_two_of_our_places_is_a_copy_by_either(tmp_path: Path) -> None:
    """A place may be in another one, by the paths within their filesystem."""
    enter_private_mounts()
    volume = Volume.make(tmp_path)
    again = tmp_path / "again"
    again.mkdir()
    mounts.bind(tmp_path, again, suid=False)
    subprocess.run(["mount", "--make-private", again], check=True, timeout=10)
    other = again / "other"
    other.mkdir()
    mounts.bind(volume.live, other, suid=False)
    table = Path("/proc/self/mountinfo").read_bytes().splitlines()
    clues = writers._Clues([volume.held(60)])
    found = []
    for turn in (1, -1):
        points = writers._own_points([volume.held(60)], clues)
        space = writers._Namespace()
        own = writers._Own(points._replace(places=points.places[::turn]))
        for line in table:
            writers._note(space, line, clues, own)
        found.append(space.shown)
    for each in (other, again, volume.target):
        mounts.unmount(each)
    assert found == [set(), set()]
