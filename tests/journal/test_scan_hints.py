"""Walks and hints: whatever is done to a tree, both come to the same."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from backends.rsync.journal.entries import Entry, is_below
from backends.rsync.journal.manifest import Manifest
from backends.rsync.journal.scan import scan_all
from tests.support.journal_trees import bare
from tests.support.journal_volume import Volume

NAMES = st.sampled_from(["a", "b", "a!", "a/a", "a/b", "b/a", "b/a/b", "a/b/a"])
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["write", "mkdir", "soft", "link", "rename", "remove", "chmod", "pipe"]
        ),
        NAMES,
        NAMES,
    ),
    max_size=8,
)


def step(what: str, one: Path, other: Path) -> None:
    """Do it, or have the filesystem refuse it."""
    if what == "write":
        # A pipe would wait for a reader; of a link's end events tell by its own name.
        if not (one.is_fifo() or one.is_symlink()):
            one.write_text("content" * one.exists())
    elif what == "mkdir":
        one.mkdir()
    elif what == "soft":
        one.symlink_to("a")
    elif what == "link":
        os.link(one, other, follow_symlinks=False)
    elif what == "rename":
        one.rename(other)
    elif what == "remove":
        shutil.rmtree(one) if one.is_dir() and not one.is_symlink() else one.unlink()
    elif what == "chmod":
        one.chmod(one.lstat().st_mode ^ 0o010, follow_symlinks=False)
    elif what == "pipe":
        os.mkfifo(one)


def replay(state: dict[bytes, Entry], manifest: Manifest, base: tuple) -> dict:
    """Return *state*, which was at *base*, after what the manifest says since."""
    entries, deleted = manifest.since(base)
    gone = set(deleted)
    kept = {p: e for p, e in state.items() if p not in gone and not is_below(p, gone)}
    return kept | {entry.path: entry for entry in entries}


@settings(max_examples=100)
@given(st.lists(STEPS, min_size=1, max_size=4))
# Both directories were made within a tick of the clock.
@example(
    [[("mkdir", each, "a") for each in ("a", "b", "b/a")], [("rename", "a", "b/a")]]
)
def test_walks_and_hints_come_to_the_same(rounds: list) -> None:
    with tempfile.TemporaryDirectory() as home:
        one = Volume(Path(home))
        one.keep(one.scan(None))
        other = Manifest(Path(home) / "other")
        states = {}
        for number, steps in enumerate(rounds, 1):
            hints = []
            for what, *names in steps:
                with suppress(OSError, NotImplementedError, shutil.Error):
                    step(what, *(one.root / name for name in names))
                hints += [os.fsencode(name) for name in names]
            found = one.keep(one.scan(hints))
            walked = scan_all(one.root, other)
            other.record(walked.changed, walked.deleted, commit=(1, number))
            other.touch(walked.touched)
            assert bare(one.manifest.all()) == bare(other.all())
            again = Path(home) / f"fresh{number}"
            whole = Manifest(again)
            assert scan_all(one.root, whole).changed == bare(other.all())
            whole.close()
            sent = {each.entry.path for each in found.changed}
            for each in found.changed:
                if each.entry.links:
                    names = other.with_inode(each.inode)
                    assert {name.entry.path for name in names} <= sent
            now = {row.entry.path: row.entry for row in other.all()}
            states[1, number] = now
            for base, state in states.items():
                assert replay(state, other, base) == now
        one.manifest.close()
        other.close()
