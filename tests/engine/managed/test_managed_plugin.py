"""
The managed plugin in use: volumes, names, settings, disabling, crashes.

Numbers in brackets are those of moby's own cases for managed plugins, as conftest.py
lists them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.support import engine as engine_support
from tests.support.host import wait_until
from tests.support.images import BUSYBOX_IMAGE

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.engine import Engine
    from tests.support.managed import ManagedPlugin

pytestmark = pytest.mark.xdist_group("managed-plugin")


# Use


def test_one_container_writes_and_the_next_one_reads(
    plugin: ManagedPlugin, engine: Engine
) -> None:
    """[43] The bytes lie on the host, outside the engine's directories."""
    engine.shell("data", "echo kept > /v/file")
    assert engine.shell("data", "cat /v/file") == "kept"
    pool = plugin.host.path("/var/lib/remora/pool/volumes")
    assert [path.read_text() for path in pool.glob("*/live/file")] == ["kept\n"]
    assert plugin.mounts() == []


def test_a_volume_is_mounted_where_the_engine_sees_it(
    plugin: ManagedPlugin, engine: Engine
) -> None:
    engine.hold("data", "holder")
    record = engine.inspect("volume", "data")
    assert set(plugin.mounts()) == {record["Status"]["id"]}
    assert record["Status"]["references"] == {"live": 1, "inherited": 0}


def test_the_image_content_is_copied_into_a_new_volume(engine: Engine) -> None:
    shown = engine.run(
        *("--volume-driver", "remora", "-v", "data:/seed", BUSYBOX_IMAGE),
        *("sh", "-c", "stat -c %u:%g:%a /seed/owned; readlink /seed/link"),
    )
    assert shown.split() == ["1000:1001:640", "plain"]
    assert engine.shell("data", "cat /v/plain") == "from the image"


def test_a_volume_in_use_is_not_removed(engine: Engine) -> None:
    engine.hold("data", "holder")
    assert "in use" in engine.error("volume", "rm", "data")


def test_remora_answers_inside_the_plugin(
    plugin: ManagedPlugin, engine: Engine
) -> None:
    engine.docker("volume", "create", "-d", "remora", "data")
    listed = json.loads(plugin.remora("ls", "--json").stdout)
    assert [volume["name"] for volume in listed] == ["data"]
    findings = json.loads(plugin.remora("doctor", "--json").stdout)
    failed = {each["check"] for each in findings if each["verdict"] != "ok"}
    # The engine's client is the host's.
    assert failed <= {"docker"}


def test_the_control_socket_is_on_the_host(plugin: ManagedPlugin) -> None:
    socket = plugin.host.path("/var/lib/remora/control.sock")
    assert socket.is_socket()
    assert socket.stat().st_mode & 0o777 == 0o600


# The engine's listing and naming of plugins


def test_it_is_listed_as_a_volume_driver(plugin: ManagedPlugin, engine: Engine) -> None:
    """[45, 46]"""
    listed = "plugin", "ls", "--format", "{{.Name}}", "--filter"
    assert engine.out(*listed, "enabled=true") == "remora:latest"
    assert engine.out(*listed, "capability=volumedriver") == "remora:latest"
    assert engine.out(*listed, "enabled=false") == ""
    assert engine.out(*listed, "capability=networkdriver") == ""


def test_it_is_found_by_every_name(plugin: ManagedPlugin, engine: Engine) -> None:
    """[33, 34]"""
    for name in ("remora", "remora:latest", plugin.id, plugin.id[:12]):
        assert engine.inspect("plugin", name)["Id"] == plugin.id
    engine.docker("plugin", "disable", plugin.id[:12])
    engine.docker("plugin", "set", plugin.id[:12], "REMORA_LOG_FORMAT=json")
    engine.docker("plugin", "enable", plugin.id[:12])


def test_a_second_one_of_the_same_name_is_refused(
    plugin: ManagedPlugin, engine: Engine, built: Path
) -> None:
    """[32]"""
    assert "already exist" in engine.error("plugin", "create", "remora", str(built))
    assert len(engine.out("plugin", "ls", "-q").split()) == 1


def test_enabling_and_disabling_twice(plugin: ManagedPlugin, engine: Engine) -> None:
    """[31]"""
    assert "already enabled" in engine.error("plugin", "enable", "remora")
    plugin.disable()
    assert "already disabled" in engine.error("plugin", "disable", "remora")


# Disabling


def test_it_stops_at_once(plugin: ManagedPlugin) -> None:
    """The engine gives 10 s after SIGTERM; a daemon that ignored it would be killed."""
    pid = plugin.pid
    socket = plugin.host.path("/var/lib/remora/control.sock")
    assert engine_support.timed(plugin.disable) < 8
    assert not plugin.running(pid)
    assert not socket.exists()


def test_disabling_is_refused_while_volumes_exist(
    plugin: ManagedPlugin, engine: Engine
) -> None:
    """[23, 25]"""
    assert "is enabled" in engine.error("plugin", "rm", "remora")
    engine.docker("volume", "create", "-d", "remora", "data")
    assert "in use" in engine.error("plugin", "disable", "remora")
    engine.docker("volume", "rm", "data")
    plugin.disable()


def test_other_volumes_are_listed_while_it_is_disabled(
    plugin: ManagedPlugin, engine: Engine
) -> None:
    """[27]"""
    plugin.disable()
    engine.docker("volume", "create", "local-one")
    assert engine.out("volume", "ls", "-q") == "local-one"


