"""Every store, and every backend on a bench of its own."""

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
from plugin.store.base import Store
from plugin.store.etcd.settings import EtcdSettings
from plugin.store.etcd.store import EtcdStore
from plugin.store.mirror import MirrorStore
from plugin.store.sqlite import SqliteStore
from tests.support import etcd
from tests.support.memory_backend import MemoryBackend
from tests.support.memory_store import Memory, MemoryStore
from tests.support.mirrors import MirrorBench
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


@pytest.fixture(scope="session")
def etcd_single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[etcd.Cluster]:
    """Yield a running etcd of one member."""
    directory = etcd.memory_directory(tmp_path_factory.mktemp("etcd-single"))
    with etcd.single(directory) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def etcd_three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[etcd.Cluster]:
    """Yield a running etcd of three members."""
    directory = etcd.memory_directory(tmp_path_factory.mktemp("etcd-three"))
    with etcd.three(directory) as cluster:
        yield cluster


# One worker starts the servers, and not every one of them.
ON_ETCD = pytest.mark.xdist_group("etcd")
ON_THREE = (ON_ETCD, pytest.mark.long)
AT_ONCE = ("sqlite", "memory")


@pytest.fixture(
    params=[
        *AT_ONCE,
        pytest.param("etcd_single", marks=ON_ETCD),
        pytest.param("mirror_single", marks=ON_ETCD),
        pytest.param("etcd_three", marks=ON_THREE),
        pytest.param("mirror_three", marks=ON_THREE),
    ]
)
def store_kind(request: pytest.FixtureRequest) -> str:
    """Return which store a test runs on."""
    return str(request.param)


@pytest.fixture
def open_store(
    store_kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Callable[[], Store]]:
    """Yield a function that opens the same store again, as a restart does."""
    opened: list[Store] = []
    memory = Memory()
    if store_kind not in AT_ONCE:
        _, _, members = store_kind.partition("_")
        cluster: etcd.Cluster = request.getfixturevalue(f"etcd_{members}")
        cluster.heal()
        settings = EtcdSettings(cluster.endpoints, prefix=f"/{uuid.uuid4()}/")

    def open_again() -> Store:
        store: Store
        if store_kind == "sqlite":
            store = SqliteStore(tmp_path / "store.db")
        elif store_kind == "memory":
            store = MemoryStore(memory)
        elif store_kind.startswith("etcd"):
            store = EtcdStore(settings)
        else:
            store = MirrorStore(EtcdStore(settings), path=tmp_path / "mirror.db")
            store.refresh(30)
        opened.append(store)
        return store

    yield open_again
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: Callable[[], Store]) -> Store:
    """Return one open store."""
    return open_store()


@pytest.fixture
def mirrors(etcd_single: etcd.Cluster, tmp_path: Path) -> Iterator[MirrorBench]:
    """Yield a bench on the etcd that other tests use too."""
    etcd_single.heal()
    made = MirrorBench(etcd_single, tmp_path)
    yield made
    made.close()
    etcd_single.heal()


@pytest.fixture
def own_mirrors(tmp_path: Path) -> Iterator[MirrorBench]:
    """Yield a bench on an etcd of its own, whose data may be spoilt."""
    directory = etcd.memory_directory(tmp_path / "etcd")
    with etcd.single(directory) as cluster:
        made = MirrorBench(cluster, tmp_path)
        yield made
        made.close()
