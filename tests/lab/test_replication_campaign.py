"""Writers on replicated volumes, while everything breaks: nothing is lost unannounced.

A failure prints the seed; `make campaign SEED=...` runs it again, for longer if wished.
Bugs that are planted in the daemons are in `tests/cluster/test_replication_writers.py`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.lab.cluster import Cluster
from tests.lab.replication_campaign import Plan, ReplicationCampaign
from tests.lab.replication_pools import SETTINGS, TOPOLOGY

__all__ = ["SETTINGS", "TOPOLOGY"]

SEED = int(os.environ.get("REMORA_SEED", "3"))


@pytest.mark.timeout(900)
def test_a_short_campaign(cluster: Cluster, tmp_path: Path) -> None:
    campaign = ReplicationCampaign(cluster, Plan(seed=SEED, duration_s=40))
    try:
        outcome = campaign.run()
    finally:
        campaign.save(tmp_path)
    print(f"{outcome.table()}\nlogs: {tmp_path}")
    assert outcome.violations == []
    assert outcome.deaths == []
    sessions = outcome.facts.sessions
    for volume in campaign.plan.names:
        # At first, and at the end.
        mine = [each for each in sessions if each.volume == volume]
        assert len(mine) > 1
        assert all(each.acknowledged for each in mine)
