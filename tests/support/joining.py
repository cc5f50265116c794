"""One machine as `remora cluster` sees it: a configuration, a state directory, etcd."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import uuid
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from plugin import database
from plugin.cluster.state import Head
from plugin.config import Config, load
from plugin.model import VolumeRecord
from plugin.node import Node
from plugin.store.base import Put, Store
from plugin.store.etcd.client import Client
from plugin.store.etcd.settings import EtcdSettings
from plugin.store.etcd.store import EtcdStore
from plugin.store.sqlite import SqliteStore

CHANGING_CALLS = ("mkdir", "rename", "unlink", "fchmod", "fsync", "write")
STEPS_MAX = 400


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


class Fuse:
    """Kills this process at its n-th step, before or after what changes something."""

    def __init__(self, fatal_step: int) -> None:
        self.left = fatal_step

    def step(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def stepping(*args: Any, **kwargs: Any) -> Any:
            self.step()
            result = call(*args, **kwargs)
            self.step()
            return result

        return stepping

    def wire(self) -> None:
        for name in CHANGING_CALLS:
            setattr(os, name, self.around(getattr(os, name)))
        Client.call = self.around(Client.call)  # type: ignore[method-assign]
        fuse = self

        class Connection(sqlite3.Connection):
            def execute(self, query: str, *args: Any) -> sqlite3.Cursor:
                # Inside a transaction nothing has happened before its end.
                reads = query.startswith(("SELECT", "PRAGMA"))
                if query == "COMMIT" or not (reads or self.in_transaction):
                    return fuse.around(super().execute)(query, *args)
                return super().execute(query, *args)

        connect = sqlite3.connect
        database.sqlite3.connect = lambda *args, **kwargs: connect(  # type: ignore[attr-defined]
            *args, factory=Connection, **kwargs
        )


def dies(act: Callable[[], object], fatal_step: int) -> bool:
    """Do *act* in a child that dies at *fatal_step*; return whether it died."""
    child = os.fork()
    if child == 0:
        try:
            Fuse(fatal_step).wire()
            act()
        except BaseException as error:  # noqa: BLE001 - told to the parent
            os.write(2, f"{error!r}\n".encode())
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "the command failed in the child"
    return False
