"""
Fixtures of the tests with a real dockerd.

`machine` is shared by the tests of a module and has to be left empty by each of them;
`make_machine` gives a test machines of its own, to be broken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support import engine as engine_support
from tests.support.daemon import Daemon, Machine
from tests.support.engine import Engine
from tests.support.host import Host

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Lines of engines and kubelets that every start writes and that explain nothing.
NOISE = (
    "[core]",
    "loading plugin",
    "skip loading plugin",
    "blkio weight",
    "serving...",
    "clientconn.go",
    "passthrough.go",
    "client.go",
    "perf_event",
)
LINES_MAX = 60
LINE_LENGTH_MAX = 400


@pytest.fixture(scope="session", autouse=True)
def _requirements() -> None:
    if missing := engine_support.missing():
        pytest.skip(f"needs {missing}")


@pytest.fixture(scope="module")
def shared_machine(_requirements: None) -> Iterator[Machine]:
    """Return the module's machine; tests take it as `machine`."""
    machine = Machine(disuse_grace_s="2")
    yield machine
    machine.close()


@pytest.fixture
def machine(
    shared_machine: Machine, request: pytest.FixtureRequest
) -> Iterator[Machine]:
    """Return a machine without volumes; afterwards nothing may be left mounted."""
    yield shared_machine
    failed = getattr(request.node, "failed_call", False)
    if not shared_machine.daemon.running:
        shared_machine.daemon.start()
    try:
        shared_machine.engine.remove_everything()
        shared_machine.assert_nothing_mounted(within_s=5)
        left = shared_machine.daemon.control("GET", "/v1/volumes")[1]
        for volume in left:
            shared_machine.daemon.control("DELETE", f"/v1/volumes/{volume['name']}")
    except Exception:
        if not failed:
            raise


@pytest.fixture
def host(machine: Machine) -> Host:
    """Return the host of the shared machine."""
    return machine.host


@pytest.fixture
def engine(machine: Machine) -> Engine:
    """Return the engine of the shared machine."""
    return machine.engine


@pytest.fixture
def daemon(machine: Machine) -> Daemon:
    """Return the daemon of the shared machine."""
    return machine.daemon


@pytest.fixture
def make_machine(_requirements: None) -> Iterator[Callable[..., Machine]]:
    """Return a function that makes a machine which lives as long as the test."""
    made: list[Machine] = []

    def make(**arguments: object) -> Machine:
        machine = Machine(**arguments)
        made.append(machine)
        return machine

    yield make
    for machine in made:
        machine.close()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    for host in Host.alive:
        host.mark_logs()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Iterator[None]:
    report = yield
    if report.failed:
        item.failed_call = True
        for host in Host.alive:
            for title, text in host.new_log_text().items():
                lines = [
                    line[:LINE_LENGTH_MAX]
                    for line in text.splitlines()
                    if not any(noise in line for noise in NOISE)
                ]
                report.sections.append(
                    (f"log of {title}", "\n".join(lines[-LINES_MAX:]))
                )
    return report
