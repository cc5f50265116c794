"""A volume that a container has from where its server was before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backends.base import Volume
from backends.nfs import mounting, server
from backends.nfs.errors import NfsError
from backends.nfs.volume_mounts import VolumeMounts
from backends.system import mounts
from backends.system.clock import Deadline
from backends.system.mountinfo import MountEntry
from backends.system.mounts import VolumeUser

ENTRY = MountEntry("0:50", "/", "/m", "nfs4", "nas:/x/v", "rw,addr=10.0.0.5")


class Shares:
    """One share, which notes what it is asked."""

    directory = Path("/control")

    def __init__(self) -> None:
        self.held: set[str] = set()
        self.asked: list[str] = []

    def of(self, _volume: Volume) -> Shares:
        return self

    def call(self, operation: str, **_: Any) -> None:
        self.asked.append(operation)


def test_it_is_not_taken_from_the_container_nor_its_lease_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without its lease another node would remove it, or exchange its bytes."""
    shares = Shares()
    user = VolumeUser(7, "postgres", "/data")
    unmounted: list[Path] = []
    monkeypatch.setattr(mounts, "mounted_at", lambda _: ENTRY)
    monkeypatch.setattr(mounts, "mount_table", lambda: [ENTRY])
    monkeypatch.setattr(mounts, "users_of_root", lambda *_, **__: [user])
    monkeypatch.setattr(server, "has_moved", lambda *_: True)
    monkeypatch.setattr(mounting, "unmount", lambda at, **_: unmounted.append(at))
    volume = Volume(
        id="6c0f7f0c-4f2e-4f0e-9a53-3f5a0a8a3f11",
        name="v",
        options={"server": "nas", "share": "/x"},
        created_at="2026-01-02T03:04:05Z",
    )
    mounted: Any = VolumeMounts(shares)  # type: ignore[arg-type]
    with pytest.raises(NfsError, match=r"NFS-MOVED: .* postgres \(pid 7\) at /data"):
        mounted.mount(volume, Path("/m"), Deadline(5))
    assert (unmounted, shares.asked, shares.held) == ([], ["hold"], {volume.id})
