"""The managed plugin from a registry: installed, upgraded, removed, beside another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support import managed
from tests.support.images import BUSYBOX_IMAGE
from tests.support.managed import ManagedPlugin

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.engine import Engine

pytestmark = pytest.mark.xdist_group("managed-plugin")
# Its own, because two daemons do not share one state directory.
STATE = "/var/lib/docker/travel-state"


class Publisher:
    """Puts versions of the plugin into the registry, told apart by a marker file."""

    def __init__(self, engine: Engine, registry: str, built: Path, work: Path) -> None:
        self._engine = engine
        self._registry = registry
        self._built = built
        self._work = work

    def publish(self, version: str) -> str:
        """Return where the registry has *version*, with the file /etc/*version*."""
        reference = f"{self._registry}/travel:{version}"
        directory = managed.other_version(self._built, self._work / version, version)
        ManagedPlugin(self._engine, reference).create(directory)
        self._engine.docker("plugin", "push", reference, timeout_s=120)
        self._engine.docker("plugin", "rm", reference)
        return reference


@pytest.fixture(scope="session")
def publisher(
    only_plugin: ManagedPlugin,
    registry: str,
    built: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Publisher:
    work = tmp_path_factory.mktemp("versions")
    return Publisher(only_plugin.engine, registry, built, work)


@pytest.fixture(scope="session")
def first_version(publisher: Publisher) -> str:
    """Return where the registry has the version that every test begins with."""
    return publisher.publish("first")


@pytest.fixture
def travel(engine: Engine, first_version: str) -> Iterator[ManagedPlugin]:
    """Return a second plugin, called travel, installed from the registry."""
    plugin = ManagedPlugin(engine, "travel")
    plugin.host.run(["mkdir", "-p", STATE])
    engine.docker(
        *("plugin", "install", "--alias", "travel", "--grant-all-permissions"),
        *(first_version, f"state.source={STATE}", "REMORA_LOG_FORMAT=console"),
        timeout_s=120,
    )
    yield plugin
    containers = engine.out("ps", "-aq").split()
    if containers:
        engine.docker("rm", "-f", *containers)
    if "travel:latest" in engine.out("plugin", "ls", "--format", "{{.Name}}"):
        engine.docker("plugin", "rm", "-f", "travel")
    plugin.host.run(["rm", "-rf", STATE])


def use(engine: Engine, script: str) -> str:
    return engine.run(
        *("--volume-driver", "travel", "-v", "moving:/v", BUSYBOX_IMAGE),
        *("sh", "-euc", script),
    )


def test_settings_given_at_installation_are_kept(travel: ManagedPlugin) -> None:
    """[30, 50]"""
    settings = travel.inspect()["Settings"]
    assert "REMORA_LOG_FORMAT=console" in settings["Env"]
    assert [mount["Source"] for mount in settings["Mounts"]] == [STATE]


def test_an_upgrade_keeps_volumes_and_data(
    travel: ManagedPlugin, engine: Engine, publisher: Publisher
) -> None:
    """[35, 36]"""
    use(engine, "echo old > /v/file")
    upgrade = (
        *("plugin", "upgrade", "--grant-all-permissions", "--skip-remote-check"),
        *("travel", publisher.publish("newer")),
    )
    assert "disable" in engine.error(*upgrade)
    travel.disable("--force")
    engine.docker(*upgrade, timeout_s=120)
    # The engine takes the new version's mounts, whatever it shows as the settings,
    # and keeps the environment, also from what the new version adds or changes.
    [mount] = travel.inspect()["Config"]["Mounts"]
    assert mount["Source"] == "/var/lib/remora"
    assert "REMORA_LOG_FORMAT=console" in travel.inspect()["Settings"]["Env"]
    engine.docker("plugin", "set", "travel", f"state.source={STATE}")
    travel.enable()
    root = f"/var/lib/docker/plugins/{travel.id}/rootfs/etc/newer"
    assert travel.host.path(root).read_text() == "newer"
    assert use(engine, "cat /v/file") == "old"


def test_volumes_outlive_the_removal_of_the_plugin(
    travel: ManagedPlugin, engine: Engine, first_version: str
) -> None:
    """[23, 24, 26] The engine deletes the plugin's own directories, not the host's."""
    use(engine, "echo kept > /v/file")
    directory = f"/var/lib/docker/plugins/{travel.id}"
    engine.docker("plugin", "rm", "-f", "travel")
    assert not travel.host.path(directory).exists()
    engine.docker(
        *("plugin", "install", "--disable", "--alias", "travel"),
        *("--grant-all-permissions", first_version, f"state.source={STATE}"),
        timeout_s=120,
    )
    assert not travel.enabled
    travel.enable()
    assert "moving" in engine.out("volume", "ls", "-q")
    assert use(engine, "cat /v/file") == "kept"


def test_removing_one_plugin_leaves_the_others_mounts(
    plugin: ManagedPlugin, travel: ManagedPlugin, engine: Engine
) -> None:
    """[48]"""
    engine.hold("data", "holder")
    use(engine, "echo other > /v/file")
    mounted = plugin.mounts()
    engine.docker("plugin", "rm", "-f", "travel")
    assert plugin.mounts() == mounted
    engine.docker("exec", "holder", "sh", "-c", "echo still > /v/file")
    assert engine.shell("data", "cat /v/file") == "still"


def test_two_daemons_do_not_share_a_state_directory(
    plugin: ManagedPlugin, travel: ManagedPlugin, engine: Engine
) -> None:
    engine.docker("volume", "create", "-d", "remora", "data")
    travel.disable()
    engine.docker("plugin", "set", "travel", "state.source=/var/lib/remora")
    assert engine.error("plugin", "enable", "travel")
    assert not travel.enabled
    engine.shell("data", "echo unharmed > /v/file")
