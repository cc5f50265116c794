"""One thing in the trash that cannot be deleted keeps no other."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.rsync import trash as module
from backends.rsync.trash import Trash
from backends.system import files
from backends.system.clock import Deadline
from tests.support.incapable import incapable

NAMES = ("a", "b", "c")


@pytest.fixture
def trash(tmp_path: Path) -> Iterator[Trash]:
    """Yield a trash in which the first of three things cannot be deleted."""
    trash = Trash(tmp_path / "trash")
    for name in NAMES:
        thrown = tmp_path / name
        (thrown / "live").mkdir(parents=True)
        (thrown / "live/file").write_bytes(b"x")
    subprocess.run(["chattr", "+i", tmp_path / "a/live/file"], check=True)
    for name in NAMES:
        trash.throw_away(tmp_path / name)
    yield trash
    loosen(trash)


def empty(trash: Trash) -> int:
    """Empty it where nothing may be made changeable; return how many have gone."""
    return incapable(lambda: trash.empty(Deadline(30)))


def loosen(trash: Trash) -> None:
    subprocess.run(["chattr", "-R", "-i", trash.path], check=True)


def left(trash: Trash) -> list[str]:
    return sorted(each.name.partition(".")[0] for each in trash.path.iterdir())


def test_the_others_go_and_it_is_told_once(
    trash: Trash, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PAUSE_S", 0.0)
    assert empty(trash) == 2
    assert left(trash) == ["a"]
    assert empty(trash) == 0
    [line] = caplog.messages
    assert "a." in line
    assert "cannot be deleted yet: backend-failed: cannot remove " in line
    assert "the daemon lacks CAP_LINUX_IMMUTABLE" in line
    assert "b'live/file'" in line
    loosen(trash)
    assert empty(trash) == 1
    assert left(trash) == []


def test_what_a_container_has_made_immutable_goes(trash: Trash) -> None:
    for name in NAMES:
        subprocess.run(["chattr", "+a", *trash.path.glob(f"{name}.*/live")], check=True)
    assert trash.empty(Deadline(30)) == 3
    assert left(trash) == []


def test_a_directory_that_is_immutable_itself_is_thrown_away(
    trash: Trash, tmp_path: Path
) -> None:
    (tmp_path / "d").mkdir()
    subprocess.run(["chattr", "+i", tmp_path / "d"], check=True)
    trash.throw_away(tmp_path / "d")
    assert trash.empty(Deadline(30)) == 4


def test_it_is_not_tried_again_at_once(trash: Trash) -> None:
    empty(trash)
    loosen(trash)
    assert empty(trash) == 0
    assert left(trash) == ["a"]


def test_one_that_takes_too_long_is_passed_over(
    trash: Trash, monkeypatch: pytest.MonkeyPatch
) -> None:
    loosen(trash)
    real = module.files.remove_tree

    def remove_tree(path: Path, *, deadline_s: float) -> None:
        real(path, deadline_s=0.0 if path.name.startswith("a.") else deadline_s)

    monkeypatch.setattr(module.files, "remove_tree", remove_tree)
    assert empty(trash) == 2
    # It is not counted, though rm(1) may have been quicker than its end.
    assert left(trash) in ([], ["a"])


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("4f6f2c1e-0000-4000-8000-000000000000", ["commits/1.1", "live", "."]),
        ("3.7", ["."]),  # set apart: its names are a container's
    ],
)
def test_only_what_the_pool_has_made_is_asked_for_its_limit(
    tmp_path: Path, name: str, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for below in ("live", "commits/1.1"):
        (tmp_path / name / below).mkdir(parents=True)
    (tmp_path / name / "data").symlink_to(tmp_path)
    trash = Trash(tmp_path / "trash")
    trash.throw_away(tmp_path / name)
    [thrown] = trash.path.iterdir()
    found: list[str] = []

    def discard(path: Path, *, deadline_s: float) -> None:
        assert deadline_s > 0
        found.append(str(path.relative_to(thrown)))

    monkeypatch.setattr(module.quota, "discard", discard)
    assert empty(trash) == 1
    assert sorted(found) == sorted(asked)
    assert found[-1] == "."


def test_what_was_never_written_to_goes_without_a_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = tmp_path / str(uuid.uuid4())
    (volume / "live").mkdir(parents=True)
    (volume / "volume.json").write_bytes(b"{}")
    trash = Trash(tmp_path / "trash")
    trash.throw_away(volume)
    monkeypatch.setattr(files, "run", None)  # starts what deletes all else
    assert trash.empty(Deadline(30)) == 1
    assert list(trash.path.iterdir()) == []
