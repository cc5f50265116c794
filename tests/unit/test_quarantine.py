"""The trees of a pool that were set apart: found, counted, compared, discarded."""

from __future__ import annotations

import os
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from backends.base import Volume
from backends.errors import BackendError, DeadlineError, InvalidRequestError
from backends.rsync.backend import RsyncBackend
from backends.rsync.quarantine import Change, Quarantine, Tree, check_commit, shown
from backends.system.run import stream
from tests.support.apart import ODD_NAMES, odd, put_apart

VOLUME = Volume(
    id="6fa459ea-ee8a-4ca4-894e-db77e160355e",
    name="db",
    options={"mode": "0750", "uid": "7", "gid": "8"},
    created_at="2026-01-01T00:00:00Z",
)


@pytest.fixture
def backend(tmp_path: Path) -> RsyncBackend:
    """Return a pool that has the volume."""
    found = RsyncBackend(tmp_path / "pool", pool_id=None)
    found.pool.initialise()
    found.create(VOLUME, deadline_s=30)
    return found


@pytest.fixture
def quarantine(backend: RsyncBackend) -> Quarantine:
    return backend.quarantine


@pytest.fixture
def home(backend: RsyncBackend) -> Path:
    return backend.pool.home(VOLUME)


def only(quarantine: Quarantine) -> Tree:
    [tree] = quarantine.of(VOLUME.id)
    return tree


def changes(quarantine: Quarantine, *, contents: bool = False) -> dict[bytes, Change]:
    found = quarantine.differences(only(quarantine), contents=contents)
    return {each.path: each for each in found if each is not None}


@pytest.mark.parametrize("commit", ["0.0", "7.12", "1.9999999999"])
def test_a_commit_is_two_numbers(commit: str) -> None:
    assert check_commit(commit) == commit


@pytest.mark.parametrize(
    "commit",
    [
        *("", "7", "7.", ".1", "..", "7.1.2", "7.1\n", "07.1", "../1.1", "1.1/"),
        *("-1.1", "\u0663.\u0661", "9" * 300 + ".1"),
    ],
)
def test_what_is_no_commit_is_refused(quarantine: Quarantine, commit: str) -> None:
    with pytest.raises(InvalidRequestError, match="is not a commit"):
        quarantine.find(VOLUME.id, commit)


@pytest.mark.parametrize("volume_id", ["", "..", "../..", "/etc", VOLUME.id + "/live"])
def test_what_is_no_id_has_nothing(quarantine: Quarantine, volume_id: str) -> None:
    assert quarantine.of(volume_id) == []


def test_trees_are_found_in_the_order_of_their_commits(
    quarantine: Quarantine, home: Path
) -> None:
    assert quarantine.of(VOLUME.id) == quarantine.everything() == []
    for commit in ("10.1", "9.12", "9.3"):
        put_apart(home, commit)
    (home / "quarantine/note").write_text("mine")
    (home / "quarantine/3.3").symlink_to("/etc")
    found = quarantine.of(VOLUME.id)
    assert [each.commit for each in found] == ["9.3", "9.12", "10.1"]
    assert found == quarantine.everything()
    assert found[0].set_apart_at.endswith("Z")
    assert quarantine.find(VOLUME.id, "9.3") == found[0]
    assert quarantine.find(VOLUME.id, "3.3") is None


def test_without_the_pool_nothing_is_said(backend: RsyncBackend, home: Path) -> None:
    put_apart(home, "1.1")
    (backend.pool.path / "pool.json").unlink()
    with pytest.raises(BackendError, match="not mounted"):
        backend.quarantine.everything()


def test_a_tree_is_counted_without_following_anything(
    quarantine: Quarantine, home: Path
) -> None:
    tree = put_apart(home, "1.1")
    deep = tree
    for number in range(40):
        deep = deep / f"{number}"
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(b"x" * 1000)
    (tree / "link").symlink_to("/usr")
    os.mkfifo(tree / "pipe")
    size = quarantine.measure(only(quarantine), deadline_s=30)
    assert (size.files, size.size_bytes, size.whole) == (3, 1000, True)
    assert not quarantine.measure(only(quarantine), deadline_s=0).whole


def test_differences_have_a_kind_and_say_what_of_it(
    quarantine: Quarantine, home: Path
) -> None:
    tree, live = put_apart(home, "1.1"), home / "live"
    live.chmod(0o755)
    os.chown(live, 0, 0)
    for top in (tree, live):
        (top / "same").write_text("same")
        (top / "quiet").write_text("one" if top is tree else "two")
        (top / "grown").write_text("x" if top is tree else "xyz")
        (top / "moded").write_text("x")
        (top / "link").symlink_to("a" if top is tree else "b")
        for name in ("same", "quiet", "moded", "grown"):
            os.utime(top / name, (1, 1))
    (tree / "moded").chmod(0o600)
    os.setxattr(tree / "moded", "user.colour", b"blue")
    (tree / "new").mkdir()
    (tree / "new/file").write_text("x")
    os.mkfifo(live / "pipe")
    (live / "old").mkdir()
    (live / "gone").symlink_to("/etc")
    (live / "kind").write_text("x")
    (tree / "kind").mkdir()
    found = {(c.change, c.kind, c.path) for c in changes(quarantine).values()}
    assert found == {
        ("added", "directory", b"new"),
        ("added", "file", b"new/file"),
        ("removed", "pipe", b"pipe"),
        ("removed", "directory", b"old"),
        ("removed", "link", b"gone"),
        ("added", "directory", b"kind"),
        ("changed", "file", b"grown"),
        ("changed", "file", b"moded"),
        ("changed", "link", b"link"),
    }
    assert changes(quarantine)[b"grown"].what == ("size",)
    assert changes(quarantine)[b"moded"].what == ("mode", "attributes")
    assert "content" in changes(quarantine)[b"link"].what
    assert changes(quarantine, contents=True)[b"quiet"].what == ("content",)


