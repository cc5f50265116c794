"""Attempts to own volumes, from everywhere, while everything breaks: never two owners.

A failure prints the seed; `python -m tests.lab.campaign --seed` runs it again.
"""

from __future__ import annotations

import os
import random

import pytest

from tests.lab.campaign import FAULTS, Campaign, Plan, Result
from tests.lab.cluster import NAMES, TOPOLOGY, Cluster

__all__ = ["TOPOLOGY"]

SEED = int(os.environ.get("REMORA_CAMPAIGN_SEED", random.randrange(10**6)))


def judge(result: Result, attempts: int) -> None:
    """Fail if the history breaks a rule, or was too poor to break one."""
    print(result.table())
    assert result.violations == []
    assert result.deaths == []
    history = result.history
    tried = [each for each in history.attempts if each.kind == "mount"]
    assert len(tried) >= attempts
    assert {each.node for each in history.mounts()} == {*NAMES}
    assert {each.node for each in history.events if each.kind == "owned"} == {*NAMES}
    assert {each.kind for each in history.faults} == {*FAULTS}


@pytest.mark.timeout(1200)
def test_three_hundred_attempts(cluster: Cluster) -> None:
    plan = Plan(seed=SEED, attempts=300, duration_s=420)
    judge(Campaign(cluster, plan).run(), plan.attempts)


@pytest.mark.long
@pytest.mark.timeout(3 * 3600)
def test_ten_thousand_attempts(cluster: Cluster) -> None:
    plan = Plan(
        seed=SEED + 1, attempts=10_000, duration_s=2 * 3600, hold_s=0.3, pause_s=0.3
    )
    judge(Campaign(cluster, plan).run(), plan.attempts)
