"""A tree whose files with several names are replaced while it is copied."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from backends.system.copy_file import FileCopier
from tests.support.namespaces import enter_private_mounts, loop_filesystem


class Disturbed(FileCopier):
    """Has something happen in the source before and after each copy of a file."""

    def __init__(
        self, *, before: Callable[[str | bytes], object], after: Callable[[], object]
    ) -> None:
        super().__init__()
        self.before = before
        self.after = after

    def copy(self, name: str | bytes, *args: object, **kwargs: object) -> bool:
        self.before(name)
        done = super().copy(name, *args, **kwargs)  # type: ignore[arg-type]
        self.after()
        return done


@contextmanager
def number_used_again(directory: Path) -> Iterator[tuple[Path, FileCopier]]:
    """
    Yield a tree with a1 = a2, b, z1 = z2, and what copies it.

    When b is copied, a1 and a2 go, and z1 = z2 are a new file with their number.
    """
    enter_private_mounts()
    # With a journal, ext4 waits some seconds before it uses a number again.
    with loop_filesystem(directory, "ext4", made_with=["-O", "^has_journal"]) as disk:
        live = disk / "live"
        live.mkdir()
        for names in (("a1", "a2"), ("b",), ("z1", "z2")):
            (live / names[0]).write_text("old")
            for name in names[1:]:
                os.link(live / names[0], live / name)
        number = (live / "a1").stat().st_ino
        copies = itertools.count(1)

        def replace() -> None:
            if next(copies) != 2:
                return
            for name in ("a1", "a2", "z1", "z2"):
                (live / name).unlink()
            for spare in range(3000):
                (live / f"spare{spare}").write_text("new")
                if (live / f"spare{spare}").stat().st_ino == number:
                    os.link(live / f"spare{spare}", live / "z1")
                    (live / f"spare{spare}").rename(live / "z2")
                    return
            raise AssertionError("the number was not used again")

        yield live, Disturbed(before=lambda _: None, after=replace)


def replaced_when_opened(live: Path) -> FileCopier:
    """Make a1 = a2 = a3 in *live*; return what copies it, as a1 becomes another."""
    (live / "a1").write_text("old")
    for name in ("a2", "a3"):
        os.link(live / "a1", live / name)

    def replace(name: str | bytes) -> None:
        if os.fsdecode(name) == "a1":
            (live / "new").write_text("new")
            (live / "new").rename(live / "a1")

    return Disturbed(before=replace, after=lambda: None)
