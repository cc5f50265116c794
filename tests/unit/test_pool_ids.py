"""The last wall: whatever a record says, only directories of volumes are touched."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from backends.base import Volume
from backends.errors import BackendError
from backends.rsync.backend import RsyncBackend
from tests.support.ids import id_of


@pytest.fixture
def backend(tmp_path: Path) -> RsyncBackend:
    """Return a backend whose pool has one volume, and what is none."""
    made = RsyncBackend(tmp_path / "pool", pool_id=None)
    made.pool.initialise()
    made.create(volume(id_of("good")), deadline_s=5)
    (made.pool.volumes / "lost+found").mkdir()
    return made


def volume(volume_id: str) -> Volume:
    return Volume(id=volume_id, name="v", options={"mode": "0755"}, created_at="")


# Where they would lead without the wall is below the test's own directory.
@pytest.mark.parametrize("odd", ["", ".", "..", "lost+found", "x\n", "OUTSIDE"])
def test_what_is_no_id_leads_nowhere(
    backend: RsyncBackend, tmp_path: Path, odd: str
) -> None:
    if odd == "OUTSIDE":
        odd = str(tmp_path / "outside")
        Path(odd, "live").mkdir(parents=True)
    for refused in (backend.remove, backend.discard, backend.create):
        with pytest.raises(BackendError, match="is no id of a volume"):
            refused(volume(odd), deadline_s=5)
    with pytest.raises(BackendError, match="is no id of a volume"):
        backend.copy_directory(volume(odd))
    assert backend.copies() == [id_of("good")]
    assert sorted(each.name for each in backend.pool.volumes.iterdir()) == sorted(
        ["lost+found", id_of("good")]
    )


@pytest.mark.parametrize(
    "options", [{"size": "abc"}, {"uid": "-2"}, {"gid": "x"}, {"mode": "rwx"}], ids=str
)
def test_a_number_in_a_record_that_is_none_is_refused(
    backend: RsyncBackend, options: dict[str, str]
) -> None:
    """In one line; and the status says so, for an error would mean no volume."""
    odd = dataclasses.replace(volume(id_of("odd")), options=options)
    if "size" not in options:
        with pytest.raises(BackendError, match="'v' says what no volume may have"):
            backend.create(odd, deadline_s=30)
        return
    told = backend.status(odd)
    assert told["health"] == "error"
    assert "option 'size'" in str(told["error"])
    backend.pool.home(odd).mkdir()
    with pytest.raises(BackendError, match="'v' says what no volume may have"):
        backend.make_live(odd, deadline_s=30)
    assert not (backend.pool.home(odd) / "live").exists()
