"""
Run a campaign: `python -m tests.lab.campaign --attempts 1000`; see `campaigns.py`.

Its seed can be given again, and what was written can be kept to be looked at.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

from .campaigns import Campaign, Plan
from .claims import Claimants, Claims
from .cluster import TOPOLOGY, Cluster
from .lab import Lab
from .mounts import Mounts


def main() -> int:
    """Return 0 if the history of a campaign holds."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab.campaign")
    parser.add_argument("--attempts", type=int, default=300)
    parser.add_argument("--duration", type=float, default=600, help="seconds, at most")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--save", type=Path, help="a directory for logs and history")
    parser.add_argument("--mounts", action="store_true", help="through the daemons")
    arguments = parser.parse_args()
    plan = Plan(
        seed=arguments.seed,
        attempts=arguments.attempts,
        duration_s=arguments.duration,
    )
    with Lab(TOPOLOGY) as lab:
        lab.boot()
        campaign: Campaign
        if arguments.mounts:
            cluster = Cluster(lab)
            cluster.start()
            campaign = Mounts(cluster, plan)
        else:
            campaign = Claims(Claimants(lab, plan), plan)
        result = campaign.run()
        if arguments.save:
            campaign.save(arguments.save)
    print(result.table())
    for each in result.violations:
        print(f"{each.rule}: {each.evidence}")
    return 1 if result.violations or result.deaths else 0


if __name__ == "__main__":
    sys.exit(main())
