"""
For all tests: on the gate nothing may be skipped, and a run says where its time went.

A missing privilege or program is a named skip ("needs ...") on a developer's machine;
the gate installs and has everything, so there a skip hides a test that was not run.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pytest
from hypothesis import settings

from tests.lab import kernels

# Hypothesis would fail a test that takes long on busy processors.
settings.register_profile("remora", deadline=None)
settings.load_profile("remora")


def pytest_report_header() -> str:
    """Say which kernel the lab runs, and why not a newer one."""
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