def test_a_container_lives_through_a_forced_disabling(
    plugin: ManagedPlugin, engine: Engine
) -> None:
    engine.hold("data", "holder")
    plugin.disable("--force")
    assert plugin.mounts() == []
    engine.docker("exec", "holder", "sh", "-c", "echo still > /v/file")
    plugin.enable()
    assert engine.shell("data", "cat /v/file") == "still"
    assert "in use" in engine.error("volume", "rm", "data")
    engine.docker("stop", "holder")
    engine.docker("start", "holder")
    assert engine.out("exec", "holder", "cat", "/v/file") == "still"


def test_a_container_that_stops_while_it_is_disabled_frees_the_volume(
    plugin: ManagedPlugin, engine: Engine
) -> None:
    """The engine's Unmount is lost: only the proof of disuse can free the volume."""
    plugin.set(REMORA_DISUSE_GRACE_S="0")
    engine.hold("data", "holder")
    plugin.disable("--force")
    engine.docker("rm", "-f", "holder")
    plugin.enable()
    wait_until(
        lambda: plugin.references("data") == {"live": 0, "inherited": 0},
        timeout_s=20,
        what="the volume is free",
    )
    engine.docker("volume", "rm", "data")


# Crashes


def test_after_a_crash_the_mounts_are_still_there_and_known(
    plugin: ManagedPlugin, engine: Engine
) -> None:
    engine.hold("data", "holder")
    engine.docker("exec", "holder", "sh", "-c", "echo before > /v/file")
    mounted = plugin.mounts()
    plugin.crash()
    assert plugin.mounts() == mounted
    assert plugin.references("data") == {"live": 0, "inherited": 1}
    assert engine.out("exec", "holder", "cat", "/v/file") == "before"
    assert engine.shell("data", "cat /v/file") == "before"
    assert "in use" in engine.error("volume", "rm", "data")
    engine.docker("stop", "holder")
    assert plugin.mounts() == []


def test_a_crash_between_two_containers(plugin: ManagedPlugin, engine: Engine) -> None:
    engine.shell("data", "echo first > /v/file")
    plugin.crash()
    assert engine.shell("data", "cat /v/file") == "first"


# Settings


def test_settings_are_changed_only_while_it_is_disabled(
    plugin: ManagedPlugin, engine: Engine
) -> None:
    """[28]"""
    refused = engine.error("plugin", "set", "remora", "REMORA_LOG_FORMAT=console")
    assert "disable" in refused
    plugin.set(REMORA_METRICS_ADDRESS="127.0.0.1:9550")
    metrics = plugin.host.run(["curl", "-fsS", "http://127.0.0.1:9550/metrics"]).stdout
    assert "remora_" in metrics
    plugin.set(REMORA_METRICS_ADDRESS="")


def test_only_some_settings_can_be_changed(
    plugin: ManagedPlugin, engine: Engine
) -> None:
    """[29]"""
    plugin.disable()
    for refused in ("REMORA_MOUNT_DIR=/x", "REMORA_POOL=/x", "state.destination=/x"):
        assert engine.error("plugin", "set", "remora", refused)


def test_the_state_can_lie_elsewhere_on_the_host(
    plugin: ManagedPlugin, engine: Engine
) -> None:
    """[28]"""
    plugin.host.run(["mkdir", "-p", "/var/lib/docker/elsewhere"])
    plugin.set(**{"state.source": "/var/lib/docker/elsewhere"})
    try:
        engine.shell("other", "echo there > /v/file")
        found = plugin.host.path("/var/lib/docker/elsewhere").rglob("live/file")
        assert [path.read_text() for path in found] == ["there\n"]
        engine.docker("volume", "rm", "other")
    finally:
        plugin.set(**{"state.source": "/var/lib/remora"})


def test_a_missing_state_directory_is_told(
    plugin: ManagedPlugin, engine: Engine
) -> None:
    plugin.disable()
    engine.docker("plugin", "set", "remora", "state.source=/var/lib/nowhere")
    assert "/var/lib/nowhere" in engine.error("plugin", "enable", "remora")
    engine.docker("plugin", "set", "remora", "state.source=/var/lib/remora")


def test_the_host_gives_a_configuration_file(
    plugin: ManagedPlugin, engine: Engine
) -> None:
    file = plugin.host.path("/var/lib/remora/remora.toml")
    plugin.disable()
    file.write_text('[profiles.default]\nmode = "0751"\n')
    try:
        plugin.enable()
        assert engine.shell("data", "stat -c %a /v") == "751"
    finally:
        file.unlink()


def test_a_size_limit_holds_on_btrfs(plugin: ManagedPlugin, engine: Engine) -> None:
    host, state = plugin.host, "/var/lib/docker/btrfs"
    image = host.work / "btrfs.img"
    with image.open("wb") as file:
        file.truncate(400 << 20)
    host.run(["mkfs.btrfs", "-q", str(image)])
    host.run(["mkdir", "-p", state])
    if host.run(["mount", "-o", "loop", str(image), state], check=False).returncode:
        pytest.skip("needs btrfs in the kernel, and a loop device")
    host.run(["btrfs", "quota", "enable", state])
    plugin.set(**{"state.source": state})
    try:
        engine.docker("volume", "create", "-d", "remora", "-o", "size=20M", "small")
        refused = engine.error(
            *("run", "--rm", "-v", "small:/v", "--network", "none", BUSYBOX_IMAGE),
            *("dd", "if=/dev/zero", "of=/v/file", "bs=1M", "count=40"),
        )
        assert "Disk quota exceeded" in refused
        engine.docker("volume", "rm", "small")
    finally:
        plugin.set(**{"state.source": "/var/lib/remora"})
        host.run(["umount", state])
