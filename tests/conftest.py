"""
For all tests: on the gate nothing may be skipped, and a run says where its time went.

A missing privilege or program is a named skip ("needs ...") on a developer's machine;
the gate installs and has everything, so there a skip hides a test that was not run.
"""

from __future__ import annotations

import gc
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.lab import kernels
from tests.support import guides, order
from tests.support.namespaces import enter_private_mounts

# Hypothesis would fail a test that takes long on busy processors.
settings.register_profile("remora", deadline=None)
settings.load_profile("remora")


@pytest.hookimpl(tryfirst=True)  # pytest-xdist writes groups into the tests' names
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Sort tests for workers; without them they stay as they are written."""
    if config.getoption("numprocesses", None) or hasattr(config, "workerinput"):
        for item in items:
            order.keep_together(item)
        items.sort(key=order.place)


def pytest_collection_finish() -> None:
    """Look for no garbage among what is there for the whole run."""
    gc.freeze()


def pytest_report_header() -> str:
    """Say which kernel the lab runs, and why not a newer one."""
    if suite := os.environ.get(kernels.VARIABLE):
        try:
            return f"lab kernel: {kernels.chosen().version} ({suite}, as was asked for)"
        except RuntimeError as error:
            return str(error)
    return str(kernels.last_choice() or "lab kernel: none was chosen")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print how many seconds the tests of each directory took, set-up included."""
    seconds: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                directory = "/".join(report.nodeid.split("/")[:2])
                seconds[directory] += report.duration
    if len(seconds) > 1:
        terminalreporter.write_sep("=", "seconds by directory")
        for directory, taken_s in seconds.most_common():
            terminalreporter.write_line(f"{taken_s:8.0f}  {directory}")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail a session that skipped a test, where REMORA_FAIL_ON_SKIP says so."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if "REMORA_FAIL_ON_SKIP" not in os.environ or reporter is None or exitstatus:
        return
    if skipped := reporter.stats.get("skipped"):
        reporter.write_line(f"{len(skipped)} tests were skipped: none may be here")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session", autouse=True)
def _private_mounts() -> None:
    """Have what tests leave mounted go with this process; pytest could not clean up."""
    with suppress(pytest.skip.Exception):  # tests that mount say what they need
        enter_private_mounts()


@pytest.fixture
def printed(request: pytest.FixtureRequest) -> Iterator[guides.Printed]:
    """Yield the commands of the guides that the test says it runs; it must."""
    # The mark that stands first is the last one that was put on.
    marks = reversed(list(request.node.iter_markers("printed")))
    found = guides.Printed(
        [guides.Claim("", *each.args[:2], each.args[2:]) for each in marks]
    )
    assert found.left, "the guide has no such commands"
    failures = request.session.testsfailed
    yield found
    if request.session.testsfailed == failures:
        left = [each.text for each in found.left]
        assert left == [], "it was not run as it is printed"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """
    Yield a directory in memory.

    A killed process leaves the same on every filesystem; on a real disk, nine tenths of
    the time would go into flushes, which matter to a power loss alone.
    """
    enter_private_mounts()
    mount_point = tmp_path / "disk"
    mount_point.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "mode=0755", "crash-points", mount_point],
        check=True,
        timeout=10,
    )
    yield mount_point
    # Volumes that a failed test has left mounted below go along.
    subprocess.run(["umount", "-l", mount_point], check=True, timeout=10)
