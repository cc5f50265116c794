"""One machine as `remora cluster` sees it: a configuration, a state directory, etcd."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from plugin.config import Config, load
from plugin.daemon.node import Node
from plugin.model import VolumeRecord
from plugin.ownership.state import Head
from plugin.store.base import Put, Store
from plugin.store.etcd.settings import EtcdSettings
from plugin.store.etcd.store import EtcdStore
from plugin.store.sqlite import SqliteStore
from tests.support.fuse import live


def volume(name: str, **changes: Any) -> VolumeRecord:
    """Return the record of a new volume."""
    record = VolumeRecord(
        id=str(uuid.uuid4()),
        name=name,
        backend="rsync",
        requested={"backend": "rsync"},
        options={"backend": "rsync", "mode": "0755"},
        created_at="2026-01-02T03:04:05Z",
        phase="ready",
    )
    return msgspec.structs.replace(record, **changes)


def put_volume(record: VolumeRecord) -> Put:
    return Put(f"volumes/{record.name}", msgspec.json.encode(record))


def put_head(record: VolumeRecord, head: Head) -> Put:
    return Put(f"v/{record.id}/head", msgspec.json.encode(head))


@dataclass
class Machine:
    """A machine whose daemon does not run, and the part of etcd that it may join."""

    directory: Path
    endpoints: tuple[str, ...]
    prefix: str = field(default_factory=lambda: f"/{uuid.uuid4()}/")

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.state_dir = self.directory / "state"
        self.state_dir.mkdir()
        self.config = self.directory / "remora.toml"
        self.config.write_text(
            "# mine\n[daemon]\n"
            f"state_dir = {json.dumps(str(self.state_dir))}\n"
            f"control_socket = {json.dumps(str(self.directory / 'no.sock'))}\n"
        )

    @property
    def join(self) -> tuple[str, ...]:
        """The command that joins."""
        etcd = ("--etcd", ",".join(self.endpoints), "--prefix", self.prefix)
        return ("cluster", "join", *etcd, "--node-name", f"n{self.directory.name}")

    def loaded(self) -> Config:
        return load(self.config, {})

    def node(self) -> Node:
        return Node(self.state_dir)

    @property
    def id(self) -> str:
        with closing(self.node()) as node:
            return node.id

    def local(self) -> SqliteStore:
        return SqliteStore(self.state_dir / "store.db")

    def cluster(self) -> EtcdStore:
        return EtcdStore(EtcdSettings(self.endpoints, prefix=self.prefix))

    def write(self, *puts: Put) -> None:
        """Put records into the machine's own store."""
        with closing(self.local()) as store:
            write(store, *puts)

    def write_there(self, *puts: Put) -> None:
        """Put records into the cluster's store."""
        with closing(self.cluster()) as store:
            write(store, *puts)

    def records(self) -> dict[str, bytes]:
        """Return the records of the machine's own store."""
        with closing(self.local()) as store:
            return contents(store)

    def records_there(self) -> dict[str, bytes]:
        """Return the records of the cluster's store."""
        with closing(self.cluster()) as store:
            return contents(store)


def write(store: Store, *puts: Put) -> None:
    for start in range(0, len(puts), 100):
        assert store.transact([], puts[start : start + 100]).succeeded


def contents(store: Store) -> dict[str, bytes]:
    return {each.key: each.value for each in store.prefix("")[0]}


def dies(act: Callable[[], object], fatal_step: int) -> bool:
    """Do *act* in a child that dies at *fatal_step*; return whether it died."""
    life = live(lambda: None, lambda _: act(), fatal_step=fatal_step, sends=True)
    return life.died
