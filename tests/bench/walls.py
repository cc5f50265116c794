"""
A daemon in a cluster of many volumes, none of them its own.

    python -m tests.bench.walls [KEYS]

etcd (its data in memory) gets KEYS records of a tenth as many volumes: their records,
heads, seven epochs each as older versions wrote them, and as many tombs that wait for a
node that is down. To reach with 100,000: a restarted daemon's first answer < 2 s, a
refresh < 3 s; idle, < 2 % of a core and < 120 MB.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Final

import msgspec

from plugin.errors import StoreError
from plugin.membership.nodes import NodeRecord
from plugin.store.base import Delete, Put
from plugin.store.etcd.settings import EtcdSettings
from plugin.store.etcd.store import EtcdStore
from plugin.store.mirror import MirrorStore
from tests.support import etcd
from tests.support.owners import Owner

from . import machine
from .subjects import memory_mb

PREFIX: Final = "/bench/"
KEYS: Final = 100_000
EPOCHS: Final = 7
NODES: Final = 30
# A transaction takes 128 operations.
BATCH: Final = 100
SETTLE_S: Final = 25.0
IDLE_S: Final = 60.0
GIVE_UP_S: Final = 60.0
AT: Final = "2026-07-01T10:20:30Z"


def records(keys: int) -> Iterator[Put]:
    """Yield *keys* records as other nodes have left them."""
    nodes = [str(uuid.uuid5(uuid.NAMESPACE_OID, str(n))) for n in range(NODES)]
    for number, node_id in enumerate(nodes):
        node = NodeRecord(
            id=node_id,
            name=f"other{number}",
            peer_port=7424,
            version="0",
            protocol=1,
            protocol_oldest=1,
            machine_id=node_id,
            boot_id=node_id,
            host_key="",
            public_key="",
            joined_at=AT,
        )
        yield put(f"nodes/{node_id}", msgspec.to_builtins(node))
    for number in range(keys // (EPOCHS + 3)):
        members = [nodes[(number + n) % NODES] for n in range(3)]
        yield from volume(number, str(uuid.uuid4()), members)


def volume(number: int, volume_id: str, members: list[str]) -> Iterator[Put]:
    """Yield the records of a volume, and one removed volume's tomb."""
    options = {"replicas": "3", "interval": "10s", "failover": "accept_loss"}
    record = {
        "id": volume_id,
        "name": f"volume-{number:06}",
        "backend": "rsync",
        "requested": options,
        "options": {**options, "mode": "0700", "fence": "freeze", "uid": "0"},
        "created_at": AT,
        "phase": "ready",
        "node": members[0],
    }
    yield put(f"volumes/{record['name']}", record)
    head = {
        "epoch": EPOCHS,
        "owner": members[0],
        "boot_id": members[0],
        "committed": [EPOCHS, 100],
        "quality": "quiesced",
        "holders": members,
        "members": members,
        "released_at": AT,
    }
    yield put(f"v/{volume_id}/head", head)
    for epoch in range(1, EPOCHS + 1):
        begun = {"base": [epoch - 1, 1], "owner": members[0], "began_at": AT}
        yield put(f"v/{volume_id}/epochs/{epoch:010}", begun)
    tomb = {"name": "gone", "backend": "rsync", "removed_at": AT}
    yield put(f"tomb/{uuid.uuid4()}", {**tomb, "pending": members[1:]})


def put(key: str, value: dict[str, Any]) -> Put:
    return Put(key, msgspec.json.encode(value))


def timed(what: str, call: Callable[[], object]) -> None:
    """Print how long *call* takes, or that it does not succeed."""
    began_s = time.monotonic()
    try:
        call()
        text = f"{time.monotonic() - began_s:.2f} s"
    except (AssertionError, StoreError) as error:
        first = str(error).splitlines()[0][:80]
        text = f"not within {time.monotonic() - began_s:.0f} s: {first}"
    print(f"| {what} | {text} |", flush=True)


def measure_store(settings: EtcdSettings, path: Path) -> None:
    """Print how long a mirror takes to fill, and to know what others write."""
    other = EtcdStore(settings)
    mirror = MirrorStore(EtcdStore(settings), path=path)
    with closing(other), closing(mirror):
        timed("first fill of a mirror", lambda: mirror.refresh(GIVE_UP_S))
        if not mirror.filled:
            return
        timed("refresh, nothing new", lambda: mirror.refresh(GIVE_UP_S))
        other.transact([], [Put("tomb/x", b"{}")])
        timed("refresh after a put", lambda: mirror.refresh(GIVE_UP_S))
        # As while a watch is opened anew.
        mirror._mirrored.follow = lambda _: None  # type: ignore[method-assign]
        other.transact([], [Put("tomb/y", b"{}")])
        timed("the same without the watch", lambda: mirror.refresh(GIVE_UP_S))
        other.transact([], [Delete("tomb/x"), Delete("tomb/y")])
        timed("after a deletion, without it", lambda: mirror.refresh(GIVE_UP_S))


def measure_daemon(owner: Owner, volumes: int) -> None:
    """Print what a daemon takes to start, twice, and what it takes when idle."""

    def listed() -> None:
        wait(lambda: len(owner.names()) >= volumes)

    def started() -> None:
        owner.launch()
        wait(lambda: owner.call("Capabilities").status == 200)

    def told_cpu() -> None:
        print(f"| the same: processor time | {cpu_s(owner.process.pid):.2f} s |")

    timed("a new node: start to first answer", started)
    told_cpu()
    timed("the same: to a list of all volumes", listed)
    timed("the same: to membership", owner.wait_member)
    owner.stop()
    timed("a restarted node: start to first answer", started)
    told_cpu()
    timed("the same: to a list of all volumes", listed)
    timed("the same: to membership", owner.wait_member)
    time.sleep(SETTLE_S)
    assert owner.process is not None
    before_s, began_s = cpu_s(owner.process.pid), time.monotonic()
    time.sleep(IDLE_S)
    used_s, passed_s = cpu_s(owner.process.pid) - before_s, time.monotonic() - began_s
    print(f"| idle, of a core | {100 * used_s / passed_s:.1f} % |")
    print(f"| idle, Rss | {memory_mb(owner.process.pid)[0]:.0f} MB |", flush=True)


def wait(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + GIVE_UP_S
    while True:
        try:
            if condition():
                return
        except (OSError, AssertionError):
            pass  # the socket is not there yet, or the records are not
        assert time.monotonic() < end_s, "given up"
        time.sleep(0.01)


def cpu_s(pid: int) -> float:
    """Return what the process has used so far, its own threads only."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    keys = int(sys.argv[1]) if sys.argv[1:] else KEYS
    print(f"{keys:,} keys, load {machine.load()}\n\n| what | |\n|---|---|", flush=True)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp")))
        memory = etcd.memory_directory(directory / "memory")
        stack.callback(subprocess.run, ["umount", memory], check=True, timeout=30)
        server = stack.enter_context(etcd.single(memory))
        settings = EtcdSettings(server.endpoints, prefix=PREFIX)
        with closing(EtcdStore(settings)) as store:
            operations = list(records(keys))
            for first in range(0, len(operations), BATCH):
                store.transact([], operations[first : first + BATCH])
        measure_store(settings, directory / "mirror.db")
        owner = Owner("bench", server, PREFIX, tuning={}, lease_ttl_s=15)
        measure_daemon(stack.enter_context(closing(owner)), keys // (EPOCHS + 3))
    print(f"\nload {machine.load()} at the end")


if __name__ == "__main__":
    main()
