"""What docs/security.md says: its tests are there, and the unit's score is argued."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest

from tests.support.host import REPOSITORY

GUIDE = (REPOSITORY / "docs/security.md").read_text()
UNIT = REPOSITORY / "systemd/remora.service"
SCORE_MAX = 5.7


def analysed(*options: str) -> str:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", *options, UNIT],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


def is_there(named: str) -> bool:
    """Return whether there is a file, or a test as `file::test`."""
    file, _, test = named.partition("::")
    path = REPOSITORY / file
    return path.exists() and (not test or f"\ndef {test}(" in path.read_text())


def test_its_tests_are_there() -> None:
    named = set(re.findall(r"`(tests/[^`]+)`", GUIDE))
    assert len(named) > 10
    assert [each for each in named if not is_there(each)] == []


def test_the_score_is_no_worse_than_it_says() -> None:
    [score] = re.findall(r"exposure level for \S+: ([0-9.]+) ", analysed())
    assert float(score) <= SCORE_MAX
    assert f"says {SCORE_MAX} " in GUIDE


def test_each_point_that_stays_is_argued() -> None:
    points = json.loads(analysed("--json=short"))
    stay = {each["name"] for each in points if each["exposure"]}
    _, _, section = GUIDE.partition("## The unit's score")
    rows = re.findall(r"^\| (`.*?) \|", section.replace("\\|", "\0"), re.MULTILINE)
    argued = {
        each.replace("\0", "|") for row in rows for each in re.findall("`([^`]+)`", row)
    }
    assert stay - argued == set()
    assert argued - stay == set()


@pytest.mark.parametrize("unit", ["remora.service", "remora.socket"])
def test_sockets_and_files_are_roots(unit: str) -> None:
    text = (REPOSITORY / "systemd" / unit).read_text()
    wanted = {
        "remora.service": ("UMask=0077", "StateDirectoryMode=0700"),
        "remora.socket": ("SocketMode=0600",),
    }
    for line in wanted[unit]:
        assert f"\n{line}\n" in text


def test_it_is_found() -> None:
    for page in ("README.md", "docs/guides/install.md", "docs/guides/cluster.md"):
        assert "security.md" in (REPOSITORY / page).read_text(), page
