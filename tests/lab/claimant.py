"""
A program in a node that takes volumes and lets them go, as fast as etcd answers.

    python -m tests.lab.claimant ETCD PREFIX NODE SEED THREADS HOLD_S PAUSE_S VOLUME...

It is a daemon without volumes: the real membership, ownership and keeper on the real
store, for a backend whose volumes every node can have, but one at a time. Nothing is
mounted. Its log has the daemon's events and a line before and after each attempt, as
`history.py` reads them. It ends in good order on SIGTERM.
"""

from __future__ import annotations

import itertools
import logging
import random
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Final

from backends.base import Traits, Volume
from backends.errors import RemoraError
from backends.registry import Registry
from backends.system import clock
from backends.system.mounts import VolumeUser
from plugin import logs
from plugin.daemon.node import Node
from plugin.errors import StoreError
from plugin.events.log import Events
from plugin.fencing.client import Guard
from plugin.logs import fields
from plugin.membership.directory import NodeDirectory
from plugin.membership.membership import Membership
from plugin.membership.nodes import Identity, machine_id
from plugin.membership.quarantine_records import QuarantineRecords
from plugin.membership.registration import Sources
from plugin.model import VolumeRecord
from plugin.ownership.acquisition import Acquisition
from plugin.ownership.bytes_port import Alone
from plugin.ownership.copy_states import CopyStates
from plugin.ownership.failsafe import Failsafe, Holds
from plugin.ownership.heads import Heads
from plugin.ownership.keeper import Keeper
from plugin.ownership.release import Release
from plugin.ownership.view import OwnershipView
from plugin.ownership.votes import Votes
from plugin.peers.channel import Peers
from plugin.peers.sharing import SharedSsh
from plugin.store.etcd.settings import EtcdSettings
from plugin.store.etcd.store import EtcdStore
from plugin.store.mirror import MirrorStore
from tests.support.memory_backend import MemoryBackend

log = logging.getLogger(__name__)
STATE: Final = Path("/var/lib/remora/claimant")
TTL_S: Final = 15.0
FREEZE_MAX_S: Final = 60.0
ACQUIRE_DEADLINE_S: Final = 20.0
RECONCILE_S: Final = 0.5
# Attempts without a lease tell nothing: they must not make up the number.
NO_STORE_PAUSE_S: Final = 1.0


class SharedBackend(MemoryBackend):
    """Volumes that every node can have."""

    kind = "shared"

    def __init__(self) -> None:
        super().__init__({})
        self.traits = Traits(reachable_from_every_node=True)

    def copy_directory(self, volume: Volume) -> Path | None:
        return None

    def users(self, volume: Volume, target: Path) -> list[VolumeUser]:
        return []


class Claimant:
    """The parts of a daemon that own volumes."""

    def __init__(self, settings: EtcdSettings, name: str, volumes: list[str]) -> None:
        STATE.mkdir(parents=True, exist_ok=True)
        self.node = Node(STATE)
        self.store = MirrorStore(EtcdStore(settings), path=STATE / "mirror.db")
        own = Identity(
            id=self.node.id,
            name=name,
            peer_port=7424,
            host_key="",
            public_key="",
            machine_id=machine_id(),
            boot_id=clock.boot_id(),
            session=str(uuid.uuid4()),
        )
        nodes = NodeDirectory(self.store, data_only_on=lambda _: {})
        self.membership = Membership(
            self.store,
            own,
            facts=self.node,
            leases=self.store,
            ttl_s=TTL_S,
            sources=Sources(capacity=lambda: (0, 0), addresses=lambda _: ()),
            nodes=nodes,
        )
        self.events = Events(STATE)
        self.ownership = OwnershipView(
            heads=Heads(self.store, QuarantineRecords(self.store)),
            copy_states=CopyStates(lambda _: None),
            nodes=nodes,
            membership=self.membership,
            registry=Registry([SharedBackend()]),
            events=self.events,
            mount_dir=STATE / "mounts",
        )
        votes = Votes(None, node_id=own.id)
        self.acquisition = Acquisition(self.ownership, votes, Alone())
        self.release = Release(self.ownership, Alone())
        peers = Peers(SharedSsh(STATE, sockets=STATE / "ssh"))
        failsafe = Failsafe(self.ownership, peers, Holds(10.0), ask_below_s=0.0)
        guard = Guard(STATE)
        self.keeper = Keeper(self.ownership, guard, failsafe, freeze_max_s=FREEZE_MAX_S)
        self.records = [_record(each) for each in volumes]
        self.locks = {each.id: threading.Lock() for each in self.records}

    def start(self) -> None:
        self.membership.start()
        self.keeper.start(dict)

    def stop(self) -> None:
        self.keeper.stop()
        self.membership.stop()
        self.events.close()
        self.store.close()
        self.node.close()

    def acquire(self, record: VolumeRecord) -> None:
        """Do what a Mount does about ownership."""
        try:
            epoch = self.acquisition.acquire(record, clock.Deadline(ACQUIRE_DEADLINE_S))
            self.keeper.hold(record, epoch, STATE / record.id)
        except BaseException:
            self.let_go(record)
            raise

    def let_go(self, record: VolumeRecord) -> None:
        """Do what an Unmount does; without an answer `reconcile` repeats it."""
        self.keeper.drop(record)
        try:
            self.release.release(record)
        except RemoraError as error:
            log.warning("%s", error)

    def reconcile(self) -> None:
        """Let go what no thread has: an earlier process had it, or etcd was silent."""
        try:
            owned = {*self.ownership.heads.owned_by(self.ownership.node_id)}
        except RemoraError:
            return
        for record in self.records:
            lock = self.locks[record.id]
            if record.id in owned and lock.acquire(blocking=False):
                try:
                    self.let_go(record)
                finally:
                    lock.release()


