"""Trees with everything in them, and two nodes' halves of one replication."""

from __future__ import annotations

import os
import stat
import struct
import subprocess
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import msgspec

from backends.rsync.journal.arrivals import Arrivals
from backends.rsync.journal.delta import Commit, Header, write_delta
from backends.rsync.journal.entries import DOUBTED, UNWRITTEN, Entry, Known, look_at
from backends.rsync.journal.journal import EVERYTHING, Journal
from backends.rsync.journal.manifest import Manifest
from backends.rsync.journal.outbox import Filled, fill
from backends.rsync.journal.packing import Package
from backends.rsync.journal.staging import Staging
from backends.system.beneath import Beneath
from plugin.peers.receive import RSYNC_OPTIONS

VOLUME = "4f6f2c1e-0000-4000-8000-000000000001"
RSYNC = ("rsync", *RSYNC_OPTIONS, "--from0", "--files-from=-")
ROUNDS_MAX = 8
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")


def acl(*, user: int) -> bytes:
    """Return an ACL that lets *user* read; Linux's posix_acl_xattr.h."""
    entries = [(1, 6, 2**32 - 1), (2, 4, user), (4, 4, 2**32 - 1)]
    entries += [(16, 4, 2**32 - 1), (32, 0, 2**32 - 1)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e) for e in entries)


