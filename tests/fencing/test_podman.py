"""Containers of Podman, which has no daemon: the kernel tells the guard of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.engine import test_podman
from tests.fencing import machine
from tests.fencing.test_guard import freeze_at_deadline
from tests.fencing.world import WRITE, kill_guard, new_id
from tests.support import debian_root, images
from tests.support.host import Host

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("engine-podman")]


class Podman(test_podman.Podman):
    """Podman alone: the volumes are directories that it is given."""

    def __init__(self, host: Host) -> None:
        self.host = host
        directory = host.path("/etc/containers/containers.conf.d")
        directory.mkdir(parents=True, exist_ok=True)
        text = test_podman.CONFIGURATION["machine.conf"]
        (directory / "machine.conf").write_text(text)
        image = host.work / "image.tar"
        image.write_bytes(images.busybox_image())
        self.podman("load", "--quiet", "--input", str(image))


@pytest.fixture
def podman() -> Iterator[Podman]:
    if shutil.which("mmdebstrap") is None:
        pytest.skip("needs mmdebstrap")
    with debian_root.chosen("bookworm"):
        host = Host()
    with host:
        podman = Podman(host)
        yield podman
        podman.podman("rm", "--all", "--force")


def test_containers_of_podman(podman: Podman) -> None:
    host = podman.host
    volume, other = machine.make_volume(host), machine.make_volume(host)
    for each, name in ((volume, "one"), (other, "two")):
        mount = ("-v", f"{each.target}:/v")
        words = podman.container("-d", "--name", name, *mount)
        podman.podman(*words, "sh", "-c", WRITE, "sh", "/v/stamps")
    run_dir = f"/run/{new_id()}"
    daemon = machine.start_daemon(host, run_dir)
    try:
        volume.wait_writing()
        freeze_at_deadline(daemon, volume)
        assert "stops /sys/fs/cgroup/" in daemon.guard_log()
        other.wait_writing()
        daemon.hold(volume.held(600))
        volume.wait_writing()
        daemon.hold(volume.held(0))
        written = volume.stamps()
        daemon.ask("kill", id=volume.id)
        daemon.wait_state(volume, "killed")
        assert podman.out("wait", "one") == "137"
        assert volume.stamps() == written
        other.wait_writing()
    finally:
        kill_guard(Path(run_dir))
        daemon.end()
        host.forget(daemon.process)
