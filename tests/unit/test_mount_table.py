"""The daemon's own mounts: what is mounted at, below and over a path of any name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.errors import BackendError
from backends.system import mounts

NAMES = ("plain", "two words", "tab\there", "line\nbreak", "back\\slash", "\\040", "é")


@pytest.fixture(params=NAMES)
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Yield a directory of that name, on which another one is mounted twice."""
    source, target = tmp_path / "source", tmp_path / request.param
    source.mkdir()
    target.mkdir()
    mounts.bind(source, target, suid=False)
    mounts.bind(source, target, suid=False)
    yield target
    mounts.unmount(target)


def test_whatever_a_mount_point_is_called_it_is_found(target: Path) -> None:
    table = mounts.MountTable()
    topmost = [each for each in table.all() if each.mount_point == str(target)][-1]
    assert table.at(target) == topmost
    assert table.covering(target) == topmost
    assert table.covering(target / "deep/below") == topmost
    assert [each.mount_point for each in table.below(target.parent)] == [
        str(target),
        str(target),
    ]


def test_a_neighbour_with_a_longer_name_is_not_meant(target: Path) -> None:
    table, neighbour = mounts.MountTable(), Path(f"{target}er")
    assert table.at(neighbour) is None
    assert table.below(target) == []
    assert table.covering(neighbour) == table.covering(target.parent)
    assert table.covering(target.parent) != table.at(target)


def test_all_but_the_root_lies_below_the_root() -> None:
    table = mounts.MountTable()
    points = [each.mount_point for each in table.all()]
    below = [each.mount_point for each in table.below(Path("/"))]
    assert below == [each for each in points if each != "/"]
    assert table.covering(Path("/")).mount_point == "/"


def test_what_no_mount_holds_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "_read", lambda _: b"1 2 3 truncated\n")
    with pytest.raises(BackendError, match="no mount that holds /x"):
        mounts.entry_covering(Path("/x"))
