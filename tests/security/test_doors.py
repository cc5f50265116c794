"""
What a user of the machine can do with the daemon's directories, sockets and secrets.

The daemon is the real one, with every path below a directory that anybody may enter.
The attacker is `nobody`, in the same mount namespace. It finds mounts in its mountinfo.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from backends.system import files
from plugin.errors import ConfigError, StoreError
from plugin.peers.keys import ensure_keys
from tests.protocol.node import Node

pytestmark = pytest.mark.xdist_group("doors")
NOBODY = 65534
# setpriv still has root's capabilities when it starts a program: a shell has not.
AS_NOBODY = (
    *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--"),
    *("sh", "-c", '"$@"', "sh"),
)
CONNECT = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
# Binds the mount elsewhere in a namespace of its own, as its root, and stays.
PIN = 'mount --bind "$1" "$2" && exec sleep 60'


def attempt(node: Node, *command: str) -> subprocess.CompletedProcess[str]:
    """Return what came of *command*, run by nobody on the node."""
    return subprocess.run(
        node.inside(*AS_NOBODY, *command),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def mounted(node: Node, **options: str) -> Path:
    """Return where a volume of a container is mounted that has made traps in it."""
    node.create("v", **options)
    at = Path(node.ok("Mount", Name="v", ID="a")["Mountpoint"])
    inside = node.path(at)
    (inside / "data").write_text("secret")
    shutil.copy("/usr/bin/id", inside / "id")
    os.chown(inside / "id", 0, 0)
    (inside / "id").chmod(0o4755)
    os.mknod(inside / "null", 0o20666, os.makedev(1, 3))
    return at


def doctor(node: Node) -> list[dict[str, str]]:
    """Return what `remora doctor` finds wrong."""
    done = subprocess.run(
        node.inside(*node.remora("doctor", "--json")),
        env=node.environment(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    found: list[dict[str, str]] = json.loads(done.stdout)
    return [each for each in found if each["verdict"] == "failed"]


@pytest.mark.parametrize(
    ("before", "apart"), [(None, True), (0o711, False), (0o777, True)]
)
def test_nobody_reaches_a_mounted_volume(
    make_node: Callable[..., Node], before: int | None, apart: bool
) -> None:
    """Neither at a first start, nor where an earlier version has left it open."""
    node = make_node(disk=apart)
    if before is not None:
        for directory in (node.state_dir, node.mount_dir):
            node.path(directory).mkdir(exist_ok=True)
            node.path(directory).chmod(before)
    node.start()
    at = mounted(node, suid="true")
    table = attempt(node, "cat", "/proc/self/mountinfo").stdout
    assert f" {at} " in table  # it knows where to look
    for command in (["cat", f"{at}/data"], [f"{at}/id", "-u"], ["ls", str(at.parent)]):
        done = attempt(node, *command)
        assert done.returncode != 0, (command, done.stdout)
        assert "ermission denied" in done.stderr
    for directory in (node.state_dir, node.mount_dir):
        assert node.path(directory).stat().st_mode & 0o777 == 0o700
    told = [each for each in node.log_lines() if "was open to others" in each["event"]]
    assert len(told) == (0 if before is None else 2)


def test_nobody_keeps_a_volume_from_being_let_go(
    make_node: Callable[..., Node],
) -> None:
    node = make_node()
    node.start()
    at = mounted(node)
    elsewhere = node.directory / "elsewhere"
    elsewhere.mkdir()
    elsewhere.chmod(0o777)
    alone = ("unshare", "--user", "--map-root-user", "--mount", "--propagation=private")
    shell = ("sh", "-c", PIN, "sh")
    free = attempt(node, *alone, *shell[:2], "true")
    assert free.returncode == 0, free.stderr  # users may have namespaces here
    done = attempt(node, *alone, *shell, str(at), str(elsewhere))
    assert done.returncode != 0
    node.ok("Unmount", Name="v", ID="a")
    node.ok("Remove", Name="v")


@pytest.mark.parametrize("key", ["state_dir", "mount_dir"])
def test_a_directory_of_somebody_else_is_refused(
    make_node: Callable[..., Node], key: str
) -> None:
    node = make_node()
    directory = getattr(node, key)
    directory.mkdir(parents=True)
    os.chown(directory, NOBODY, NOBODY)
    code, told = node.refused_start()
    assert code == 17
    assert told.count("\n") == 1
    assert f"cannot use {directory}: it belongs to user {NOBODY}" in told
    assert f"chown root {directory}" in told


def test_a_directory_that_root_has_linked_is_taken(
    make_node: Callable[..., Node],
) -> None:
    node = make_node()
    elsewhere = node.directory / "elsewhere"
    elsewhere.mkdir(mode=0o755)
    node.state_dir.symlink_to(elsewhere)
    node.start()
    assert elsewhere.stat().st_mode & 0o777 == 0o700


def test_who_could_exchange_a_directory_is_told_of(
    make_node: Callable[..., Node],
) -> None:
    node = make_node()
    node.directory.chmod(0o777)
    node.start()
    failed = doctor(node)
    assert [each["check"] for each in failed] == ["doors"]
    assert f"{node.directory} can be written to by others" in failed[0]["evidence"]
    assert [each for each in node.log_lines() if "take the place" in each["event"]]


def test_whatever_mask_it_is_started_with_nothing_is_for_others(
    make_node: Callable[..., Node],
) -> None:
    node = make_node()
    node.launch(command=["sh", "-c", 'umask 0; exec "$@"', "sh", *node.remora("serve")])
    node.wait_ready()
    node.create("v")
    node.ok("Mount", Name="v", ID="a")
    # What containers see has the mode that was asked for.
    found = node.run(
        *("find", str(node.directory), "-mindepth", "1", "-perm", "/077"),
        *("-not", "-path", f"{node.pool}/volumes/*/live", "-not", "-type", "l"),
        *("-not", "-path", f"{node.mount_dir}/*", "-not", "-name", "remora.toml"),
        *("-not", "-path", str(node.log)),
    )
    assert found == ""
    for path in (node.plugin_socket, node.control_socket):
        done = attempt(node, "python3", "-c", CONNECT, str(path))
        assert "PermissionError" in done.stderr


def test_a_socket_that_others_may_write_to_is_told_of(
    make_node: Callable[..., Node],
) -> None:
    node = make_node()
    node.start()
    node.plugin_socket.chmod(0o606)
    node.control_socket.chmod(0o660)
    failed = doctor(node)
    assert [each["check"] for each in failed] == ["control socket", "plugin socket"]


# Keys


def test_a_key_of_somebody_else_is_refused(tmp_path: Path) -> None:
    keys = ensure_keys(tmp_path / "peer")
    os.chown(keys.node_key, NOBODY, NOBODY)
    with pytest.raises(StoreError, match=f"belongs to user {NOBODY}, not to root"):
        ensure_keys(tmp_path / "peer")


def test_a_key_that_was_open_to_others_is_shut_and_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = ensure_keys(tmp_path / "peer")
    (tmp_path / "peer").chmod(0o755)
    keys.node_key.chmod(0o640)
    ensure_keys(tmp_path / "peer")
    told = [each.getMessage() for each in caplog.records]
    assert len(told) == 2
    assert "remove it and restart" in told[1]
    assert (tmp_path / "peer").stat().st_mode & 0o777 == 0o700


# The configuration


@pytest.mark.parametrize("owner", [0, NOBODY])
def test_a_configuration_that_others_can_write_to_is_refused(
    make_node: Callable[..., Node], owner: int
) -> None:
    """Who writes there names the etcd, the pool and the sockets of a root's program."""
    node = make_node()
    os.chown(node.config, owner, 0)
    node.config.chmod(0o644 if owner else 0o664)
    told = (
        f"{node.config} belongs to user {owner}, not to root: chown root {node.config}"
        if owner
        else f"{node.config} can be written to by others (mode 0664): chmod go-w"
    )
    code, error = node.refused_start()
    assert code == ConfigError.exit_code
    assert error.count("\n") == 1
    assert told in error
    assert "whoever writes to it is root on this node" in error
    for command in ("config check", "doctor"):
        done = subprocess.run(
            node.inside(*node.remora(*command.split())),
            env=node.environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode
        assert told in done.stdout + done.stderr
        assert "only root changes what leads to" not in done.stdout
    os.chown(node.config, 0, 0)
    node.config.chmod(0o644)
    node.start()


# What is said of a file with a secret, and of a way


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o602, 0o611, 0o777])
def test_a_secret_that_others_come_near_is_none(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "the secret"
    path.write_text("x")
    path.chmod(mode)
    fault = files.secret_fault(path)
    assert f"is open to others (mode {mode:04o}): chmod 600 '{path}'" in fault
    link = tmp_path / "link"
    link.symlink_to(path)
    assert files.secret_fault(link)
    for good in (0o600, 0o400):
        path.chmod(good)
        assert files.secret_fault(path) == files.secret_fault(link) == ""


def test_a_secret_is_a_file_of_roots(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    assert "cannot be read" in files.secret_fault(path)
    os.mkfifo(path, 0o600)
    assert "is no regular file" in files.secret_fault(path)
    path.unlink()
    path.touch(0o600)
    os.chown(path, NOBODY, 0)
    assert f"belongs to user {NOBODY}, not to root" in files.secret_fault(path)


def test_every_directory_on_the_way_counts(tmp_path: Path) -> None:
    way = tmp_path / "a/b/c"
    way.mkdir(parents=True)
    assert files.way_fault(way) == ""
    for each in (way, way.parent, way.parent.parent):
        each.chmod(0o775)
        assert files.way_fault(way).startswith(f"{each} can be written to by others")
        each.chmod(0o755)
    os.chown(way.parent, NOBODY, 0)
    assert files.way_fault(way) == f"{way.parent} belongs to user {NOBODY}"
    os.chown(way.parent, 0, 0)
    # Where nobody may rename what is another one's (/tmp), the way is safe.
    way.parent.chmod(0o1777)
    assert files.way_fault(way) == ""
    # A link's own way counts, and that of what it leads to.
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "open/real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "open/real")
    assert files.way_fault(tmp_path / "link").startswith(f"{tmp_path / 'open'} can be")
    (tmp_path / "open/back").symlink_to(way)
    assert files.way_fault(tmp_path / "open/back").startswith(f"{tmp_path / 'open'} ")
