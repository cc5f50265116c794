"""What a node makes of the markers that whoever writes to a share has put there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backends.base import Snapshot, Volume
from backends.errors import BackendError, InvalidRequestError
from backends.nfs import mounting
from backends.nfs.backend import NfsBackend
from backends.nfs.options import export_of, mount_entries
from backends.nfs.share import Share, ShareState
from backends.system.mounts import mounted_at
from plugin.model import VolumeRecord
from plugin.volumes.catalogue import Catalogue
from tests.support.memory_store import MemoryStore

OPTIONS = {"server": "192.0.2.1", "share": "/x", "nfsvers": "4", "mountMode": "subdir"}
GOOD = {
    "state": "ready",
    "id": "11111111-1111-4111-8111-111111111111",
    "name": "good",
    "options": OPTIONS,
    "requested": {"server": "192.0.2.1", "share": "/x", "backend": "nfs"},
    "created_at": "2026-01-01T00:00:00Z",
}


@pytest.fixture
def backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NfsBackend:
    """Return a backend that watches one share; nobody asks its server."""
    monkeypatch.setattr(Share, "start", lambda _: None)
    return NfsBackend(tmp_path, node="node")


def discovered(backend: NfsBackend, *markers: dict[str, Any]) -> list[Volume]:
    volume = Volume(id=str(GOOD["id"]), name="good", options=OPTIONS, created_at="")
    backend._shares.of(volume).state = ShareState(state="ok", markers=[*markers])
    return list(backend.discover())


@pytest.mark.parametrize(
    "options",
    [
        {**OPTIONS, "subDir": "../../x"},
        {**OPTIONS, "subDir": "/etc"},
        {**OPTIONS, "subDir": ".dvol/volumes"},
        {**OPTIONS, "subDir": "a,b"},
        {**OPTIONS, "mountOptions": "bg,anything"},
        {**OPTIONS, "mountOptions": "hard\nforged line"},
        {**OPTIONS, "mountOptions": "addr=203.0.113.9"},
        {**OPTIONS, "nfsvers": "4,bg"},
        {**OPTIONS, "server": "-o"},
        {**OPTIONS, "share": "../x"},
        {**OPTIONS, "share": "/x,bg"},
        {**OPTIONS, "suid": "maybe"},
        {**OPTIONS, "uid": "-1"},
        {**OPTIONS, "mode": "0o9"},
        {**OPTIONS, "mountMode": "other"},
        {**OPTIONS, "onDelete": "everything"},
        {**OPTIONS, "size": "1G"},
        {**OPTIONS, "unknown": "x"},
        {**OPTIONS, "mode": 755},
        {"server": "192.0.2.1"},
        {},
        [],
    ],
    ids=str,
)
def test_options_that_no_user_could_give_are_passed_over(
    backend: NfsBackend, options: object, caplog: pytest.LogCaptureFixture
) -> None:
    """And those of the next marker are read."""
    bad = {**GOOD, "name": "bad", "options": options}
    asked = {**GOOD, "name": "asked", "requested": options}
    found = discovered(backend, bad, *([asked] if options else []), GOOD)
    names = {volume.name for volume in found}
    assert "good" in names
    assert "bad" not in names
    if options != {"server": "192.0.2.1"}:  # a user may well ask for no more
        assert "asked" not in names
    assert all("\n" not in message for message in caplog.messages)


def test_a_marker_has_no_say_in_what_is_mounted_and_how(backend: NfsBackend) -> None:
    """Only in what lies on the share it was found on."""
    elsewhere = {"server": "203.0.113.9", "share": "/evil", "nfsvers": "3"}
    bold = {"suid": "true", "mountOptions": "nolock,port=2050,sec=sys,suid,dev"}
    kept = {"readOnly": "true", "onDelete": "archive"}
    [found] = discovered(backend, {**GOOD, "options": elsewhere | bold | kept})
    assert export_of(found.options) == export_of(OPTIONS)
    assert mount_entries(found) == "hard,ro,nodev,nosuid"
    assert found.options["onDelete"] == "archive"


def test_a_profile_may_want_suid_for_what_is_on_its_share(backend: NfsBackend) -> None:
    backend.watch({**OPTIONS, "suid": "true"})
    [found] = discovered(backend, GOOD)
    assert mount_entries(found) == "hard,nodev"


def test_a_profile_may_have_no_path_of_a_share_mounted(backend: NfsBackend) -> None:
    """By the server, that is: a directory may be a link by then, and lead anywhere."""
    backend.watch({**OPTIONS, "mountMode": "share"})
    [found] = discovered(backend, GOOD)
    assert found.options["mountMode"] == "share"


def test_what_is_found_in_a_mounted_share_is_no_link(tmp_path: Path) -> None:
    for name in ("share", "other", "target"):
        (tmp_path / name).mkdir()
    (tmp_path / "share/good").symlink_to(tmp_path / "other")
    with pytest.raises(BackendError, match=r"cannot bind .*: Not a directory"):
        mounting.bind(tmp_path / "share", "good", tmp_path / "target", where="x")
    assert mounted_at(tmp_path / "target") is None


@pytest.mark.parametrize(
    "fields",
    [
        {"options": {**OPTIONS, "subDir": "victim"}, "subdir": "good"},
        {"options": {**OPTIONS, "mountMode": "direct"}},
    ],
)
def test_a_marker_whose_directory_is_another_is_passed_over(
    backend: NfsBackend, fields: dict[str, object]
) -> None:
    assert discovered(backend, {**GOOD, **fields}) == []


NONSENSE: tuple[dict[str, str], ...] = (
    {"a": "b"},
    {**OPTIONS, "uid": "abc"},
    {**OPTIONS, "nfsvers": ""},
    {},
)


@pytest.mark.parametrize("options", NONSENSE, ids=str)
def test_a_record_of_an_earlier_version_that_says_nonsense_can_be_removed(
    backend: NfsBackend, options: dict[str, str], tmp_path: Path
) -> None:
    odd = Volume(id=str(GOOD["id"]), name="odd", options=options, created_at="")
    assert not backend.knows(odd)
    assert backend.users(odd, tmp_path) == []
    backend.unmount(odd, tmp_path / "target", deadline_s=1)
    backend.require_removable(odd)
    backend.remove(odd, deadline_s=1)


@pytest.mark.parametrize("options", NONSENSE, ids=str)
def test_a_record_of_an_earlier_version_that_says_nonsense_is_refused(
    backend: NfsBackend, options: dict[str, str], tmp_path: Path
) -> None:
    """In one line; and its status says so, for an error would mean no volume."""
    odd = Volume(id=str(GOOD["id"]), name="odd", options=options, created_at="")
    told = backend.status(odd)
    assert told["health"] == "error"
    assert "the record of 'odd' says what no volume may have" in str(told["error"])
    target = tmp_path / "target"
    for use in (
        lambda: backend.mount(odd, target, deadline_s=1),
        lambda: backend.data_directory(odd),
        lambda: backend.snapshots.all(odd),
        lambda: backend.snapshots.remove(odd, "s"),
    ):
        with pytest.raises(BackendError, match=r"no volume may have: .*remora rm odd"):
            use()
    assert not target.exists()


def test_a_record_of_an_earlier_version_that_says_less_is_completed(
    backend: NfsBackend,
) -> None:
    short = {"server": "192.0.2.1", "share": "/x"}
    old = Volume(id=str(GOOD["id"]), name="old", options=short, created_at="")
    assert backend.status(old)["source"] == "192.0.2.1:/x/old"


@pytest.mark.parametrize("said", ["\ud800", "a\nb", "x" * 5000])
def test_what_no_record_can_hold_is_refused(backend: NfsBackend, said: str) -> None:
    """The record was encoded, and what that raised ended the look for all volumes."""
    [found] = discovered(backend, {**GOOD, "created_at": said})
    with pytest.raises(InvalidRequestError):
        Catalogue(MemoryStore()).insert(VolumeRecord.of(found, backend="nfs"))


def test_options_of_earlier_versions_are_completed(backend: NfsBackend) -> None:
    [found] = discovered(backend, GOOD)
    assert found.options["onDelete"] == "retain"
    assert dict(found.requested) == GOOD["requested"]
    assert mount_entries(found) == "hard,nodev,nosuid"
    assert VolumeRecord.of(found, backend="nfs").options == found.options


@pytest.mark.parametrize(
    "facts",
    [
        {"files": "many"},
        {"files": -1},
        {"size_bytes": 10**400},
        {"created_at": "\ud800"},
        {"created_at": "a\nb"},
        {"attributes_lost": []},
    ],
    ids=str,
)
def test_a_snapshot_that_says_nonsense_of_itself_is_there(
    facts: dict[str, object],
) -> None:
    assert Snapshot.of_facts("s", facts) == Snapshot("s", "", 0, 0)
