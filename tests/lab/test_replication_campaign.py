"""Writers on replicated volumes, while everything breaks: nothing is lost unannounced.

A failure prints the seed; `make campaign SEED=...` runs it again, for longer if wished.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab.cluster import NAMES, Cluster
from tests.lab.replication_campaign import (
    SETTINGS,
    TOPOLOGY,
    Outcome,
    Plan,
    ReplicationCampaign,
)
from tests.support.host import wait_until

__all__ = ["SETTINGS", "TOPOLOGY"]

SEED = int(os.environ.get("REMORA_CAMPAIGN_SEED", random.randrange(10**6)))
RESTARTED_S = 90.0
# So many of them are seen before something breaks.
COMMITS = 4
COMMITTED_S = 60
# What was written by a node that another one has taken the volume from is deleted.
FORGETFUL = """
import shutil
from backends.rsync.journal.journal import Journal
_keep_apart = Journal.keep_apart
def keep_apart(self, name):
    place = _keep_apart(self, name)
    shutil.rmtree(place)
    return place
Journal.keep_apart = keep_apart
"""
# A commit is said to be there, and some of it has not come.
CARELESS = """
from backends.rsync.journal import journal
_delta = journal.write_delta
def write_delta(path, header, entries, deletions):
    kept = (each for each in entries if each.path != b"log-1")
    return _delta(path, header, kept, deletions)
journal.write_delta = write_delta
"""


def test_a_short_campaign(cluster: Cluster, tmp_path: Path) -> None:
    campaign = ReplicationCampaign(cluster, Plan(seed=SEED, duration_s=60))
    try:
        outcome = campaign.run()
    finally:
        campaign.save(tmp_path)
    print(f"{outcome.table()}\nlogs: {tmp_path}")
    assert outcome.violations == []
    assert outcome.deaths == []
    assert {each.volume for each in outcome.facts.sessions} == {*campaign.plan.names}
    assert all(each.acknowledged for each in outcome.facts.sessions[-2:])


def taken_over(cluster: Cluster, seed: int) -> Outcome:
    """Return what is seen when beta takes over from alpha, which is cut off."""
    campaign = ReplicationCampaign(cluster, Plan(seed=seed, duration_s=0, volumes=1))
    campaign.begin()
    (volume,) = campaign.plan.names
    assert campaign.mount(volume, "alpha")
    marks = campaign.uses[volume].session.marks
    for _ in range(COMMITTED_S):
        campaign.write(1)
        if len({each.commit for each in marks}) >= COMMITS:
            break
    with campaign.faults.breaking("cut", "alpha"):
        campaign.write(2)
        assert campaign.take(volume, "beta")
        campaign.write(3)
    cluster.restore()
    outcome = campaign.finish()
    print(outcome.table())
    return outcome


@contextmanager
def planted(cluster: Cluster, bug: str) -> Iterator[None]:
    """Have daemons with *bug*."""
    programs = {name: cluster[name].remora._program for name in NAMES}
    for name in NAMES:
        cluster[name].remora._program = bug + programs[name]
    try:
        restart(cluster)
        yield
    finally:
        for name in NAMES:
            cluster[name].remora._program = programs[name]
        restart(cluster)


def restart(cluster: Cluster) -> None:
    for name in NAMES:
        if cluster[name].remora.running:
            cluster[name].remora.stop()
    cluster.start()
    for name in NAMES:
        wait_until(
            lambda name=name: {*cluster[name].nodes().values()} == {"ready"},
            timeout_s=RESTARTED_S,
            what=f"{name} sees all nodes",
        )


def test_bytes_that_are_not_set_apart_are_missed(cluster: Cluster) -> None:
    with planted(cluster, FORGETFUL):
        outcome = taken_over(cluster, SEED + 1)
    rules = {each.rule for each in outcome.violations}
    assert rules == {"every_byte_is_somewhere"}, outcome.violations


def test_commits_that_are_not_whole_are_found_out(cluster: Cluster) -> None:
    with planted(cluster, CARELESS):
        outcome = taken_over(cluster, SEED + 2)
    rules = {each.rule for each in outcome.violations}
    assert "failovers_lose_at_most_what_was_announced" in rules, outcome.violations
