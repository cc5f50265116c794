"""Mount references: a multiset that must survive restarts, crashes and lost calls."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections import Counter
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from plugin.daemon.node import _MIGRATIONS
from plugin.errors import StoreError
from plugin.store.database import open_database
from plugin.volumes.references import Count, References

VOLUMES = st.sampled_from(["v1", "v2"])
MOUNT_IDS = st.sampled_from(["a", "b", ""])


class ReferencesMachine(RuleBasedStateMachine):
    """Compares References, through restarts and reboots, with two plain Counters."""

    @initialize()
    def start(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.live: Counter[tuple[str, str]] = Counter()
        self.inherited: Counter[tuple[str, str]] = Counter()
        self.boot = 1
        self.open()

    def open(self) -> None:
        self.connection = open_database(self.directory / "node.db", _MIGRATIONS)
        self.references = References(self.connection, boot_id=f"{self.boot}")

    @rule(volume=VOLUMES, mount_id=MOUNT_IDS)
    def mount(self, volume: str, mount_id: str) -> None:
        self.references.add(volume, mount_id)
        self.live[volume, mount_id] += 1

    @rule(volume=VOLUMES, mount_id=MOUNT_IDS)
    def unmount(self, volume: str, mount_id: str) -> None:
        self.references.drop(volume, mount_id)
        key = (volume, mount_id)
        if self.live[key]:
            self.live[key] -= 1
        elif self.inherited[key]:
            self.inherited[key] -= 1

    @rule()
    def engine_restarts(self) -> None:
        self.references.begin_epoch()
        self.inherit()

    @rule()
    def daemon_is_killed(self) -> None:
        # Nothing is closed in order: what a kill leaves is what was committed.
        self.open()
        self.inherit()

    @rule()
    def machine_reboots(self) -> None:
        self.boot += 1
        self.open()
        self.live.clear()
        self.inherited.clear()

    @rule(volume=VOLUMES)
    def volume_is_proven_unused(self, volume: str) -> None:
        self.references.forget(volume)
        for counter in (self.live, self.inherited):
            for key in [key for key in counter if key[0] == volume]:
                del counter[key]

    def inherit(self) -> None:
        self.inherited.update(self.live)
        self.live.clear()

    @invariant()
    def counts_agree(self) -> None:
        if not hasattr(self, "references"):
            return
        for volume in ("v1", "v2"):
            expected = {
                mount_id: Count(self.live[key], self.inherited[key])
                for key in {*self.live, *self.inherited}
                for mount_id in [key[1]]
                if key[0] == volume and (self.live[key] or self.inherited[key])
            }
            assert self.references._counts.get(volume, {}) == expected
            assert self.references.total(volume) == sum(expected.values(), Count())
            assert (volume in self.references.volumes()) == bool(expected)

    def teardown(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)


ReferencesMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30)
TestReferences = ReferencesMachine.TestCase


@pytest.fixture
def connection(tmp_path: Path) -> sqlite3.Connection:
    """Return a connection to a new node's database."""
    return open_database(tmp_path / "node.db", _MIGRATIONS)


def test_docker_cp_on_a_running_container_keeps_its_reference(
    connection: sqlite3.Connection,
) -> None:
    references = References(connection, boot_id="1")
    references.add("v", "container")
    references.add("v", "container")
    references.drop("v", "container")
    assert references.total("v") == Count(live=1)


def test_the_same_id_after_an_engine_crash_leaves_an_inherited_one(
    connection: sqlite3.Connection,
) -> None:
    references = References(connection, boot_id="1")
    references.add("v", "container")
    references.begin_epoch()
    references.add("v", "container")
    references.drop("v", "container")
    assert references.total("v") == Count(inherited=1)


def test_stop_under_live_restore_consumes_the_inherited_one(
    connection: sqlite3.Connection,
) -> None:
    references = References(connection, boot_id="1")
    references.add("v", "container")
    references.begin_epoch()
    references.drop("v", "container")
    assert not references.total("v")


def test_an_unmount_of_an_unknown_id_changes_nothing(
    connection: sqlite3.Connection,
) -> None:
    references = References(connection, boot_id="1")
    references.add("v", "a")
    references.drop("v", "b")
    references.drop("w", "a")
    assert references.total("v") == Count(live=1)


def test_a_reference_that_cannot_be_stored_is_not_counted(
    connection: sqlite3.Connection,
) -> None:
    references = References(connection, boot_id="1")
    connection.execute("PRAGMA query_only = ON")
    with pytest.raises(StoreError, match="cannot record"):
        references.add("v", "a")
    assert not references.total("v")
    connection.execute("PRAGMA query_only = OFF")
    references.add("v", "a")
    assert references.total("v") == Count(live=1)


def test_a_start_on_a_full_disk_knows_what_runs(
    connection: sqlite3.Connection,
) -> None:
    References(connection, boot_id="1").add("v", "a")
    connection.execute("PRAGMA query_only = ON")
    assert not References(connection, boot_id="2").total("v")
    started = References(connection, boot_id="1")
    started.begin_epoch()
    assert started.total("v") == Count(inherited=1)
    with pytest.raises(StoreError, match="cannot record"):
        started.add("v", "b")
    connection.execute("PRAGMA query_only = OFF")
    started.add("v", "a")
    assert References(connection, boot_id="1").total("v") == Count(inherited=2)
