"""`remora quarantine` against a real daemon that is alone."""

from __future__ import annotations

import gc
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.protocol.command import Cli, Done, caller
from tests.protocol.node import Node, running, wait_until
from tests.support.apart import ODD_NAMES, odd, put_apart

pytestmark = [
    pytest.mark.xdist_group("unit-cli"),
    # Elsewhere a call of main() is a process, whose end closes its sockets.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


# Its user 7 may read: version 2, and (tag, permissions, id). Source: posix_acl.h.
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHi", *each)
    for each in [(1, 6, -1), (2, 4, 7), (4, 4, -1), (16, 4, -1), (32, 4, -1)]
)


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with running() as found:
        yield found


@pytest.fixture
def cli(
    node: Node, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Cli]:
    """Return a function that calls the command as a shell does."""
    yield caller(node, monkeypatch, capsys)
    for name in node.names():
        path = node.pool / "volumes" / node.get(name)["Status"]["id"] / "quarantine"
        subprocess.run(["rm", "-rf", "--", path], check=True)
        node.ok("Remove", Name=name)
    gc.collect()  # here, where unclosed sockets are expected


@pytest.fixture
def tree(cli: Cli, node: Node) -> Path:
    """Return what was set apart of the new volume `db`."""
    volume_id = node.create("db", mode="0755")
    home = node.pool / "volumes" / volume_id
    (home / "live/both").write_text("live")
    made = put_apart(home, "3.7")
    (made / "both").write_text("apart!")
    for name in ODD_NAMES:
        odd(made, name).write_text("x")
    return made


def names(directory: Path) -> list[str]:
    return sorted(each.name for each in directory.iterdir())


