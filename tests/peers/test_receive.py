"""What rsync receives lands in the staging directory: exactly, and nowhere else."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import struct
import subprocess
import threading
from pathlib import Path

import pytest

from plugin.peers import receive
from plugin.peers.sharing import SharedSsh
from tests.support.host import wait_until
from tests.support.peers import COMMAND_DEADLINE_S, VOLUME, PeerNode

SERVER = "--server -lHogDtpAXIRSe.LsfxCIvu -@-1 --numeric-ids"
NODES = tuple[PeerNode, PeerNode]
# For user 1234, "rwx". Source: acl(5) as the kernel stores it, posix_acl_xattr.h.
ACL = b"".join(
    struct.pack("<HHI", tag, permissions, user)
    for tag, permissions, user in (
        *((0x01, 6, 0xFFFFFFFF), (0x02, 7, 1234), (0x04, 4, 0xFFFFFFFF)),
        *((0x10, 7, 0xFFFFFFFF), (0x20, 0, 0xFFFFFFFF)),
    )
)
ATTRIBUTES = {
    "user.colour": b"blue",
    "trusted.overlay.opaque": b"y",
    "system.posix_acl_access": struct.pack("<I", 2) + ACL,
}
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)  # cap_net_raw+ep


def make_hard_files(directory: Path) -> None:
    plain = directory / "plain"
    plain.write_text("plain\n")
    os.chown(plain, 1000, 1001)
    plain.chmod(0o640)
    for name, value in ATTRIBUTES.items():
        os.setxattr(plain, name, value)
    os.link(plain, directory / "hard")
    shutil.copy("/bin/true", directory / "set-id")
    os.chown(directory / "set-id", 7, 8)
    (directory / "set-id").chmod(0o6755)
    shutil.copy("/bin/true", directory / "capable")
    os.setxattr(directory / "capable", "security.capability", CAPABILITY)
    os.mknod(directory / "device", 0o620 | stat.S_IFCHR, os.makedev(1, 3))
    os.mkfifo(directory / "fifo")
    (directory / "link-to-etc").symlink_to("/etc")
    (directory / "link-out").symlink_to("../../outside")
    with (directory / "sparse").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"x")
    private = directory / "deep/private"
    private.mkdir(parents=True)
    (private / "file").write_text("secret")
    for each in (private / "file", private, private.parent):
        os.chown(each, 1000, 1000)
    private.chmod(0o700)
    for name in (b"new\nline", b"inv\xffalid", b"-dash", b"*", b" "):
        (directory / os.fsdecode(name)).write_text("odd")
    os.utime(plain, ns=(1, 1_234_567_890_123_456_789))


def contents(directory: Path) -> dict[str, tuple[object, ...]]:
    """Return all that a copy must keep of what is below *directory*."""
    found: dict[str, tuple[object, ...]] = {}
    for path in directory.rglob("*"):
        status = path.lstat()
        kind = stat.S_IFMT(status.st_mode)
        found[str(path.relative_to(directory))] = (
            *(status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns),
            *(status.st_rdev, status.st_nlink if kind == stat.S_IFREG else 0),
            path.read_bytes() if kind == stat.S_IFREG else b"",
            str(path.readlink()) if kind == stat.S_IFLNK else "",
            {
                name: os.getxattr(path, name, follow_symlinks=False)
                for name in os.listxattr(path, follow_symlinks=False)
            },
        )
    return found


def names_below(directory: Path) -> list[str]:
    """Return the names of all that is below *directory*, as `--files-from` has them."""
    return sorted(str(each.relative_to(directory)) for each in directory.rglob("*"))


@pytest.fixture
def source(nodes: NODES) -> Path:
    directory = nodes[0].directory / "source"
    directory.mkdir()
    return directory


def test_everything_that_can_be_in_a_volume_arrives(nodes: NODES, source: Path) -> None:
    first, second = nodes
    make_hard_files(source)
    done = first.send(second, source, names_below(source))
    assert done.returncode == 0, done.stderr
    staging = second.staging.directory
    for name in ("unfinished", "partial"):
        (staging / name).rmdir()  # they are empty
    assert contents(staging) == contents(source)
    assert len(contents(staging)) == 17
    assert (staging / "sparse").stat().st_blocks < 64
    assert (staging / "plain").samefile(staging / "hard")
    assert second.staging.begun == [(VOLUME, 5, 1)]
    assert second.staging.ended == [0]


def test_a_rewrite_within_a_second_is_seen(nodes: NODES, source: Path) -> None:
    first, second = nodes
    for second_number, text in enumerate(("one", "two")):
        (source / "file").write_text(text)
        os.utime(source / "file", ns=(0, 1_000_000_000 + second_number))
        assert first.send(second, source, ["file"]).returncode == 0
        assert (second.staging.directory / "file").read_text() == text


@pytest.mark.parametrize("limit_bytes", [0, 2**16, 2**40])
def test_what_our_rsync_asks_for_is_what_is_let_through(
    nodes: NODES, source: Path, tmp_path: Path, limit_bytes: int
) -> None:
    """A newer rsync may send other options: better to learn it here than there."""
    first, second = nodes
    ssh = SharedSsh(
        first.peer_directory,
        sockets=first.run_directory / "ssh",
        bandwidth_limit_bytes=limit_bytes,
    )
    shown = tmp_path / "shown"
    spy = tmp_path / "spy"
    spy.write_text(f'#!/bin/sh\nshift; echo "$@" > {shown}\nexit 1\n')
    spy.chmod(0o700)
    command = ssh.rsync_command(
        second.record(),
        "host",
        source=source,
        volume=VOLUME,
        commit=(12, 0),
        options=["--info=progress2", "--no-human-readable", "--log-file=/dev/null"],
    )
    command = [
        f"--rsh={spy}" if each.startswith("--rsh=") else each for each in command
    ]
    subprocess.run(command, input=b"", capture_output=True, timeout=60, check=False)
    asked = shown.read_text().strip()
    match = receive.RECEIVE.fullmatch(asked)
    assert match is not None, asked
    assert match.groups()[:3] == (VOLUME, "12", "0")
    # And nothing near it.
    for change in ("", " ", " x", "\n", "\0"):
        if change:
            assert not receive.RECEIVE.fullmatch(asked + change)
        assert not receive.RECEIVE.fullmatch(f"{change or '-'}{asked}")
    for word in range(len(asked.split(" "))):
        words = asked.split(" ")
        assert not receive.RECEIVE.fullmatch(
            " ".join([*words[:word], words[word] + "é", *words[word + 1 :]])
        )
        if not words[word].startswith("--bwlimit="):
            assert not receive.RECEIVE.fullmatch(
                " ".join([*words[:word], *words[word + 1 :]])
            )


# Outside


def test_links_and_swapped_directories_lead_nowhere(nodes: NODES, source: Path) -> None:
    """
    Files sent below names that are, or become, links out of the staging directory.

    Somebody exchanges them all the time while rsync receives; whoever wins, what is
    outside stays as it is.
    """
    first, second = nodes
    staging = second.staging.directory
    outside = second.directory / "outside"
    outside.mkdir()
    (outside / "file0").write_text("kept")
    for number in range(200):
        (source / "in").mkdir(exist_ok=True)
        (source / f"in/file{number}").write_text("evil")
    (staging / "in").symlink_to(outside)
    (staging / "spare").mkdir()
    stop = threading.Event()

    def swap() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            targets = (str(outside), "/etc", "../../outside", "../spare")
            temporary = staging / f".swap{number % 2}"
            temporary.symlink_to(targets[number % 4])
            try:
                temporary.rename(staging / "in")
            except OSError:  # rsync has made a directory of it
                temporary.unlink()
                shutil.rmtree(staging / "in", ignore_errors=True)

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        for number in range(5):
            first.send(second, source, names_below(source), commit=(5, number))
    finally:
        stop.set()
        swapper.join()
    assert len(second.staging.begun) == 5
    assert [each.name for each in outside.iterdir()] == ["file0"]
    assert (outside / "file0").read_text() == "kept"
    assert not Path("/etc/file0").exists()


# Ends


def begun_receive(first: PeerNode, second: PeerNode) -> subprocess.Popen[bytes]:
    """Return a transfer whose sender says nothing more."""
    command = [*first.ssh.command(second.record()), second.address]
    command.append(f"remora receive {VOLUME} 5 1 {SERVER} . /")
    client = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert client.stdout is not None
    assert client.stdout.read(4)  # rsync says its version first
    return client


def ended(client: subprocess.Popen[bytes]) -> int:
    try:
        client.communicate(timeout=COMMAND_DEADLINE_S)
    finally:
        client.kill()
    return client.returncode


def rsyncs(node: PeerNode) -> list[int]:
    """Return the processes that work in *node*'s staging directory."""
    wanted = node.staging.directory.stat().st_ino
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (path / "cwd").stat().st_ino == wanted:
                found.append(int(path.name))
        except OSError:
            continue
    return found


