"""Mounts that are stacked on one target all go, and more than we make are told of."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.errors import BackendError
from backends.system import mounts
from tests.support.namespaces import enter_private_mounts


@pytest.fixture
def target(tmp_path: Path) -> Path:
    enter_private_mounts()
    for name in ("source", "target"):
        (tmp_path / name).mkdir()
    return tmp_path / "target"


@pytest.mark.parametrize("count", [0, 1, 8])
def test_all_go(target: Path, count: int) -> None:
    for _ in range(count):
        mounts.bind(target.with_name("source"), target, suid=False)
    mounts.unmount(target)
    assert mounts.mounted_at(target) is None


def test_more_than_anybody_makes_are_an_error(target: Path) -> None:
    for _ in range(9):
        mounts.bind(target.with_name("source"), target, suid=False)
    with pytest.raises(BackendError, match="more than 8 mounts"):
        mounts.unmount(target)
    mounts.unmount(target)
