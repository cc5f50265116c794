"""Attempts to own volumes, from everywhere, while everything breaks: never two owners.

A failure prints the seed; `python -m tests.lab.campaign --seed` runs it again.
"""

from __future__ import annotations

import dataclasses
import os
import random
from pathlib import Path

import pytest

from tests.lab.campaign import FAULTS, Campaign, Plan
from tests.lab.cluster import NAMES, TOPOLOGY, Cluster
from tests.lab.history import History
from tests.lab.invariants import violations

__all__ = ["TOPOLOGY"]

SEED = int(os.environ.get("REMORA_CAMPAIGN_SEED", random.randrange(10**6)))


def judge(cluster: Cluster, plan: Plan, directory: Path) -> None:
    """Fail if a history breaks a rule, or was too poor to break one."""
    campaign = Campaign(cluster, plan)
    result = campaign.run()
    campaign.save(directory)
    print(f"{result.table()}\nlogs and history: {directory}")
    assert result.violations == []
    assert result.deaths == []
    history = result.history
    tried = [each for each in history.attempts if each.kind == "mount"]
    assert len(tried) >= plan.attempts
    assert {each.node for each in history.mounts()} == {*NAMES}
    assert {each.node for each in history.events if each.kind == "owned"} == {*NAMES}
    assert {each.kind for each in history.faults} == {*FAULTS}
    plant_bugs(history)


def plant_bugs(history: History) -> None:
    """Fail if the judge of this very history would not have seen two owners."""
    owned = next(each for each in history.events if each.kind == "owned")
    other = next(name for name in NAMES if name != owned.node)
    history.events.append(dataclasses.replace(owned, node=other, boot="other"))
    rules = {each.rule for each in violations(history)}
    assert "an_epoch_has_one_owner" in rules
    del history.events[:]
    rules = {each.rule for each in violations(history)}
    assert "what_is_mounted_is_owned" in rules


@pytest.mark.timeout(1200)
def test_three_hundred_attempts(cluster: Cluster, tmp_path: Path) -> None:
    judge(cluster, Plan(seed=SEED, attempts=300, duration_s=420), tmp_path)


@pytest.mark.long
@pytest.mark.timeout(3 * 3600)
def test_ten_thousand_attempts(cluster: Cluster, tmp_path: Path) -> None:
    plan = Plan(
        seed=SEED + 1, attempts=10_000, duration_s=2 * 3600, hold_s=0.3, pause_s=0.3
    )
    judge(cluster, plan, tmp_path)
