"""Attempts to own volumes, from everywhere, while everything breaks: never two owners.

A failure prints the seed; `python -m tests.lab.campaign --seed` runs it again.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.lab.campaigns import Campaign, Plan
from tests.lab.claims import Claimants, Claims
from tests.lab.cluster import NAMES, TOPOLOGY, Cluster
from tests.lab.history import History
from tests.lab.invariants import violations
from tests.lab.lab import Lab
from tests.lab.mounts import Mounts
from tests.support.chance import seed

__all__ = ["TOPOLOGY"]


def judge(campaign: Campaign, directory: Path) -> None:
    """Fail if the campaign's history breaks a rule, or was too poor to break one."""
    try:
        result = campaign.run()
    finally:
        campaign.save(directory)
    print(f"{result.table()}\nlogs and history: {directory}")
    assert result.violations == []
    assert result.deaths == []
    history = result.history
    tried = [each for each in history.attempts if each.kind == "mount"]
    assert len(tried) >= campaign.plan.attempts
    assert {each.node for each in history.mounts()} == {*NAMES}
    assert {each.node for each in history.events if each.kind == "owned"} == {*NAMES}
    assert {each.kind for each in history.faults} == {*campaign.kinds}
    plant_bugs(history)


def plant_bugs(history: History) -> None:
    """Fail if the judge of this very history would not have seen what is wrong."""
    owned = next(each for each in history.events if each.kind == "owned")
    other = next(name for name in NAMES if name != owned.node)
    position = history.events.index(owned)
    second = dataclasses.replace(owned, node=other, boot="other")
    history.events.append(second)
    assert "an_epoch_has_one_owner" in broken(history)
    history.events.remove(second)
    late = dataclasses.replace(owned, deadline_s=owned.at_s)
    history.events[position] = late
    assert "nothing_is_owned_past_the_deadline" in broken(history)
    del history.events[:]
    assert "what_is_mounted_is_owned" in broken(history)


def broken(history: History) -> set[str]:
    return {each.rule for each in violations(history)}


def judge_claims(lab: Lab, plan: Plan, directory: Path) -> None:
    claimants = Claimants(lab, plan)
    try:
        judge(Claims(claimants, plan), directory)
    finally:
        claimants.stop()


@pytest.mark.timeout(900)
def test_a_hundred_and_fifty_claims(lab: Lab, tmp_path: Path) -> None:
    plan = Plan(seed=seed(), attempts=150, duration_s=240, fault_max_s=6, pause_s=0.3)
    judge_claims(lab, plan, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(3 * 3600)
def test_ten_thousand_claims(lab: Lab, tmp_path: Path) -> None:
    plan = Plan(
        seed=seed(),
        attempts=10_000,
        duration_s=2 * 3600,
        threads=3,
        hold_s=0.2,
        pause_s=0.2,
    )
    judge_claims(lab, plan, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_three_hundred_mounts(cluster: Cluster, tmp_path: Path) -> None:
    """The same through the daemons, with real mounts and their channel."""
    plan = Plan(seed=seed(), attempts=300, duration_s=420)
    judge(Mounts(cluster, plan), tmp_path)