def test_rsync_lives_in_the_jail(nodes: NODES) -> None:
    first, second = nodes
    client = begun_receive(first, second)
    [rsync] = rsyncs(second)
    root = Path(f"/proc/{rsync}/root")
    assert (root / "staging").samefile(second.staging.directory)
    names = {each.name for each in root.iterdir()}
    names -= {"usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"}
    assert names == {"basis", "dev", "staging"}
    assert [each.name for each in (root / "dev").iterdir()] == ["null"]
    client.kill()
    ended(client)


def test_a_sender_that_goes_away_ends_the_session(nodes: NODES) -> None:
    first, second = nodes
    client = begun_receive(first, second)
    assert len(rsyncs(second)) == 1
    client.kill()
    ended(client)
    wait_until(lambda: bool(second.staging.ended), timeout_s=30, what="it has ended")
    assert second.staging.ended[0] not in (0, None)
    wait_until(lambda: rsyncs(second) == [], timeout_s=20, what="rsync has ended")


def test_a_removed_node_s_transfer_is_ended(nodes: NODES) -> None:
    first, second = nodes
    client = begun_receive(first, second)
    second.knows()
    # The sender is still there: it is the daemon that ends it.
    wait_until(lambda: rsyncs(second) == [], timeout_s=20, what="rsync has ended")
    assert ended(client) != 0
    assert second.staging.ended == [None]