def make_everything(root: Path) -> None:
    """Fill the new directory *root* with every kind of thing that may be there."""
    (root / "deep/er").mkdir(parents=True)
    (root / "empty").mkdir(mode=0o1777)
    (root / "deep/er/file").write_bytes(b"x" * 100_000)
    (root / "deep-").write_text("sorts between deep and deep/er")
    os.link(root / "deep/er/file", root / "hard")
    os.link(root / "deep/er/file", root / "zzz")
    (root / "soft").symlink_to("/nonexistent")
    os.mkfifo(root / "pipe", 0o640)
    os.mknod(root / "socket", stat.S_IFSOCK | 0o755)
    os.mknod(root / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(root / "disk", stat.S_IFBLK | 0o640, os.makedev(300, 70000))
    (root / "odd\nname \udcff").write_text("odd")
    with (root / "sparse").open("wb") as file:
        file.seek(8 * 2**20)
        file.write(b"end")
    (root / "program").write_text("#!")
    os.chown(root / "program", 12, 34)
    (root / "program").chmod(0o6711)
    os.setxattr(root / "program", "security.capability", CAPABILITY)
    os.setxattr(root / "hard", "user.remark", b"kept")
    os.setxattr(root / "soft", "trusted.remark", b"on a link", follow_symlinks=False)
    os.setxattr(root / "deep", "system.posix_acl_default", acl(user=77))
    os.setxattr(root / "deep/er", "user.remark", b"on a directory")
    (root / "deep/er/after-acl").write_text("inherits")
    os.setxattr(root / "deep-", "system.posix_acl_access", acl(user=78))
    (root / "deep/er").chmod(0o2770)
    os.chown(root / "deep/er", 5, 6)
    for path in (root / "deep/er", root / "deep", root / "soft", root):
        os.utime(path, ns=(5, 1_000_000_007), follow_symlinks=False)


def all_known(root: Path) -> Iterator[Known]:
    """Yield all that is in *root*, in order of the paths."""
    paths = [os.fsencode(each.relative_to(root)) for each in root.rglob("*")]
    with Beneath(root) as tree:
        for path in sorted([b"", *paths]):
            known = look_at(tree, path)
            assert known is not None
            yield known


def bare(rows: Iterable[Known]) -> list[Known]:
    """Return *rows* without what a look cannot tell: commits, and what they hold."""
    return [
        msgspec.structs.replace(
            row,
            entry=msgspec.structs.replace(row.entry, commit=UNWRITTEN, content=b""),
            alike_since=UNWRITTEN,
        )
        for row in rows
    ]


def check_rows(rows: Iterable[Known], looked: Iterable[Known]) -> None:
    """Assert that *rows* are what was *looked* at; a young file may be doubted."""
    for row, known in zip(bare(rows), looked, strict=True):
        doubted = row.entry.kind == "file" and row.ctime_ns == DOUBTED
        ctime_ns = DOUBTED if doubted else known.ctime_ns
        assert row == msgspec.structs.replace(known, ctime_ns=ctime_ns)


def shape(root: Path) -> dict[bytes, tuple[Entry, bytes, bytes]]:
    """Return what *root* has at each path: entry, first name of its file, content."""
    found = {}
    first: dict[int, bytes] = {}
    for known in all_known(root):
        entry = known.entry
        content = b""
        if entry.kind == "file":
            content = (root / os.fsdecode(entry.path)).read_bytes()
        name = first.setdefault(entry.links, entry.path) if entry.links else entry.path
        found[entry.path] = msgspec.structs.replace(entry, links=0), name, content
    return found


def make_delta(
    outbox: Path,
    filled: Filled,
    *,
    base: Commit | None,
    commit: Commit,
    deletions: list[bytes] | None = None,
    kept: Collection[bytes] = (),
) -> None:
    """Write what the sender writes beside its tree; *kept* are of commit 1.1."""
    entries = [
        msgspec.structs.replace(
            known.entry, commit=(1, 1) if known.entry.path in kept else commit
        )
        for known in filled.entries
    ]
    write_delta(
        outbox / "delta", Header(VOLUME, base, commit), entries, deletions or []
    )


def send(outbox: Path, staging: Path, names: list[bytes]) -> None:
    """Have a real rsync bring what fits of *names* of *outbox* to *staging*."""
    done = subprocess.run(
        [*RSYNC, f"{outbox}/", f"{staging}/"],
        input=b"\0".join(names),
        check=False,
        timeout=60,
    )
    assert done.returncode in (0, 23)


class MemberCopy:
    """A member's directory of the volume."""

    def __init__(self, home: Path) -> None:
        (home / "live").mkdir(parents=True, exist_ok=True)
        self.home = home
        self.live = home / "live"
        self.staging = Staging(home)
        self.manifest = Manifest(home / "manifest.db")

    def receive(self, outbox: Path) -> list[bytes]:
        """Do all up to the commit point; return what was sent."""
        self.staging.clear()
        send(outbox, self.staging.directory(), [b"delta"])
        with self.staging.delta() as delta:
            missing = self.staging.missing(delta, self.manifest)
            send(outbox, self.staging.directory(), [b"tree/" + m for m in missing])
            assert self.staging.missing(delta, self.manifest) == []
            self.staging.mark(delta)
        return missing

    def check_manifest(self, commit: Commit) -> None:
        """Assert that the manifest describes exactly what is there."""
        assert self.manifest.commit() == commit
        check_rows(self.manifest.all(), all_known(self.live))


def full(
    source: Path, outbox: Path, *, commit: Commit, kept: Collection[bytes] = ()
) -> Filled:
    """Fill *outbox* with all of *source*, and the delta; *kept* are of commit 1.1."""
    filled = fill(source, all_known(source), outbox)
    assert filled.gone == []
    make_delta(outbox, filled, base=None, commit=commit, kept=kept)
    return filled


def carry(
    package: Package,
    member: Journal,
    refused: dict[bytes, str] | None = None,
    arrivals: Arrivals | None = None,
) -> list[bytes]:
    """Bring *package* to the member; return what it lacks, or mark the commit."""
    names = package.names.rstrip(b"\0").split(b"\0")
    assert arrivals is None or arrivals.go_on(package.commit)
    send(package.directory, member.staging.directory(), names)
    with member.staged() as delta:
        missing = member.staging.missing(
            delta, member.manifest, arrivals, refused=refused
        )
        if not missing:
            member.staging.mark(delta)
    return missing


def replicate(owner: Journal, member: Journal) -> None:
    """Bring the owner's next commit to the member."""
    owner.record(owner.look(EVERYTHING), (1, owner.commit()[1] + 1))
    base = member.commit() if member.commit() != (0, 0) else None
    missing: list[bytes] = []
    refused: dict[bytes, str] = {}
    for _ in range(ROUNDS_MAX):
        missing = carry(owner.pack(base, only=missing), member, refused)
        if not missing:
            break
    assert missing == []
    owner.unpack()
    member.apply()
    assert member.commit() == owner.commit()
