"""The managed plugin through restarts and crashes of the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.daemon import Daemon
from tests.support.engine import started_engine
from tests.support.host import Host, wait_until
from tests.support.images import BUSYBOX_IMAGE
from tests.support.managed import ManagedPlugin

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.engine import Engine

pytestmark = pytest.mark.xdist_group("managed-plugin")


@pytest.fixture
def live_restore(plugin: ManagedPlugin, engine: Engine) -> Iterator[None]:
    """Let the engine keep containers over its restarts, for one test."""
    engine.stop()
    engine.start(live_restore=True)
    yield
    engine.docker("rm", "-f", *engine.out("ps", "-aq").split(), check=False)
    engine.stop()
    engine.start()


def write(engine: Engine, container: str, text: str) -> None:
    engine.docker("exec", container, "sh", "-c", f"echo {text} > /v/file")


def read(engine: Engine, container: str) -> str:
    return engine.out("exec", container, "cat", "/v/file")


def read_at_last(engine: Engine, volume: str) -> str:
    """
    Return what a new container reads in the volume, started again if it has to be.

    An engine that was killed may have cut off its plugin; then no container starts.
    """
    command = ("run", "--rm", "--network", "none", "--volume-driver", "remora")
    mount = ("-v", f"{volume}:/v", BUSYBOX_IMAGE, "cat", "/v/file")
    answers: list[str] = []

    def done() -> bool:
        ran = engine.docker(*command, *mount, check=False)
        if ran.returncode:
            assert "does not see what this plugin mounts" in ran.stderr, ran.stderr
        else:
            answers.append(ran.stdout.strip())
        return bool(answers)

    wait_until(done, timeout_s=60, what="a container starts")
    return answers[0]


def running(engine: Engine, container: str) -> bool:
    return bool(engine.inspect("container", container)["State"]["Running"])


def test_it_stops_and_starts_with_the_engine(
    plugin: ManagedPlugin, engine: Engine
) -> None:
    """[37, 41] Before the containers that need it, after those that leave."""
    engine.hold("data", "holder", "--restart", "always")
    write(engine, "holder", "kept")
    pid = plugin.pid
    engine.stop()
    assert not plugin.running(pid)
    engine.start_again()
    assert plugin.enabled
    wait_until(
        lambda: running(engine, "holder"), timeout_s=20, what="the container is back"
    )
    assert read(engine, "holder") == "kept"
    assert plugin.references("data") == {"live": 1, "inherited": 0}
    engine.docker("rm", "-f", "holder")
    assert plugin.mounts() == []


def test_disabled_it_stays_disabled(plugin: ManagedPlugin, engine: Engine) -> None:
    """[38]"""
    plugin.disable()
    engine.restart()
    assert not plugin.enabled


def test_it_outlives_a_killed_engine(plugin: ManagedPlugin, engine: Engine) -> None:
    """[42, 49] The next engine ends the containers, and starts the plugin anew."""
    engine.hold("data", "holder")
    write(engine, "holder", "kept")
    pid = plugin.pid
    engine.kill()
    assert plugin.running(pid)
    engine.start_again()
    assert plugin.enabled
    assert read_at_last(engine, "data") == "kept"
    engine.docker("rm", "-f", "holder")
    # The engine has forgotten its mount; that nobody has the volume is proven.
    engine.docker("volume", "rm", "data")
    assert plugin.mounts() == []


def test_what_the_engine_alone_has_unmounted_is_mounted_anew(
    plugin: ManagedPlugin, engine: Engine
) -> None:
    """
    An engine slow to clear away the plugin before this one does that.

    A container must not start on the empty directory that the engine would see.
    """
    engine.hold("data", "holder")
    write(engine, "holder", "kept")
    engine.docker("exec", "holder", "mkdir", "/v/sub")
    volume_id = plugin.mounts()[0]
    own = f"/mnt/volumes/{volume_id}"
    # A mount with another one on it stays when a peer of it goes. Source: the kernel's
    # Documentation/filesystems/sharedsubtree.rst.
    plugin.in_its_mounts("mount", "--make-private", own)
    plugin.in_its_mounts("mount", "-t", "tmpfs", "tmpfs", f"{own}/sub")
    plugin.host.run(["umount", "--lazy", f"{plugin.propagated}/{volume_id}"])
    plugin.in_its_mounts("umount", f"{own}/sub")
    assert own in plugin.in_its_mounts("cat", "/proc/self/mountinfo")
    assert plugin.mounts() == []
    assert engine.shell("data", "cat /v/file") == "kept"
    engine.docker("rm", "-f", "holder")
    assert plugin.mounts() == []


@pytest.mark.usefixtures("live_restore")
@pytest.mark.parametrize("end", ["stop", "kill"])
def test_live_restore_keeps_plugin_and_container(
    plugin: ManagedPlugin, engine: Engine, end: str
) -> None:
    """[39, 40, 44]"""
    engine.hold("data", "holder")
    write(engine, "holder", "kept")
    pid, mounted = plugin.pid, plugin.mounts()
    getattr(engine, end)()
    assert plugin.running(pid)
    engine.start_again()
    assert plugin.pid == pid
    assert plugin.mounts() == mounted
    assert running(engine, "holder")
    assert read(engine, "holder") == "kept"
    assert "in use" in engine.error("plugin", "disable", "remora")
    engine.docker("stop", "holder")
    assert plugin.mounts() == []
    engine.docker("rm", "holder")
    engine.docker("volume", "rm", "data")
    plugin.disable()


@pytest.mark.usefixtures("live_restore")
def test_a_crash_while_the_engine_is_away(
    plugin: ManagedPlugin, engine: Engine
) -> None:
    """The container goes on; the engine finds the plugin dead and starts it again."""
    engine.hold("data", "holder")
    write(engine, "holder", "kept")
    mounted, pid = plugin.mounts(), plugin.pid
    engine.stop()
    plugin.host.run(["kill", "-KILL", str(pid)])
    engine.start_again()
    assert plugin.enabled
    assert read(engine, "holder") == "kept"
    assert plugin.mounts() == mounted
    assert "in use" in engine.error("volume", "rm", "data")
    assert engine.shell("data", "cat /v/file") == "kept"


def test_volumes_of_the_service_become_the_plugins(built: Path) -> None:
    """The engine knows them under another driver's name; a guide says what to do."""
    with Host("switching") as host:
        daemon, engine = Daemon(host), started_engine(host)
        daemon.start()
        engine.shell("data", "echo kept > /v/file")
        daemon.stop()
        plugin = ManagedPlugin(engine)
        plugin.create(built)
        host.run(["mkdir", "-p", "/var/lib/docker/empty"])
        engine.docker("plugin", "set", "remora", "state.source=/var/lib/docker/empty")
        plugin.enable()
        engine.restart()
        plugin.set(**{"state.source": "/var/lib/remora"})
        assert engine.shell("data", "cat /v/file") == "kept"
        assert engine.inspect("volume", "data")["Driver"] == "remora:latest"
        engine.stop()
