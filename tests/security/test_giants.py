"""Names by the thousand, holes by the exabyte, trees without a bottom: in a volume."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from backends.errors import BackendError
from backends.rsync.journal import outbox, refusals, staging
from backends.rsync.journal.delta import Delta, Header, write_delta
from backends.rsync.journal.entries import Entry
from backends.rsync.journal.journal import EVERYTHING, Journal
from backends.rsync.journal.manifest import Manifest
from backends.system.copying import CopyError, Destination, copy_tree
from tests.support.journal_trees import VOLUME, carry, replicate

GIB = 2**30
DEEP = 300
REPOSITORY = Path(__file__).resolve().parents[2]
# In a process of its own: the peak of this one says nothing.
PACKED = """
import os, resource, sys
from pathlib import Path
from backends.rsync.journal.journal import EVERYTHING, Journal
home, count, linked = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "linked"
(home / "live").mkdir(parents=True)
journal = Journal(home, "v")
journal.record(journal.look(EVERYTHING), (1, 1))
top = os.open(home / "live", os.O_RDONLY)
for number in range(count):
    if linked and number:
        os.link("0", f"{number}", src_dir_fd=top, dst_dir_fd=top)
    else:
        os.close(os.open(f"{number}", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=top))
journal.record(journal.look(EVERYTHING), (1, 2))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
package = journal.pack((1, 1))
assert package.names.count(b"\\0") == count + 1
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 // count)
journal.close()
"""


@pytest.fixture
def owner(tmp_path: Path) -> Journal:
    (tmp_path / "owner/live").mkdir(parents=True)
    return Journal(tmp_path / "owner", VOLUME)


def committed(journal: Journal, seq: int) -> None:
    journal.record(journal.look(EVERYTHING), (1, seq))


@pytest.mark.parametrize("kind", ["single", "linked"])
def test_a_delta_is_packed_with_little_memory(tmp_path: Path, kind: str) -> None:
    """It was 2 KB for each path; and of hard links each asked for all others."""
    done = subprocess.run(
        [sys.executable, "-c", PACKED, str(tmp_path / "home"), "12000", kind],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert int(done.stdout) < 900, f"{done.stdout} bytes a path"


def test_a_sparse_file_needs_the_room_of_what_it_holds(
    owner: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = owner.live / "data.mdb"
    file.write_bytes(b"x" * 4096)
    os.truncate(file, 200 * GIB)  # as LMDB makes its map
    committed(owner, 1)
    needed = []
    monkeypatch.setattr(outbox, "lacking_space", lambda _, size: needed.append(size))
    package = owner.pack(None, only=[b"data.mdb"])
    assert needed[0] < 2**20
    assert package.size_bytes < 2**20
    copy = package.directory / "tree/data.mdb"
    assert (copy.stat().st_size, copy.stat().st_blocks < 100) == (200 * GIB, True)
    owner.unpack()


def test_holes_that_rsync_would_send_for_days_are_refused(owner: Journal) -> None:
    committed(owner, 1)
    file = owner.live / "dir/giant"
    file.parent.mkdir()
    file.touch()
    os.truncate(file, refusals.HOLES_MAX_BYTES + GIB)
    with pytest.raises(BackendError, match="'dir/giant' has holes of 257 GiB"):
        owner.look(EVERYTHING)
    os.truncate(file, 0)
    committed(owner, 2)
    assert owner.manifest.get(b"dir/giant") is not None


def test_an_image_with_holes_arrives_with_them(owner: Journal, tmp_path: Path) -> None:
    file = owner.live / "image"
    with file.open("wb") as image:
        image.seek(64 * 2**20)
        image.write(b"end")
    (tmp_path / "member/live").mkdir(parents=True)
    member = Journal(tmp_path / "member", VOLUME)
    replicate(owner, member)
    copied = member.live / "image"
    assert copied.stat().st_blocks < 1000
    assert copied.read_bytes() == file.read_bytes()
    member.close()


def test_deletions_of_a_stranger_take_no_memory(tmp_path: Path) -> None:
    """10 MiB of them took 83 MiB of the daemon's."""
    (tmp_path / "staging").mkdir()
    count = 100_000
    write_delta(
        tmp_path / "staging/delta",
        Header(VOLUME, (1, 1), (1, 2)),
        [],
        (b"%x" % each for each in range(count)),
    )
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from backends.rsync.journal import staging\n"
        "from backends.rsync.journal.manifest import Manifest\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "home = Path(sys.argv[1]); manifest = Manifest(home / 'm.db')\n"
        "delta = staging.Staging(home).delta(); before = peak()\n"
        "staging._require_parents(delta, manifest)\n"
        "print(peak() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert int(done.stdout) < 2048, f"{done.stdout} KiB"


@pytest.mark.parametrize("deleted", [b"a/b/c", b"a/b", b"a", None])
def test_what_is_deleted_is_no_directory_to_be_in(
    tmp_path: Path, owner: Journal, deleted: bytes | None
) -> None:
    (owner.live / "a/b/c").mkdir(parents=True)
    (owner.live / "ab").mkdir()
    committed(owner, 1)
    entry = Entry(b"a/b/c/new", "file", 0o644, 0, 0, 1)
    gone = [b"a/b!", b"ab", *([deleted] if deleted else [])]
    write_delta(tmp_path / "delta", Header(VOLUME, (1, 1), (1, 2)), [entry], gone)
    with Delta.open(tmp_path / "delta") as delta:
        if deleted is None:
            staging._require_parents(delta, owner.manifest)
            return
        with pytest.raises(BackendError, match="which is not there"):
            staging._require_parents(delta, owner.manifest)


def deepen(top: Path) -> None:
    """Make a way of directories in *top* that is longer than any path may be."""
    at = os.open(top, os.O_RDONLY)
    for _ in range(DEEP):
        os.mkdir("d" * 200, dir_fd=at)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)


def test_a_tree_deeper_than_paths_is_refused(owner: Journal, tmp_path: Path) -> None:
    committed(owner, 1)
    deepen(owner.live)
    with pytest.raises(BackendError, match="a path is too long to be sent: 'ddd"):
        owner.look(EVERYTHING)
    target = tmp_path / "copy"
    target.mkdir()
    with pytest.raises(CopyError, match="a path is too long"):
        copy_tree(owner.live, Destination(target), progress=lambda _: None)
    for each in (owner.live, target):
        subprocess.run(["rm", "-rf", each], check=True)


def test_what_is_sent_again_is_in_what_was_packed(
    owner: Journal, tmp_path: Path
) -> None:
    """Names of one file go together, to each base what it lacks."""
    (tmp_path / "member/live").mkdir(parents=True)
    member = Journal(tmp_path / "member", VOLUME)
    (owner.live / "one").write_text("one")
    replicate(owner, member)
    for name in ("two", "three"):
        os.link(owner.live / "one", owner.live / name)
    (owner.live / "gone").write_text("x")
    committed(owner, 2)
    (owner.live / "gone").unlink()
    package = owner.pack((1, 1))
    assert package.names == b"delta\0tree/one\0tree/three\0tree/two\0"
    assert package.size_bytes == 3
    assert carry(package, member) == []
    owner.unpack()
    member.apply()
    assert (member.live / "three").stat().st_nlink == 3
    assert isinstance(member.manifest, Manifest)
    member.close()