def archive(node: Node, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Return what the command, in a process of its own, prints."""
    return subprocess.run(
        node.inside(*node.remora("quarantine", "export", *arguments)),
        env=node.environment(),
        capture_output=True,
        timeout=60,
        check=False,
    )


def test_it_is_listed_and_counted(cli: Cli, node: Node, tree: Path) -> None:
    [row] = cli("quarantine", "ls", "--json").json()
    assert (row["volume"], row["commit"], row["this_node"]) == ("db", "3.7", True)
    assert (row["files"], row["size_bytes"], row["whole"]) == (6, 11, True)
    assert row["path"] == str(tree)
    [heading, line] = cli("quarantine", "ls", "db").out.splitlines()
    assert heading.split()[:4] == ["VOLUME", "COMMIT", "NODE", "FILES"]
    assert line.split()[:2] == ["db", "3.7"]
    assert line.split()[2].endswith("*")
    assert node.get("db")["Status"]["set_apart"] == ["3.7"]
    wait_until(
        lambda: (
            "remora_quarantined 1.0" in node.control("GET", "/metrics").body.decode()
        ),
        "the reconciler notes it, and the gauge shows it",
    )
    assert any(
        each["check"] == "set apart" and "3.7" in each["evidence"]
        for each in cli("doctor", "--json").json()
    )
    node.create("other")
    assert cli("quarantine", "ls", "other", "--json").json() == []


def test_differences_are_shown_on_one_line_each(cli: Cli, tree: Path) -> None:
    done = cli("quarantine", "diff", "db", "3.7")
    assert done.code == 0
    assert done.err == "5 added, 0 removed, 1 changed\n"
    assert "changed  file       both  (size, time)" in done.out
    assert "added    file       new\\nline\n" in done.out
    assert "added    file       inv\\xffalid\n" in done.out
    assert len(done.out.splitlines()) == 6
    found = cli("quarantine", "diff", "db", "3.7", "--json").json()
    assert found["counts"] == {"added": 5, "removed": 0, "changed": 1}
    assert {"change", "kind", "path", "what"} == found["changes"][0].keys()
    done = cli("quarantine", "diff", "db", "3.7", "--limit", "2")
    assert len(done.out.splitlines()) == 2
    assert "4 are not shown" in done.err


def test_an_archive_unpacks_to_what_was_set_apart(
    cli: Cli, node: Node, tree: Path, tmp_path: Path
) -> None:
    os.setxattr(tree / "both", "user.colour", b"blue")
    os.setxattr(tree / "both", "system.posix_acl_access", ACL)
    with (tree / "sparse").open("wb") as file:
        file.truncate(2**26)
    target = tmp_path / "3.7.tar"
    assert cli("quarantine", "export", "db", "3.7", "-o", str(target)) == Done(
        0, "", ""
    )
    assert target.stat().st_mode & 0o777 == 0o600
    assert len(archive(node, "db", "3.7").stdout) == target.stat().st_size
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    subprocess.run(
        [
            *("tar", "--extract", "--xattrs", "--xattrs-include=*", "--acls"),
            *("--same-owner", "--numeric-owner", "-f", target, "-C", unpacked),
        ],
        check=True,
    )
    assert names(unpacked) == names(tree)
    for name in ("both", "sparse"):
        before, after = (tree / name).stat(), (unpacked / name).stat()
        assert (after.st_size, after.st_mtime_ns) == (
            before.st_size,
            before.st_mtime_ns,
        )
    assert (unpacked / "sparse").stat().st_blocks < 100
    assert os.getxattr(unpacked / "both", "user.colour") == b"blue"
    assert os.getxattr(unpacked / "both", "system.posix_acl_access") == ACL
    done = cli("quarantine", "export", "db", "3.7", "-o", str(target))
    assert (done.code, "is there already" in done.err) == (2, True)


def test_an_archive_that_breaks_off_is_no_archive(
    cli: Cli, node: Node, tree: Path, tmp_path: Path
) -> None:
    """Its end is missing, the command fails, and no file is left."""
    for number in range(40):
        (tree / f"{number:03}").write_bytes(os.urandom(2**20))
    target = tmp_path / "all.tar"
    reader = subprocess.Popen(
        node.inside(*node.remora("quarantine", "export", "db", "3.7")),
        env=node.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert reader.stdout.read(2**20)  # it has begun, and stops at the full pipe
    subprocess.run(["rm", "-rf", "--", tree], check=True)
    reader.stdout.read()
    assert reader.wait(timeout=60) == 19
    assert b"broke off" in reader.stderr.read()
    reader.stdout.close()
    reader.stderr.close()
    assert not target.exists()
    assert node.control("GET", "/v1/status").status == 200


def test_a_reader_that_leaves_ends_its_archive(node: Node, tree: Path) -> None:
    for number in range(40):
        (tree / f"{number:03}").write_bytes(os.urandom(2**20))
    for _ in range(4):  # more often than there are places
        reader = subprocess.Popen(
            node.inside(*node.remora("quarantine", "export", "db", "3.7")),
            env=node.environment(),
            stdout=subprocess.PIPE,
        )
        assert reader.stdout.read(2**16)
        reader.kill()
        reader.stdout.close()
        reader.wait(timeout=60)
        wait_until(lambda: not tars(tree), "tar is ended", timeout_s=60)


def tars(tree: Path) -> list[str]:
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(tree).encode() in each.read_bytes():
                found.append(each.parent.name)
        except OSError:
            continue
    return found


def test_a_clone_is_a_volume_of_its_own(cli: Cli, node: Node, tree: Path) -> None:
    assert (
        cli("quarantine", "clone", "db", "3.7", "old", "-o", "mode=0700").out == "old\n"
    )
    copy = Path(node.get("old")["Status"]["path"])
    assert (copy / "both").read_text() == "apart!"
    assert copy.stat().st_mode & 0o7777 == 0o700
    assert names(copy) == names(tree)
    assert cli("quarantine", "clone", "db", "3.7", "old").code == 18
    made = cli("quarantine", "clone", "db", "3.7", "other", "--json").json()
    assert (made["name"], made["options"]["mode"]) == ("other", "0755")
    assert cli("quarantine", "clone", "db", "3.7", "new", "-o", "nonsense=1").code == 10
    assert "new" not in node.names()
    assert tree.is_dir()


def test_only_a_person_discards(cli: Cli, node: Node, tree: Path) -> None:
    assert cli("rm", "db", "--force").code == 15
    assert node.get("db")["Status"]["phase"] == "ready"
    done = cli("quarantine", "discard", "db", "3.7", answer="n\n")
    assert (done.code, done.out) == (130, "")
    assert tree.is_dir()
    assert cli("quarantine", "discard", "db", "3.7", answer="y\n").out == "db 3.7\n"
    assert not tree.exists()
    assert cli("quarantine", "ls", "--json").json() == []
    done = cli("quarantine", "discard", "db", "3.7", "--force")
    assert done.code == 10
    assert "no commit 3.7 of 'db' is set apart on this node" in done.error
    assert cli("rm", "db", "--force").code == 0


def test_what_is_mistyped_is_told(cli: Cli, node: Node, tree: Path) -> None:
    assert cli("quarantine", "diff", "db", "3.8").code == 10
    for commit in ("../../x", "..", "3.7.1", "3.7\n", ""):
        assert cli("quarantine", "discard", "db", commit, "--force").code == 10
    assert node.control("DELETE", "/v1/quarantine/db/%2E%2E").status == 400
    assert node.control("DELETE", "/v1/quarantine/db/3.7x").status == 400
    assert node.control("GET", "/v1/quarantine/db/3.7/diff?limit=-1").status == 400
    assert node.control("POST", "/v1/quarantine/db/3.7/clone", {}).status == 400
    assert cli("quarantine", "diff", "none", "3.7").code == 11
    assert cli("quarantine", "ls", "none").code == 11
    assert cli("quarantine", "ls", "../x").code == 10
    assert cli("quarantine", "diff", "db", "3.7", "--limit", "-1").code == 2
    assert tree.is_dir()