# Unique in this boot, also when the program is started again.
_numbers = itertools.count(time.clock_gettime_ns(time.CLOCK_BOOTTIME))


class Worker(threading.Thread):
    """Takes one volume after another, and lets it go, until *stop*."""

    def __init__(
        self,
        claimant: Claimant,
        chance: random.Random,
        stop: threading.Event,
        hold_s: float,
        pause_s: float,
    ) -> None:
        super().__init__()
        self.claimant = claimant
        self.chance = chance
        self.stop = stop
        self.hold_s = hold_s
        self.pause_s = pause_s

    def run(self) -> None:
        while not self.stop.is_set():
            record = self.chance.choice(self.claimant.records)
            lock = self.claimant.locks[record.id]
            if lock.acquire(blocking=False):
                try:
                    self.turn(record)
                finally:
                    lock.release()
            self.stop.wait(self.chance.uniform(0, self.pause_s))

    def turn(self, record: VolumeRecord) -> None:
        mount_id = f"{self.chance.getrandbits(64):016x}"
        code = self.attempt("mount", record, mount_id, self.claimant.acquire)
        if not code:
            self.stop.wait(self.chance.uniform(0, self.hold_s))
            self.attempt("unmount", record, mount_id, self.claimant.let_go)
        elif code == StoreError.code:
            self.stop.wait(NO_STORE_PAUSE_S)

    def attempt(
        self,
        kind: str,
        record: VolumeRecord,
        mount_id: str,
        action: Callable[[VolumeRecord], None],
    ) -> str:
        """Return the code with which *action* failed; written down before and after."""
        boot_id = self.claimant.ownership.boot_id
        number = next(_numbers)
        log.info(
            "attempt",
            extra=fields(
                boot_id=boot_id,
                n=number,
                kind=kind,
                volume=record.name,
                mount_id=mount_id,
                start_s=clock.boottime_s(),
            ),
        )
        code = error = ""
        try:
            action(record)
        except RemoraError as failure:
            code, error = failure.code, str(failure)
        log.info(
            "answer",
            extra=fields(
                boot_id=boot_id,
                n=number,
                end_s=clock.boottime_s(),
                outcome="error" if code else "ok",
                error=error,
            ),
        )
        return code


def _record(name: str) -> VolumeRecord:
    return VolumeRecord(
        id=str(uuid.uuid5(uuid.NAMESPACE_URL, name)),
        name=name,
        backend=SharedBackend.kind,
        requested={},
        options={},
        created_at="",
        phase="ready",
        filled=False,
    )


def main() -> None:
    etcd, prefix, name, seed, threads, hold_s, pause_s, *volumes = sys.argv[1:]
    logs.set_up("json")
    settings = EtcdSettings(tuple(etcd.split(",")), prefix=prefix)
    # A handler runs in the middle of what the main thread does: `Event.set` would wait
    # for a lock of the `wait` that it interrupts.
    ends: list[bool] = []
    signal.signal(signal.SIGTERM, lambda *_: ends.append(True))
    stop = threading.Event()
    claimant = Claimant(settings, name, volumes)
    claimant.start()
    workers = [
        Worker(
            claimant,
            random.Random(f"{seed}-{number}"),
            stop,
            float(hold_s),
            float(pause_s),
        )
        for number in range(int(threads))
    ]
    log.info("claiming")
    for each in workers:
        each.start()
    while not ends:
        claimant.reconcile()
        clock.pause(RECONCILE_S)
    stop.set()
    for each in workers:
        each.join()
    claimant.reconcile()
    claimant.stop()


if __name__ == "__main__":
    main()
