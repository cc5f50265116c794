"""
A share whose catalogue was poisoned by somebody who can write to it.

The agent and the trash program run as they do on a node, as root, on a directory that
stands for the control mount. What lies beside it is the node's own disk (`host`), and
another volume of the share is `victim`: neither may change, or be read.
"""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from backends.nfs.agent import main as agent_main
from backends.nfs.agent import trash as trash_program
from backends.nfs.agent.catalogue import key_of
from backends.system import jail
from backends.system.programs import own_program
from tests.support.nfs_agent import Node
from tests.support.peers import COMMAND_DEADLINE_S

NODE = "node1.uuid"
PARTS = ("volumes", "claims", "leases", "archived", "trash", "new", "changing")
DEEP = 1200


@dataclass(frozen=True)
class Share:
    """A share at *root*, and the disk of a node at *host*."""

    root: Path
    host: Path

    def put(self, key: str = "evil", **fields: Any) -> str:
        """Write a marker with *fields* in the place of *key*; return its id."""
        marker = {
            "id": str(uuid.uuid4()),
            "name": key,
            "subdir": key,
            "state": "ready",
            "adopt": False,
            "requested": {},
            "options": {},
            "node": NODE,
            "created_at": "2026-01-02T03:04:05Z",
            **fields,
        }
        path = self.root / ".dvol/volumes" / key_of(key)
        path.write_text(json.dumps(marker))
        return str(marker["id"])

    def ask(self, op: str, **request: Any) -> dict[str, Any]:
        """Return the agent's answer."""
        done = subprocess.run(
            own_program(agent_main, str(self.root), NODE),
            input=json.dumps({"op": op, **request}) + "\n",
            capture_output=True,
            text=True,
            timeout=COMMAND_DEADLINE_S,
            check=True,
        )
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def survey(self, *held: str) -> dict[str, Any]:
        """Return what a survey finds; *held* are volumes that are mounted here."""
        return self.ask("survey", held=list(held), first=True)

    def empty_trash(self) -> int:
        """Return how many things the trash program says that it has deleted, or -1."""
        command = own_program(trash_program, str(self.root))
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=120, check=False
        )
        assert "Traceback" not in done.stderr
        return int(done.stdout) if done.returncode == 0 else -1


def contents(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): path.read_text()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def share(tmp_path: Path) -> Share:
    made = Share(tmp_path / "share", tmp_path / "host")
    for part in PARTS:
        (made.root / ".dvol" / part).mkdir(parents=True)
    for at in (made.host, made.root / "victim"):
        for name in ("etc/shadow", "etc/cron.d/job", "home/alice/thesis"):
            (at / name).parent.mkdir(parents=True, exist_ok=True)
            (at / name).write_text("precious")
            os.utime(at / name, (0, 0))
    return made


@pytest.fixture(params=["host", "victim"])
def prey(request: pytest.FixtureRequest, share: Share) -> Path:
    """Return what an attack is to reach: the node's disk, or another volume."""
    return share.host if request.param == "host" else share.root / "victim"


@pytest.fixture(autouse=True)
def nothing_is_touched(share: Share) -> Any:
    """See that the node's disk and the other volume are as they were."""
    both = share.host, share.root / "victim"
    before = [contents(each) for each in both]
    yield
    assert [contents(each) for each in both] == before


def link(share: Share, place: str, prey: Path, *, relative: bool) -> None:
    """Put a symbolic link at `.dvol`/*place* that leads to *prey*."""
    path = share.root / ".dvol" / place
    if path.is_dir():
        path.rmdir()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(os.path.relpath(prey, path.parent) if relative else prey)


def test_an_agent_in_its_jail_knows_a_directory_as_others_do(share: Share) -> None:
    """By its handle: with the inode number alone, one that replaced it was deleted."""
    marker = Node(share.root, "other").create("v")
    request = {"name": "v", "id": marker["id"], "on_delete": "delete", "time": ""}
    (share.root / "v").rmdir()
    (share.root / "v").mkdir()  # with the same number, on most filesystems
    assert share.ask("remove", **request)["code"] == "REPLACED"
    share.put(
        "v", **{**marker, "identity": Node(share.root, "x").catalogue.identity("v")}
    )
    assert share.ask("remove", **request) == {"result": "delete"}


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("place", ["trash", "new", "archived", "volumes", "changing"])
def test_a_part_of_the_catalogue_is_a_link(
    share: Share, prey: Path, place: str, relative: bool
) -> None:
    link(share, place, prey / "home/alice", relative=relative)
    share.survey()
    share.empty_trash()
    share.ask("remove", name="evil", id=str(uuid.uuid4()), on_delete="delete", time="")


