"""
Podman with volumes of the same daemon: 4.3 of Debian 12 and 5.8 of Debian sid.

Podman speaks Docker's volume protocol with habits of its own: it activates the plugin
with every command and hangs up while it is answered, sends one id for every mount,
counts itself, and takes for an error only what has another status than 200.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import debian_root, images
from tests.support.daemon import CONTROL_SOCKET, MOUNTS, PLUGIN_SOCKET, Daemon
from tests.support.engine import started_engine
from tests.support.guides import Printed, changed
from tests.support.host import Host, checked, wait_until
from tests.support.images import BUSYBOX_IMAGE

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("engine-podman")]

VERSIONS = {"bookworm": "4.3.", "sid": "5."}
GRACE_S = 1
# What an administrator writes (docs/guides/engines.md), and what a machine without
# systemd and with version 1 of cgroups needs.
CONFIGURATION = {
    "remora.conf": f"""
[engine]
volume_plugin_timeout = 110
[engine.volume_plugins]
remora = "{PLUGIN_SOCKET}"
""",
    "machine.conf": """
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
""",
}


class Podman:
    """Podman and the daemon in one host."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.daemon = Daemon(
            host, reconcile_interval_s=0.3, disuse_grace_s=str(GRACE_S)
        )
        self.daemon.start()
        directory = host.path("/etc/containers/containers.conf.d")
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in CONFIGURATION.items():
            (directory / name).write_text(text)
        image = host.work / "image.tar"
        image.write_bytes(images.busybox_image())
        self.podman("load", "--quiet", "--input", str(image))

    def podman(
        self, *args: str, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        done = self.host.run(
            ["podman", *args],
            timeout_s=60,
            check=False,
            env={"PODMAN_IGNORE_CGROUPSV1_WARNING": "1"},
        )
        return checked(done) if check else done

    def out(self, *args: str) -> str:
        return self.podman(*args).stdout.rstrip("\n")

    def error(self, *args: str) -> str:
        done = self.podman(*args, check=False)
        assert done.returncode != 0, done.stdout
        return done.stderr.strip()

    def create(self, name: str, *options: str) -> None:
        created = self.out("volume", "create", "--driver", "remora", *options, name)
        assert created == name

    def container(self, *options: str) -> tuple[str, ...]:
        """Return the words that make a container with *options*."""
        parent = ("--cgroup-parent", self.host.cgroup_parent)
        return ("run", "--network", "none", *parent, *options, BUSYBOX_IMAGE)

    def shell(self, volume: str, script: str, *, target: str = "/v") -> str:
        words = self.container("--rm", "-v", f"{volume}:{target}")
        return self.out(*words, "sh", "-euc", script)

    def hold(self, volume: str, name: str) -> None:
        self.podman(*self.container("-d", "--name", name, "-v", f"{volume}:/v"))

    def references(self, volume: str) -> dict[str, int]:
        return self.volume(volume)["references"]

    def volume(self, name: str) -> dict[str, Any]:
        return self.daemon.control("GET", f"/v1/volumes/{name}")[1]

    def mounted(self) -> list[str]:
        """Return what is mounted below the daemon's directory, and mount points."""
        mounts = {entry.mount_point for entry in self.host.mounts(MOUNTS)}
        left = {f"{MOUNTS}/{path.name}" for path in self.host.path(MOUNTS).iterdir()}
        return sorted(mounts | left)

    def remove_everything(self) -> None:
        if not self.daemon.running:
            self.daemon.start()
        self.podman("rm", "--all", "--force")
        self.podman("volume", "rm", "--all", "--force")
        for volume in self.daemon.cli_json("ls"):
            self.daemon.cli("rm", "--force", volume["name"])


@pytest.fixture(scope="module", params=VERSIONS)
def only_podman(request: pytest.FixtureRequest) -> Iterator[Podman]:
    if shutil.which("mmdebstrap") is None:
        pytest.skip("needs mmdebstrap")
    with debian_root.chosen(request.param):
        host = Host()
    with host:
        podman = Podman(host)
        version = podman.out("version", "--format", "{{.Client.Version}}")
        assert version.startswith(VERSIONS[request.param])
        yield podman


@pytest.fixture
def podman(only_podman: Podman) -> Iterator[Podman]:
    """Return Podman without containers and volumes; nothing may be left mounted."""
    begin = len(only_podman.daemon.log.read_text())
    yield only_podman
    only_podman.remove_everything()
    assert only_podman.mounted() == []
    written = only_podman.daemon.log.read_text()[begin:].splitlines()
    assert [line for line in written if json.loads(line)["level"] == "error"] == []


@pytest.mark.printed("engines.md", "Podman")
def test_what_the_guide_says(podman: Podman, printed: Printed) -> None:
    """But for a network and version 2 of cgroups, which the machine lacks."""
    podman.podman("tag", BUSYBOX_IMAGE, "docker.io/library/busybox")
    words = podman.container()
    given = {"podman run": " ".join(("podman", *words[:-1]))}
    for each in printed.rest():
        podman.host.run(["sh", "-euc", changed(each.text, given)], timeout_s=60)
    assert podman.shell("data", "cat /v/greeting") == "hello"


def test_a_volumes_whole_life(podman: Podman) -> None:
    podman.create("data", "--opt", "mode=0750", "--opt", "uid=1000")
    assert "data" in podman.out("volume", "ls", "--filter", "driver=remora")
    podman.shell("data", "echo kept > /v/file; sync")
    assert podman.mounted() == []
    assert podman.shell("data", "cat /v/file; stat -c '%a %u' /v") == "kept\n750 1000"
    [shown] = json.loads(podman.out("volume", "inspect", "data"))
    assert (shown["Driver"], shown["Timeout"]) == ("remora", 110)
    assert shown["Status"]["options"]["mode"] == "0750"
    podman.podman("volume", "rm", "data")
    assert podman.daemon.call("List", {}) == {"Volumes": []}


def test_the_image_content_is_copied_into_a_new_volume(podman: Podman) -> None:
    podman.create("data")
    script = "stat -c '%u:%g:%a' /seed/owned; readlink /seed/link"
    assert podman.shell("data", script, target="/seed") == "1000:1001:640\nplain"
    assert podman.shell("data", "cat /v/plain") == "from the image"


def test_a_volume_is_mounted_until_its_last_container_stops(podman: Podman) -> None:
    podman.create("data")
    podman.hold("data", "one")
    podman.hold("data", "two")
    podman.podman("exec", "one", "sh", "-c", "echo shared > /v/file")
    assert podman.out("exec", "two", "cat", "/v/file") == "shared"
    mount_point = f"{MOUNTS}/{podman.volume('data')['id']}"
    assert podman.mounted() == [mount_point]
    [shown] = json.loads(podman.out("volume", "inspect", "data"))
    assert shown["Mountpoint"] == mount_point
    podman.podman("stop", "one")
    assert podman.mounted() == [mount_point]
    assert "being used" in podman.error("volume", "rm", "data")
    podman.podman("stop", "two")
    assert podman.mounted() == []
    podman.podman("start", "one")
    assert podman.out("exec", "one", "cat", "/v/file") == "shared"


def test_its_many_activations_take_nothing_away(podman: Podman) -> None:
    """Each makes the counts inherited; that a container has the volume is proven."""
    podman.create("data")
    podman.hold("data", "held")
    podman.podman("exec", "held", "sh", "-c", "echo kept > /v/file")
    for _ in range(3):
        podman.podman("volume", "ls")
    assert podman.references("data") == {"live": 0, "inherited": 1}
    podman.daemon.crash()
    time.sleep(GRACE_S + 1)
    assert podman.out("exec", "held", "cat", "/v/file") == "kept"
    assert len(podman.mounted()) == 1
    error = podman.daemon.call("Remove", {"Name": "data"})["Err"]
    assert error.startswith("volume-busy: ")
    podman.podman("rm", "--force", "held")
    assert podman.mounted() == []
    assert podman.shell("data", "cat /v/file") == "kept"


def test_a_killed_container_frees_its_volume(podman: Podman) -> None:
    podman.create("data")
    podman.hold("data", "held")
    podman.podman("kill", "--signal", "KILL", "held")
    podman.podman("wait", "held")
    podman.podman("rm", "held")
    assert podman.mounted() == []


def test_a_volume_made_elsewhere_is_found(podman: Podman) -> None:
    podman.daemon.cli("create", "elsewhere")
    podman.podman("volume", "reload")
    assert podman.shell("elsewhere", "echo fine > /v/file; cat /v/file") == "fine"


def test_a_wrong_option_is_refused(podman: Podman) -> None:
    error = podman.error(
        "volume", "create", "--driver", "remora", "--opt", "mde=0750", "wrong"
    )
    assert "invalid-request: unknown option 'mde'" in error
    assert podman.out("volume", "ls", "--quiet") == ""


def test_a_removal_that_is_refused_forgets_nothing(podman: Podman) -> None:
    """Podman knows nothing of what others do with the volume."""
    podman.create("data")
    podman.shell("data", "echo kept > /v/file")
    with used_outside(podman, "data"):
        error = podman.error("volume", "rm", "data")
        assert "volume-busy: 'data' is used by sleep" in error
    assert podman.out("volume", "ls", "--quiet") == "data"
    assert podman.shell("data", "cat /v/file") == "kept"


@contextlib.contextmanager
def used_outside(podman: Podman, volume: str) -> Iterator[None]:
    """Let a process that Podman does not know have *volume* mounted."""
    path = podman.volume(volume)["path"]
    script = f"mount --bind {path} /mnt && exec sleep 600"
    user = podman.host.popen(["unshare", "--mount", "sh", "-euc", script])
    mountinfo = Path(f"/proc/{user.pid}/mountinfo")
    wait_until(lambda: " /mnt " in mountinfo.read_text(), timeout_s=5, what="a mount")
    try:
        yield
    finally:
        user.kill()
        user.wait(timeout=10)
        podman.host.forget(user)


def test_a_container_whose_mount_fails_does_not_start(podman: Podman) -> None:
    """Else Podman gives it a directory of its own, and what it writes is lost."""
    podman.create("data")
    pool = podman.host.path("/var/lib/remora/pool")
    away = pool.rename(podman.host.path("/var/lib/remora/away"))
    try:
        error = podman.error(
            *podman.container("--rm", "-v", "data:/v"), "touch", "/v/lost"
        )
    finally:
        away.rename(podman.host.path("/var/lib/remora/pool"))
    assert "backend-failed: the pool " in error
    assert podman.shell("data", "ls -A /v") == ""


def test_without_the_daemon_it_says_so_at_once(podman: Podman) -> None:
    podman.create("data")
    podman.daemon.stop()
    start = time.monotonic()
    error = podman.error("volume", "create", "--driver", "remora", "other")
    assert PLUGIN_SOCKET in error
    assert "data" not in podman.out("ps", "--all")
    assert time.monotonic() - start < 10
    podman.daemon.start()
    assert podman.host.path(CONTROL_SOCKET).is_socket()
    assert podman.shell("data", "echo back") == "back"


@pytest.mark.parametrize("only_podman", ["sid"], indirect=True)
def test_docker_and_podman_beside_each_other(podman: Podman) -> None:
    """One daemon, one volume: Podman's activations are not the end of Docker's."""
    with debian_root.chosen("sid"):
        docker = started_engine(podman.host)
    docker.hold("data", "held")
    docker.docker("exec", "held", "sh", "-c", "echo 'of Docker' > /v/file")
    podman.podman("volume", "reload")
    assert podman.shell("data", "cat /v/file") == "of Docker"
    time.sleep(GRACE_S + 1)
    assert len(podman.mounted()) == 1
    docker.docker("exec", "held", "sh", "-c", "echo still > /v/file")
    docker.docker("rm", "--force", "held")
    assert podman.mounted() == []
    assert podman.shell("data", "cat /v/file") == "still"
    docker.stop()