def parent(process: int) -> int:
    found = re.search(r"PPid:\t(\d+)", Path(f"/proc/{process}/status").read_text())
    assert found is not None
    return int(found[1])


def test_a_killed_receiver_takes_its_rsync_along(nodes: NODES) -> None:
    first, second = nodes
    client = begun_receive(first, second)
    [rsync] = rsyncs(second)
    # Between them is the process that waits for the jail.
    os.kill(parent(parent(rsync)), signal.SIGKILL)
    wait_until(lambda: rsyncs(second) == [], timeout_s=20, what="rsync has ended")
    assert ended(client) != 0
    wait_until(lambda: second.staging.ended == [None], timeout_s=20, what="it is told")


def test_without_a_daemon_nothing_is_received(nodes: NODES, source: Path) -> None:
    first, second = nodes
    (source / "file").write_text("x")
    second.server.stop()
    done = first.send(second, source, ["file"])
    assert done.returncode != 0
    assert b"unavailable: Connection refused" in done.stderr
    assert list(second.staging.directory.iterdir()) == []


def test_a_staging_directory_that_is_gone_is_told(nodes: NODES, source: Path) -> None:
    first, second = nodes
    (source / "file").write_text("x")
    second.staging.directory.rmdir()
    done = first.send(second, source, ["file"])
    second.staging.directory.mkdir()
    assert done.returncode != 0
    assert b"unavailable: [Errno 2] No such file or directory" in done.stderr
    assert second.staging.ended == [1]
