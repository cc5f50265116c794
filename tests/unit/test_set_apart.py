"""Bytes that no other copy has are told of, and never removed with their volume."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.base import Volume
from backends.errors import BackendError
from backends.rsync.backend import RsyncBackend
from backends.rsync.journal.journal import Journal

VOLUME = Volume(
    id="6fa459ea-ee8a-4ca4-894e-db77e160355e",
    name="db",
    options={"mode": "0755", "uid": "0", "gid": "0"},
    created_at="2026-01-01T00:00:00Z",
)


def test_what_was_set_apart_is_told_and_stays(tmp_path: Path) -> None:
    backend = RsyncBackend(tmp_path, pool_id=None)
    backend.pool.initialise()
    backend.create(VOLUME, deadline_s=30)
    home = backend.pool.home(VOLUME)
    (home / "live/file").write_text("precious")
    assert "set_apart" not in backend.status(VOLUME)
    journal = Journal(home, VOLUME.id)
    place = journal.keep_apart("3.7", Path.mkdir)
    journal.close()
    assert (place / "file").read_text() == "precious"
    assert list((home / "live").iterdir()) == []
    assert backend.status(VOLUME)["set_apart"] == ["3.7"]
    with pytest.raises(BackendError, match="no other copy has"):
        backend.remove(VOLUME, deadline_s=30)
    (place / "file").unlink()
    place.rmdir()
    backend.remove(VOLUME, deadline_s=30)
    assert not home.exists()
