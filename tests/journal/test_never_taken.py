"""
What has come with a commit that was never taken is not the next one's.

Size and times never tell: some programs keep them when they write other content.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from backends.rsync.journal import large_files
from backends.rsync.journal.arrivals import Arrivals
from backends.rsync.journal.journal import EVERYTHING, Journal
from backends.rsync.journal.staging import _MISSING_MAX
from tests.support.file_fates import LARGE, PART, SIZE
from tests.support.journal_trees import VOLUME, carry, replicate, send, shape

Pair = tuple[Journal, Journal]


@pytest.fixture
def make_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Pair]]:
    """Yield what returns copies of an owner and a member, which have *names*."""
    monkeypatch.setattr(large_files, "LARGE_BYTES", LARGE)
    with ExitStack() as stack:

        def make(*names: str, size_bytes: int) -> Pair:
            homes = [tmp_path / each for each in ("owner", "member")]
            for home in homes:
                (home / "live").mkdir(parents=True)
            copies = (Journal(home, VOLUME) for home in homes)
            owner, member = (stack.enter_context(closing(each)) for each in copies)
            (owner.live / names[0]).write_bytes(os.urandom(size_bytes))
            for each in names[1:]:
                os.link(owner.live / names[0], owner.live / each)
            for number in range(2):
                write_unseen(owner.live / names[0], b"settled%d" % number)
                replicate(owner, member)
            return owner, member

        yield make


def write_unseen(path: Path, content: bytes) -> None:
    """Write *content*, and put the times back."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(PART)
        file.write(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def begin(owner: Journal, member: Journal, *names: str) -> Arrivals:
    """Have a commit come to the member that is never taken: it has *names* whole."""
    base = member.commit()
    owner.record(owner.look(EVERYTHING), (1, owner.commit()[1] + 1))
    package = owner.pack(base, only=[each.encode() for each in names])
    arrivals = Arrivals.begun(package.commit)
    sent = [b"delta", *(b"tree/" + each.encode() for each in names)]
    send(package.directory, member.staging.directory(), sent)
    owner.unpack()
    return arrivals


def finish(owner: Journal, member: Journal, arrivals: Arrivals) -> None:
    """Bring what is missing; the member takes the commit."""
    base, missing = member.commit(), list[bytes]()
    for _ in range(3):
        missing = carry(owner.pack(base, only=missing), member, None, arrivals)
        owner.unpack()
        if not missing:
            break
        owner.record(owner.look(EVERYTHING), (1, owner.commit()[1] + 1))
    member.apply()
    assert member.commit() == owner.commit()
    assert shape(member.live) == shape(owner.live)


@pytest.mark.parametrize("is_touched", [False, True])
def test_a_whole_file_before_the_redo_file(
    make_pair: Callable[..., Pair], *, is_touched: bool
) -> None:
    """Whether or not the redo file is of any use to the member."""
    owner, member = make_pair("db", size_bytes=SIZE)
    write_unseen(owner.live / "db", b"never taken")
    arrivals = begin(owner, member, "db")
    write_unseen(owner.live / "db", b"of the next")
    if is_touched:
        write_unseen(member.live / "db", b"not of the commit")
    owner.record(owner.look(EVERYTHING), (1, owner.commit()[1] + 1))
    package = owner.pack(member.commit())
    assert package.names == b"delta\0redo/db\0"
    assert carry(package, member, None, arrivals) == ([b"db"] if is_touched else [])
    member.staging.unmark()
    finish(owner, member, arrivals)


def test_a_file_that_could_not_be_sent_again(make_pair: Callable[..., Pair]) -> None:
    owner, member = make_pair("file", size_bytes=2 * PART)
    write_unseen(owner.live / "file", b"never taken")
    arrivals = begin(owner, member, "file")
    write_unseen(owner.live / "file", b"of the next")
    owner.record(owner.look(EVERYTHING), (1, owner.commit()[1] + 1))
    package = owner.pack(member.commit())
    (package.directory / "tree/file").unlink()
    assert carry(package, member, None, arrivals) == [b"file"]
    finish(owner, member, arrivals)


def test_names_of_one_file_that_are_two_now(make_pair: Callable[..., Pair]) -> None:
    """To remove one staged name changes the ctime of the other."""
    owner, member = make_pair("a", "b", size_bytes=2 * PART)
    write_unseen(owner.live / "a", b"never taken")
    arrivals = begin(owner, member, "a", "b")
    content, status = (owner.live / "b").read_bytes(), (owner.live / "b").stat()
    (owner.live / "b").unlink()
    (owner.live / "b").write_bytes(content)
    for each in ("a", "b"):
        os.utime(owner.live / each, ns=(status.st_atime_ns, status.st_mtime_ns))
        write_unseen(owner.live / each, b"of the next")
    owner.record(owner.look(EVERYTHING), (1, owner.commit()[1] + 1))
    package = owner.pack(member.commit())
    for each in ("a", "b"):
        (package.directory / "tree" / each).unlink()
    assert carry(package, member, None, arrivals) == [b"a", b"b"]
    finish(owner, member, arrivals)


def test_one_of_two_names_that_nobody_looked_at(
    make_pair: Callable[..., Pair],
) -> None:
    """As above, behind more missing files than are named at once."""
    owner, member = make_pair("a", "z", size_bytes=2 * PART)
    write_unseen(owner.live / "a", b"never taken")
    arrivals = begin(owner, member, "a", "z")
    content, status = (owner.live / "z").read_bytes(), (owner.live / "z").stat()
    (owner.live / "z").unlink()
    (owner.live / "z").write_bytes(content)
    for each in ("a", "z"):
        os.utime(owner.live / each, ns=(status.st_atime_ns, status.st_mtime_ns))
        write_unseen(owner.live / each, b"of the next")
    for number in range(_MISSING_MAX):
        (owner.live / f"f{number:03}").touch()
    owner.record(owner.look(EVERYTHING), (1, owner.commit()[1] + 1))
    package = owner.pack(member.commit())
    assert arrivals.go_on(package.commit)
    send(package.directory, member.staging.directory(), [b"delta"])
    with member.staged() as delta:
        missing = member.staging.missing(delta, member.manifest, arrivals)
    assert len(missing) == _MISSING_MAX
    assert not list(member.staging.tree().glob("[az]"))
