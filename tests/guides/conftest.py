"""
Three machines on which the guides are done, one after the other.

The modules go from one machine to a cluster, in the order of their names; what a test
needs and no test before it has done, its fixtures do.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.guides import steps
from tests.support import guide_site
from tests.support.guide_site import GuideMachine, Site

LINES_MAX = 15
LINE_LENGTH_MAX = 300


def pytest_itemcollected(item: pytest.Item) -> None:
    """Keep all tests here on one worker: they share the machines."""
    item.add_marker(pytest.mark.xdist_group("guides"))


@pytest.fixture(scope="package")
def site() -> Iterator[Site]:
    """Yield the machines, booted, with Remora on none of them."""
    if lacks := guide_site.missing():
        pytest.skip(f"needs {lacks}")
    with Site() as made:
        for name in ("alpha", "gamma"):
            made.add_checkout(name)
        made.boot()
        yield made


@pytest.fixture
def alpha(site: Site) -> GuideMachine:
    """Return the machine alpha, with Remora as `make install` installs it."""
    steps.install(site)
    return site["alpha"]


@pytest.fixture
def cluster(site: Site, alpha: GuideMachine) -> Site:
    """Return the machines as a cluster."""
    del alpha
    steps.make_cluster(site)
    return site


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Iterator[None]:
    report = yield
    if report.failed and (site := getattr(item, "funcargs", {}).get("site")):
        for machine in site.machines.values():
            journal = machine.run(
                ["journalctl", "-u", "remora", "--no-pager", "-n", "40"], check=False
            )
            lines = [
                line[:LINE_LENGTH_MAX]
                for line in journal.stdout.splitlines()
                if '"event": "call"' not in line or '"outcome": "ok"' not in line
            ]
            report.sections.append(
                (f"journal of {machine.name}", "\n".join(lines[-LINES_MAX:]))
            )
    return report
