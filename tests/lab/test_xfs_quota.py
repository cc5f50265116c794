"""
The backends' contract, commits within a limit, a pool: on XFS that really has quotas.

Not every kernel is built with them, and on one without them the contract's tests skip
what they say about a size limit. The lab's kernel has them.
"""

from __future__ import annotations

import sys

from tests.lab.lab import Lab, Topology
from tests.support.host import REPOSITORY

TOPOLOGY = Topology.of("alpha")
DEADLINE_S = 400.0


def test_the_contract_holds_on_xfs_with_quota(lab: Lab) -> None:
    done = lab["alpha"].run(
        [
            *(sys.executable, "-m", "pytest", "-c", str(REPOSITORY / "pyproject.toml")),
            *("--rootdir", str(REPOSITORY), "--basetemp", "/data/pytest"),
            *("-p", "no:cacheprovider", "-k", "xfs"),
            str(REPOSITORY / "tests/contract/test_backends.py"),
            str(REPOSITORY / "tests/journal/test_size_limits.py"),
            str(REPOSITORY / "tests/pool/test_made.py"),
        ],
        env={"REMORA_REQUIRE_XFS_QUOTA": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        timeout_s=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = done.stdout.splitlines()[-1]
    assert " passed" in summary
    assert "skipped" not in summary
