"""The catalogue on a share, driven by two nodes; here on a local directory."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from backends.nfs.agent import main, trash, volumes
from backends.nfs.agent.catalogue import (
    CREATION_FRESH_S,
    LEASE_FRESH_S,
    Catalogue,
    Refused,
    key_of,
)
from backends.nfs.agent.changing import CHANGE_FRESH_S, changing
from backends.system.programs import own_program
from backends.system.run import run
from tests.support.nfs_agent import Node


@pytest.fixture
def nodes(tmp_path: Path) -> tuple[Node, Node]:
    """Return two nodes of one share."""
    return Node(tmp_path, "a"), Node(tmp_path, "b")


def refused(code: str, act: Callable[[], object]) -> str:
    """Return the text of the refusal that *act* ends with."""
    with pytest.raises(Refused) as caught:
        act()
    assert caught.value.code == code
    return str(caught.value)


def test_what_one_node_makes_the_other_sees(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    made = a.create("v", subdir="deep/er/v")
    assert (a.root / "deep/er/v").stat().st_mode & 0o7777 == 0o750
    assert b.names() == ["v"]
    assert volumes.find(b.catalogue, {"name": "v"}) == made
    assert a.left("new") == []


def test_the_same_volume_from_both_is_one(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    made = a.create("v", requested={"mode": "0750"})
    assert b.create("v", requested={"mode": "0750"})["id"] == made["id"]
    other = b.create("v", requested={"mode": "0700"})
    assert other["requested"] == {"mode": "0750"}
    assert b.names() == ["v"]


def test_two_volumes_cannot_have_one_directory(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    a.create("v", subdir="shared")
    assert "belongs to volume 'v'" in refused(
        "EXISTS", lambda: b.create("w", subdir="shared")
    )
    assert b.names() == ["v"]
    assert len(a.left("volumes")) == len(a.left("claims")) == 1


def test_a_node_finishes_its_own_creation_at_once(nodes: tuple[Node, Node]) -> None:
    a, _ = nodes
    marker = a.create("v")
    a.forge(marker, state="creating")
    assert a.create("v")["id"] == marker["id"]
    assert a.names() == ["v"]


def test_a_directory_that_is_nobodys_is_not_taken(nodes: tuple[Node, Node]) -> None:
    a, _ = nodes
    (a.root / "v").mkdir()
    (a.root / "v/file").write_text("precious")
    assert "belongs to no volume" in refused("EXISTS", lambda: a.create("v"))
    assert a.left("volumes") == a.left("claims") == []
    a.create("v", adopt=True)
    assert (a.root / "v/file").read_text() == "precious"


def test_an_empty_one_is_not_taken_either(nodes: tuple[Node, Node]) -> None:
    a, _ = nodes
    (a.root / "v").mkdir()
    refused("EXISTS", lambda: a.create("v"))


def test_a_symbolic_link_leads_nowhere(nodes: tuple[Node, Node]) -> None:
    a, _ = nodes
    (a.root / "way").symlink_to("/tmp")
    text = refused("EXISTS", lambda: a.create("v", subdir="way/v"))
    assert text == "'way' is no directory, or a symbolic link"


@pytest.mark.parametrize("made", [True, False])
def test_a_creation_cut_short_is_finished_by_the_other_node(
    nodes: tuple[Node, Node], made: bool
) -> None:
    a, b = nodes
    marker = a.create("v")
    if not made:
        (a.root / "v").rmdir()
    a.forge(marker, state="creating", identity=None)
    assert b.names() == []
    # As long as the other may still be at it, nobody interferes.
    assert "created on a" in refused("CREATING", lambda: b.create("v"))
    path = a.root / ".dvol/volumes" / key_of("v")
    old = path.stat().st_mtime - CREATION_FRESH_S - 1
    os.utime(path, (old, old))
    done = b.create("v")
    assert done["id"] == marker["id"]
    assert done["state"] == "ready"
    assert b.names() == ["v"]


def test_an_unfinished_creation_is_taken_back(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    marker = a.create("v")
    volumes.discard(a.catalogue, {"name": "v", "id": marker["id"]})
    assert a.names() == ["v"], "what is ready stays"
    a.forge(marker, state="creating")
    volumes.discard(b.catalogue, {"name": "v", "id": str(uuid.uuid4())})
    assert len(a.left("volumes")) == 1, "what is another's stays"
    volumes.discard(a.catalogue, {"name": "v", "id": marker["id"]})
    assert a.left("volumes") == a.left("claims") == []
    assert not (a.root / "v").exists()


def test_bytes_are_never_taken_back(nodes: tuple[Node, Node]) -> None:
    a, _ = nodes
    marker = a.create("v")
    (a.root / "v/file").write_text("precious")
    a.forge(marker, state="creating")
    volumes.discard(a.catalogue, {"name": "v", "id": marker["id"]})
    assert (a.root / "v/file").read_text() == "precious"


@pytest.mark.parametrize("on_delete", ["retain", "archive", "delete"])
def test_removal_does_what_it_is_asked_to(
    nodes: tuple[Node, Node], on_delete: str
) -> None:
    a, b = nodes
    (a.root / "x").mkdir()
    (a.root / "x/sibling").write_text("keep")
    for _ in range(2):
        marker = a.create("v", subdir="x/y/v", adopt=on_delete == "retain")
        (a.root / "x/y/v/file").write_text("bytes")
        b.remove(marker, on_delete)
        assert b.names() == []
        assert a.left("claims") == a.left("leases") == []
    assert (a.root / "x/sibling").read_text() == "keep"
    assert (a.root / "x/y").exists() == (on_delete == "retain")
    assert len(a.left("archived")) == (2 if on_delete == "archive" else 0)
    assert len(a.left("trash")) == (2 if on_delete == "delete" else 0)
    if on_delete == "archive":
        kept = a.root / ".dvol/archived" / a.left("archived")[0] / "file"
        assert kept.read_text() == "bytes"
    found = volumes.survey(a.catalogue, {"first": True, "held": []})
    assert found["thrown_away"] == len(a.left("trash"))
    command = own_program(trash, str(a.root))
    assert run(command, deadline_s=30).output == str(found["thrown_away"])
    assert a.left("trash") == []


def test_a_directory_that_was_replaced_is_not_deleted(
    nodes: tuple[Node, Node],
) -> None:
    a, b = nodes
    marker = a.create("v")
    before = a.catalogue.identity("v")
    (a.root / "v").rmdir()
    (a.root / "v").mkdir()
    assert a.catalogue.identity("v") != before
    (a.root / "v/file").write_text("somebody else's")
    assert "is not the one" in refused("REPLACED", lambda: b.remove(marker))
    assert (a.root / "v/file").exists()
    assert b.names() == ["v"]


def test_a_volume_that_took_the_name_is_not_removed(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    old = a.create("v")
    a.remove(old)
    new = b.create("v")
    refused("EXISTS", lambda: a.remove(old))
    assert "taken its name" in refused("STALE", lambda: a.hold(old))
    assert b.hold(new)["id"] == new["id"]


def test_a_volume_held_elsewhere_is_not_removed(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    marker = a.create("v")
    b.hold(marker)
    assert "mounted on b" in refused("INUSE", lambda: a.remove(marker))
    assert a.names() == ["v"]
    a.hold(marker)
    b.release(marker)
    a.remove(marker)
    assert "removed on another node" in refused("STALE", lambda: b.hold(marker))
    assert a.left("leases") == []


def test_a_node_that_is_gone_holds_nothing_for_ever(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    marker = a.create("v")
    b.hold(marker)
    lease = a.root / ".dvol/leases" / marker["id"] / "b"
    old = lease.stat().st_mtime - LEASE_FRESH_S - 1
    os.utime(lease, (old, old))
    volumes.survey(b.catalogue, {"first": True, "held": [marker["id"]]})
    refused("INUSE", lambda: a.remove(marker))
    os.utime(lease, (old, old))
    assert a.remove(marker) == "delete"


def test_a_removal_cut_short_can_be_repeated(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    marker = a.create("v")
    a.forge(marker, state="removing")
    refused("STALE", lambda: b.hold(marker))
    assert b.names() == []
    b.remove(marker)
    assert a.left("volumes") == []
    assert b.remove(marker) == "gone"


def test_one_node_at_a_time_changes_a_volume(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    marker = a.create("v")
    with changing(a.catalogue, marker["id"]):
        assert "changed on a" in refused("CHANGING", lambda: b.remove(marker))
        # A removal that a crash has cut short goes on at once on its own node.
        with changing(a.catalogue, marker["id"]):
            pass
    assert b.names() == ["v"]
    with changing(a.catalogue, marker["id"]):
        lock = a.root / ".dvol/changing" / marker["id"]
        old = lock.stat().st_mtime - CHANGE_FRESH_S - 1
        os.utime(lock, (old, old))
        assert b.remove(marker) == "delete"
    assert a.left("changing") == a.left("new") == []


def test_only_what_was_seen_is_taken_away(nodes: tuple[Node, Node]) -> None:
    a, _ = nodes
    marker = a.create("v")
    a.catalogue.unlink_if({**marker, "id": "another"}, "volumes", key_of("v"))
    assert a.names() == ["v"]
    a.catalogue.unlink_if(marker, "volumes", key_of("v"))
    a.catalogue.unlink_if(marker, "volumes", key_of("v"))
    assert a.names() == a.left("new") == []


def test_a_claim_without_its_volume_is_taken_over(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    marker = a.create("v", subdir="d")
    (a.root / "d").rmdir()
    (a.root / ".dvol/volumes" / key_of("v")).unlink()
    b.create("w", subdir="d")
    assert b.names() == ["w"]
    assert marker["id"] not in (a.root / ".dvol/claims" / key_of("d")).read_text()


def test_a_scan_sees_changes_and_reads_only_those(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    kept = a.create("kept")
    assert b.names() == ["kept"]
    gone = a.create("gone")
    assert b.names() == ["gone", "kept"]
    a.remove(gone)
    a.forge(kept, state="removing")
    markers = a.root / ".dvol/volumes"
    (markers / key_of("kept")).rename(markers / "other.json")
    assert b.names() == []


def test_a_damaged_marker_is_told_not_guessed(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    a.create("v")
    (a.root / ".dvol/volumes" / key_of("v")).write_text("{half")
    assert "is damaged" in refused("CATALOGUE", lambda: b.create("v"))


def _churn(root: Path, node: str, seed: int) -> None:
    """Create and remove the same 40 names as the other processes do, three times."""
    agent = Node(root, node)
    for turn in range(3):
        for number in range(40):
            name = f"v{(number * 7 + seed) % 40}"
            volume_id = str(uuid.uuid4())
            try:
                marker = agent.create(name, id=volume_id)
                if (number + turn + seed) % 2:
                    agent.remove(marker)
            except Refused as error:
                assert error.code in ("CREATING", "CHANGING", "INUSE", "EXISTS")
            except FileNotFoundError:
                # Others took something away between two steps: as the daemon does.
                volumes.discard(agent.catalogue, {"name": name, "id": volume_id})


def test_nodes_that_create_and_remove_at_once_leave_an_exact_catalogue(
    tmp_path: Path,
) -> None:
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=_churn, args=(tmp_path, f"n{seed}", seed))
        for seed in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    node = Node(tmp_path, "check")
    # Whatever was cut short by the others is finished by the next who comes.
    for number in range(40):
        node.create(f"v{number}")
    assert len(node.names()) == 40
    directories = {each.name for each in tmp_path.iterdir() if each.name != ".dvol"}
    assert directories == set(node.names())
    for name in node.names():
        marker = node.catalogue.marker(name)
        assert marker is not None
        assert marker["identity"] == node.catalogue.identity(name)
        node.remove(marker)
    assert node.left("volumes") == node.left("claims") == node.left("new") == []


def test_two_nodes_take_and_give_back_one_lease_at_once(tmp_path: Path) -> None:
    errors: list[Exception] = []

    def work(node: str) -> None:
        catalogue = Catalogue(str(tmp_path), node)
        for _ in range(500):
            try:
                catalogue.touch_lease("volume")
            except (OSError, Refused) as error:
                errors.append(error)
            catalogue.drop_lease("volume")

    threads = [threading.Thread(target=work, args=(each,)) for each in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert list((tmp_path / ".dvol/leases").iterdir()) == []


def test_one_damaged_marker_hides_no_other(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    a.create("v")
    a.create("w")
    (a.root / ".dvol/volumes" / key_of("v")).write_text("{half")
    assert b.names() == ["w"]


def test_what_a_crash_left_half_written_goes(
    nodes: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, _ = nodes
    a.create("v")
    (a.root / ".dvol/new/left").write_text("{")
    volumes.survey(a.catalogue, {"first": True, "held": []})
    assert a.left("new") == ["left"]
    later_s = time.time() + 4000
    monkeypatch.setattr(Catalogue, "_server_time_s", lambda _: later_s)
    volumes.survey(a.catalogue, {"first": True, "held": []})
    assert a.left("new") == []


def test_what_another_node_is_just_creating_stays(nodes: tuple[Node, Node]) -> None:
    """Until that is done, the file's mtime is a number of that node's, and no time."""
    a, _ = nodes
    a.create("v")
    path = a.root / ".dvol/new/another-node-s"
    path.touch()
    os.utime(path, (4711, 4711))
    volumes.survey(a.catalogue, {"first": True, "held": []})
    assert a.left("new") == ["another-node-s"]


def test_nonsense_in_a_request_or_marker_is_an_answer(nodes: tuple[Node, Node]) -> None:
    a, _ = nodes
    marker = a.create("v")
    a.forge({"name": "v", "id": marker["id"]})
    request = {"name": "v", "id": marker["id"], "uid": 0}
    hold = partial(main.OPERATIONS["hold"], a.catalogue, request)
    answer = main._answering(hold, request)
    assert answer["code"] == "CATALOGUE"