def test_nothing_is_changed_by_a_comparison(quarantine: Quarantine, home: Path) -> None:
    tree, live = put_apart(home, "1.1"), home / "live"
    (tree / "a").write_text("a")
    (live / "b").write_text("b")
    assert len(changes(quarantine, contents=True)) >= 2
    assert [each.name for each in tree.iterdir()] == ["a"]
    assert [each.name for each in live.iterdir()] == ["b"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_told_as_they_are(
    quarantine: Quarantine, home: Path, name: bytes
) -> None:
    tree = put_apart(home, "1.1")
    for top in (odd(tree, name), odd(home / "live", b"x" + name)):
        top.write_text("x")
    found = changes(quarantine)
    assert found[name].change == "added"
    assert found[b"x" + name].change == "removed"
    assert shown(name).isprintable()


def test_names_are_shown_so_that_no_two_are_alike() -> None:
    assert shown(b"a\nb\\n\xff") == "a\\nb\\\\n\\xff"
    assert shown("ü\u202e".encode()) == "ü\\u202e"
    names = [b"\n", b"\\n", b"\xff", b"\\xff", "ÿ".encode(), b"\\udcff", b"."]
    assert len({shown(each) for each in names}) == len(names)


def test_an_archive_has_attributes_and_odd_names(
    quarantine: Quarantine, home: Path, tmp_path: Path
) -> None:
    tree = put_apart(home, "1.1")
    with (tree / "sparse").open("wb") as file:
        file.truncate(64 * 2**20)
    (tree / "file").write_text("x")
    os.setxattr(tree / "file", "user.colour", b"blue")
    odd(tree, b"inv\xffalid").write_text("x")
    content = b"".join(quarantine.archive(only(quarantine)))
    assert len(content) < 2**20
    with tarfile.open(fileobj=BytesIO(content), errors="surrogateescape") as archive:
        names = {os.fsencode(each.name) for each in archive}
        member = archive.getmember("./file")
    assert {b"./file", b"./sparse", b"./inv\xffalid"} <= names
    assert member.pax_headers["SCHILY.xattr.user.colour"] == "blue"


def test_what_is_discarded_lies_in_the_trash(backend: RsyncBackend, home: Path) -> None:
    tree = put_apart(home, "1.1")
    (tree / "file").write_text("x")
    found = only(backend.quarantine)
    backend.quarantine.discard(found)
    backend.quarantine.discard(found)
    assert backend.quarantine.is_empty(VOLUME.id)
    assert len(list(backend.pool.trash.path.glob("1.1.*/file"))) == 1
    assert backend.collect_garbage(deadline_s=30) == 1
    assert list(backend.pool.trash.path.iterdir()) == []
    backend.remove(VOLUME, deadline_s=30)


def test_what_is_no_commit_keeps_a_volume_too(
    backend: RsyncBackend, home: Path
) -> None:
    (home / "quarantine").mkdir()
    (home / "quarantine/note").write_text("mine")
    with pytest.raises(BackendError, match="what is no commit"):
        backend.remove(VOLUME, deadline_s=30)


def test_a_live_that_is_made_anew_is_as_the_first(
    backend: RsyncBackend, home: Path
) -> None:
    before = (home / "live").stat()
    (home / "live").rmdir()
    (home / "live.new").mkdir()  # as a crash leaves it
    backend.make_live(VOLUME, deadline_s=30)
    after = (home / "live").stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (
        before.st_mode,
        before.st_uid,
        before.st_gid,
    )
    assert not (home / "live.new").exists()


def test_a_program_that_fails_is_told_of_at_the_end() -> None:
    chunks = stream(["sh", "-c", "echo out; echo why >&2; exit 3"], stall_s=30)
    assert next(chunks) == b"out\n"
    with pytest.raises(BackendError, match="exited 3: why"):
        list(chunks)


def test_a_program_that_says_much_on_both_streams_does_not_stand_still() -> None:
    script = "head -c 300000 /dev/zero >&2; head -c 300000 /dev/zero"
    assert len(b"".join(stream(["sh", "-c", script], stall_s=30))) == 300_000


def test_silence_is_told_and_bounded() -> None:
    chunks = stream(["sleep", "60"], stall_s=1.5)
    assert next(chunks) == b""
    with pytest.raises(DeadlineError, match="no progress"):
        list(chunks)


def test_who_stops_reading_ends_the_program(tmp_path: Path) -> None:
    chunks = stream(["sh", "-c", "echo $$; sleep 60"], stall_s=30)
    process = int(next(chunks))
    chunks.close()
    assert not Path(f"/proc/{process}").exists()
