"""Every backend, each on a bench of its own."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from backends.base import Backend, Volume
from backends.rsync.backend import RsyncBackend
from tests.support.memory_backend import MemoryBackend
from tests.support.namespaces import (
    enter_private_mounts,
    kernel_has_xfs_quota,
    loop_filesystem,
)


@dataclass
class Bench:
    """One backend under test and its surroundings."""

    reopen: Callable[[], Backend]
    targets: Path

    def __post_init__(self) -> None:
        self.backend = self.reopen()

    def volume(self, name: str = "data", **options: str) -> Volume:
        return Volume(
            id=str(uuid.uuid4()),
            name=name,
            options={
                **self.backend.default_options(),
                **self.backend.parse_options(options),
            },
            created_at="2026-01-02T03:04:05Z",
        )

    def created(self, name: str = "data", **options: str) -> Volume:
        volume = self.volume(name, **options)
        self.backend.create(volume, deadline_s=30)
        return volume

    def target(self, volume: Volume) -> Path:
        return self.targets / volume.id

    def mount(self, volume: Volume) -> Path:
        self.backend.mount(volume, self.target(volume), deadline_s=30)
        return self.target(volume)

    def unmount(self, volume: Volume) -> None:
        self.backend.unmount(volume, self.target(volume), deadline_s=30)


@contextmanager
def rsync_bench(kind: str, directory: Path) -> Iterator[Bench]:
    """Yield `rsync` on a filesystem of *kind*."""
    enter_private_mounts()
    targets = directory / "targets"
    targets.mkdir()
    options = "prjquota" if kind == "xfs" and kernel_has_xfs_quota() else ""
    with loop_filesystem(directory, kind, options=options) as filesystem:
        if kind == "btrfs":
            subprocess.run(
                ["btrfs", "quota", "enable", filesystem], check=True, timeout=30
            )
        pool = filesystem / "pool"
        pool_id = RsyncBackend(pool, pool_id=None).pool.initialise()
        yield Bench(lambda: RsyncBackend(pool, pool_id=pool_id), targets)


@pytest.fixture(params=["memory", "ext4", "xfs", "btrfs"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """Yield each backend, `rsync` on each kind of filesystem that it treats apart."""
    if request.param == "memory":
        disk: dict[str, Volume] = {}
        yield Bench(lambda: MemoryBackend(disk), tmp_path)
        return
    with rsync_bench(request.param, tmp_path) as made:
        yield made


@pytest.fixture(params=["ext4", "xfs", "btrfs"])
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """Yield each backend that really keeps bytes."""
    with rsync_bench(request.param, tmp_path) as made:
        yield made