@pytest.mark.parametrize("hard", [False, True])
def test_a_lease_is_another_file(share: Share, prey: Path, hard: bool) -> None:
    held = str(uuid.uuid4())
    if hard:
        (share.root / ".dvol/leases" / held).mkdir()
        os.link(prey / "etc/shadow", share.root / ".dvol/leases" / held / NODE)
    else:
        link(share, f"leases/{held}/{NODE}", prey / "etc/shadow", relative=False)
    share.survey(held)


def test_the_directory_of_leases_is_a_link(share: Share, prey: Path) -> None:
    held = str(uuid.uuid4())
    link(share, f"leases/{held}", prey / "etc", relative=True)
    share.survey(held)
    share.ask("release", id=held)
    assert not (prey / "etc" / NODE).exists()


@pytest.mark.parametrize("key", ["copy", "keep_as", "subdir"])
def test_a_swap_with_paths_of_its_own(share: Share, prey: Path, key: str) -> None:
    (share.root / "evil").mkdir()
    copy = share.root / ".dvol/copies" / NODE / "0123456789abcdef"
    (copy / "data").mkdir(parents=True)
    paths = [str(prey / "etc/cron.d")]
    if key != "subdir":
        paths.append(os.path.relpath(prey / "etc", share.root))
    for path in paths:
        swap = {"copy": ".dvol/copies/node1.uuid/0123456789abcdef", "keep_as": "kept"}
        fields: dict[str, Any] = {"identity": "1", "swap": {**swap, "node": NODE}}
        if key == "subdir":
            fields["subdir"] = path
        else:
            fields["swap"][key] = path
        volume = share.put(**fields)
        assert share.survey()["result"]["markers"] == []
        share.ask("repair", tokens=["0123456789abcdef", "cron.d", "etc"])
        assert "code" in share.ask("hold", name="evil", id=volume)


@pytest.mark.parametrize(
    "subdir",
    ["/etc", "../host/etc", "a/../../host/etc", ".dvol/trash", "", ".", "a//b", "a\nb"],
)
def test_a_directory_that_is_none(share: Share, subdir: str) -> None:
    volume = share.put(subdir=subdir)
    assert share.survey()["result"]["markers"] == []
    for op in ("locate", "hold", "remove_snapshot", "require_free"):
        answer = share.ask(op, name="evil", id=volume, snapshot="x")
        assert answer["code"] == "CATALOGUE", answer


def test_a_directory_that_leads_through_a_link(share: Share, prey: Path) -> None:
    (share.root / "way").symlink_to(prey)
    volume = share.put(subdir="way/etc")
    assert "code" in share.ask("locate", name="evil", id=volume, snapshot="")
    request = {"name": "evil", "id": volume, "on_delete": "delete", "time": ""}
    assert share.ask("remove", **request) == {"result": "gone"}


@pytest.mark.parametrize("way", ["", "way/"])
def test_a_volume_whose_directory_is_a_link_is_not_mounted(
    share: Share, prey: Path, way: str
) -> None:
    """The kernel would follow it, in all that the server has."""
    (share.root / "way").symlink_to(prey)
    subdir = f"{way}etc" if way else "way"
    volume = share.put(subdir=subdir)
    assert "code" in share.ask("hold", name="evil", id=volume)
    assert not list((share.root / ".dvol/leases").iterdir())


@pytest.mark.parametrize(
    "fields",
    [
        {"id": "not a uuid"},
        {"id": "../../../etc"},
        {"name": "a\nforged line"},
        {"options": {"mountOptions": 1}},
        {"options": {"a": "b\x1b[2J"}},
        {"options": "text"},
        {"requested": {"x": "y" * 5000}},
        {"state": "sideways"},
        {"node": "../x"},
        {"made_parents": ["../host"]},
        {"made_parents": ["victim"]},
        {"identity": ["x"]},
        {"adopt": "yes"},
        {"created_at": "\n"},
    ],
)
def test_a_marker_that_is_none_harms_no_other(
    share: Share, fields: dict[str, Any]
) -> None:
    share.put("evil", **fields)
    good = share.put("good")
    found = share.survey()["result"]["markers"]
    assert [each["id"] for each in found] == [good]


NONSENSE = {
    "nothing": "",
    "a list": "[]",
    "a number": "1",
    "no text": "\x00",
    "an empty object": "{}",
    "deep lists": "[" * 30_000,
    "deep objects": '{"a":' * 5000,
}


@pytest.mark.parametrize("text", [*NONSENSE.values()], ids=[*NONSENSE])
def test_a_file_of_nonsense_harms_no_other(share: Share, text: str) -> None:
    (share.root / ".dvol/volumes" / key_of("evil")).write_text(text)
    (share.root / ".dvol/volumes/strange name.json").write_text(text)
    good = share.put("good")
    assert [each["id"] for each in share.survey()["result"]["markers"]] == [good]


