"""`remora wait` against a real daemon: what it waits for, and what it says."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.protocol.command import Cli, Done, caller
from tests.protocol.node import Node, running

pytestmark = [
    pytest.mark.xdist_group("unit-cli"),
    # Elsewhere a call of main() is a process, whose end closes its sockets.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture
def node() -> Iterator[Node]:
    with running() as found:
        yield found


@pytest.fixture
def cli(
    node: Node, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Cli]:
    """Return a function that calls the command as a shell does."""
    yield caller(node, monkeypatch, capsys)
    gc.collect()  # here, where unclosed sockets are expected


def test_it_returns_at_once_if_all_is_there(cli: Cli) -> None:
    assert cli("wait", "--timeout", "5s") == Done(0, "", "")


def test_it_names_what_is_not_there(cli: Cli, node: Node) -> None:
    pool = node.path(node.pool)
    away = pool.rename(pool.with_name("away"))
    done = cli("wait", "--timeout", "1s")
    assert done.code == 16
    assert f"after 1 s: {node.pool}: " in done.error
    away.rename(pool)
    assert cli("wait", "--timeout", "20s").code == 0


def test_it_waits_for_the_daemon(cli: Cli, node: Node) -> None:
    node.stop()
    assert "daemon" in cli("wait", "--timeout", "1s").error
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(cli, "wait", "--timeout", "60s")
        node.start()
        assert waiting.result().code == 0


def test_a_time_that_is_none_is_named(cli: Cli) -> None:
    done = cli("wait", "--timeout", "soon")
    assert done.code == 2
    assert "must be a duration such as 10s" in done.err
