"""
Fixtures of the tests that speak Docker's protocol with the real daemon.

`node` is shared by the tests of a module, which use volume names of their own; after
each test its daemon must still run and must not have logged an error. `make_node`
gives a test nodes of its own, to be broken. A failure shows the daemon's log.
"""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING, Any

import pytest

from tests.protocol import node as node_module
from tests.protocol.node import Node, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_DESCRIPTORS = 8192
_alive: list[Node] = []


@pytest.fixture(scope="session", autouse=True)
def _requirements() -> None:
    """Skip where no daemon can mount; let this process hold many connections."""
    if missing := node_module.missing():
        pytest.skip(f"needs {missing}")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < _DESCRIPTORS:
        pytest.skip(f"needs {_DESCRIPTORS} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, _DESCRIPTORS), hard))


@pytest.fixture(scope="module")
def shared_node(_requirements: None) -> Iterator[Node]:
    """Return the module's node, its daemon running; tests take it as `node`."""
    with running() as node:
        _alive.append(node)
        yield node
        _alive.remove(node)


@pytest.fixture
def node(shared_node: Node) -> Iterator[Node]:
    """Return the shared node and hold the test to leaving it sound."""
    seen = len(shared_node.log_lines())
    yield shared_node
    assert shared_node.process.poll() is None, "the daemon has ended"
    told = [each for each in shared_node.log_lines()[seen:] if each["level"] == "error"]
    assert told == []


@pytest.fixture
def make_node(_requirements: None) -> Iterator[Callable[..., Node]]:
    """Return a function that makes a node, not started, which lives for the test."""
    made: list[Node] = []

    def make(**arguments: Any) -> Node:
        made.append(Node(**arguments))
        _alive.append(made[-1])
        return made[-1]

    yield make
    for each in made:
        _alive.remove(each)
        each.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Iterator[None]:
    report = yield
    if report.failed:
        report.sections.extend(
            (f"log of {each.directory}", each.log_tail()) for each in _alive
        )
    return report