def test_what_is_not_known_goes_no_further(share: Share) -> None:
    """A marker of 2 KB, too deep for the daemon, made a share unseen on all nodes."""
    deep = json.loads("[" * 900 + "]" * 900)
    copy = {"copy": f".dvol/copies/{NODE}/0123456789abcdef", "keep_as": "s"}
    volume = share.put("v", x=deep, swap={**copy, "node": NODE, "x": deep})
    (share.root / "v").mkdir()
    key = key_of("v").removesuffix(".json")
    at = share.root / ".dvol/snapshots" / key / "s"
    at.mkdir(parents=True)
    (at / "snapshot.json").write_text(json.dumps({"files": 1, "x": deep}))
    marker = share.ask("find", name="v")["result"]
    for each in (marker, *share.survey()["result"]["markers"]):
        assert "x" not in {*each, *each["swap"]}
    answer = share.ask("snapshots", name="v", id=volume)
    assert answer == {"result": [{"files": 1, "name": "s"}]}
    claim = share.root / ".dvol/claims" / key_of("w")
    claim.write_text(json.dumps({"id": volume, "name": "gone", "x": deep}))
    created = {**marker, "name": "w", "subdir": "w", "requested": {}, "options": {}}
    del created["swap"]
    own = {"own_uid": None, "own_gid": None, "mode": None, "content": ""}
    assert share.ask("create", marker=created, **own)["result"]["state"] == "ready"


def test_a_marker_under_another_ones_name(share: Share) -> None:
    volume = share.put("good")
    directory = share.root / ".dvol/volumes"
    (directory / key_of("good")).rename(directory / key_of("other"))
    assert share.survey()["result"]["markers"] == []
    answer = share.ask("hold", name="other", id=volume)
    assert answer["code"] == "CATALOGUE"


def test_a_marker_that_is_a_pipe_or_a_device(share: Share) -> None:
    directory = share.root / ".dvol/volumes"
    os.mkfifo(directory / key_of("pipe"))
    os.mknod(directory / key_of("device"), 0o20666, os.makedev(1, 9))
    (directory / key_of("directory")).mkdir()
    good = share.put("good")
    assert [each["id"] for each in share.survey()["result"]["markers"]] == [good]


def test_trash_that_is_deeper_than_python_goes(share: Share) -> None:
    at = os.open(share.root / ".dvol/trash", os.O_RDONLY)
    for name in ("a", *("d" * DEEP)):
        os.mkdir(name, dir_fd=at)
        below = os.open(name, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    (share.root / ".dvol/trash/z").mkdir()
    link(share, "trash/link", share.host, relative=False)
    assert share.empty_trash() == 3
    assert [*(share.root / ".dvol/trash").iterdir()] == []


@pytest.mark.parametrize(
    ("first", "second"),
    [("team", "team/db"), ("team/db", "team"), ("a/b/c", "a"), ("v", "v/v")],
)
def test_volumes_never_lie_one_in_the_other(
    share: Share, first: str, second: str
) -> None:
    def create(name: str, subdir: str) -> dict[str, Any]:
        marker = {
            "id": str(uuid.uuid4()),
            "name": name,
            "subdir": subdir,
            "adopt": True,
            "requested": {},
            "options": {},
            "created_at": "x",
        }
        owner = {"own_uid": None, "own_gid": None, "mode": None}
        return share.ask("create", marker=marker, content="", **owner)

    assert create("one", first)["result"]["state"] == "ready"
    refusal = create("two", second)
    assert refusal["code"] == "EXISTS", refusal
    assert "one in the other" in refusal["text"]
    assert create("three", f"{first}-other")["result"]["state"] == "ready"
    assert len(share.survey()["result"]["markers"]) == 2


@pytest.mark.parametrize("on_delete", ["delete", "archive"])
def test_one_that_holds_another_from_before_stays(share: Share, on_delete: str) -> None:
    (share.root / "outer/inner").mkdir(parents=True)
    outer = share.put("outer")
    share.put("inner", subdir="outer/inner")
    request = {"name": "outer", "id": outer, "on_delete": on_delete, "time": "x"}
    answer = share.ask("remove", **request)
    assert answer["code"] == "EXISTS", answer
    assert (share.root / "outer/inner").is_dir()
    assert len(share.survey()["result"]["markers"]) == 2


def test_a_marker_that_may_not_be_read_hides_no_other(
    share: Share, capsys: pytest.CaptureFixture[str]
) -> None:
    """As under root_squash, where others may write to the catalogue's directories."""
    node = Node(share.root, NODE)
    node.create("good")
    denied = share.root / ".dvol/volumes/x\n<4>forged\x1b[2J.json"
    denied.write_text("{}")
    denied.chmod(0o600)
    for directory in (share.root, share.root / ".dvol", denied.parent):
        directory.chmod(0o1777)
    with jail.as_user(1000, 1000):
        assert node.names() == ["good"]
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("x\\n<4>forged\\x1b[2J.json: ")
    assert line.isprintable()
