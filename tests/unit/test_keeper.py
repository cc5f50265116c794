"""One lost volume whose writers do not die takes no time from healthy ones."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from backends.system import clock
from plugin.errors import FencingError
from plugin.fencing.held import HeldVolume
from plugin.ownership import keeper as module
from plugin.ownership.keeper import Keeper
from tests.support.host import wait_until

LOST = 8


class Guard:
    """Never says that writers are dead; *fails* for one volume."""

    def __init__(self) -> None:
        self.told_s: list[float] = []
        self.asked: list[str] = []
        self.fails = ""
        self.tables_read = 0

    def start(self) -> None:
        pass

    def close(self) -> None:
        pass

    def forget(self, volume_id: str) -> None:
        pass

    def kill(self, volume_id: str) -> str:
        self.asked.append(volume_id)
        if volume_id == self.fails:
            raise FencingError("planned")
        return "stopping"

    def hold(self, volumes: list[HeldVolume]) -> dict[str, Any]:
        self.told_s.append(clock.monotonic_s())
        return {}


@pytest.fixture
def guard() -> Guard:
    return Guard()


@pytest.fixture
def make_keeper(
    guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Keeper]]:
    made: list[Keeper] = []
    healthy = {"healthy"}
    membership = SimpleNamespace(
        lease=1,
        deadline_s=lambda: clock.boottime_s() + 10,
        add_listener=lambda _: None,
    )
    ownership: Any = SimpleNamespace(
        node_id="own",
        membership=membership,
        heads=SimpleNamespace(
            read=lambda _: SimpleNamespace(
                head=SimpleNamespace(epoch=1), lock_lease=1, locked_by="own"
            ),
            head=lambda _: SimpleNamespace(epoch=1),
        ),
        still_owner=lambda record, _: record.id in healthy,
        is_shared=lambda _: False,
        note=lambda *_args, **_more: None,
        events=SimpleNamespace(add=lambda *_args, **_more: None),
    )
    failsafe: Any = SimpleNamespace(
        extend=lambda _: None, deadline_s=lambda _: -math.inf, hold_s=1.0
    )
    entry = SimpleNamespace(device="8:1", root="/x", source="")

    def mounted() -> dict[str, Any]:
        guard.tables_read += 1
        return {"/x": entry}

    monkeypatch.setattr(module.mounts, "mounted", mounted)
    monkeypatch.setattr(module.mounts, "mounted_at", lambda _: mounted()["/x"])

    def make(names: list[str]) -> Keeper:
        made.append(Keeper(ownership, guard, failsafe, freeze_max_s=60))  # type: ignore[arg-type]
        records = [SimpleNamespace(id=each, name=each, options={}) for each in names]
        made[-1].start({each.id: (each, Path("/x")) for each in records})
        return made[-1]

    yield make
    for each in made:
        each.stop()


def test_writers_that_do_not_die_delay_no_deadline(
    make_keeper: Callable[..., Keeper], guard: Guard
) -> None:
    lost = [f"lost{number}" for number in range(LOST)]
    make_keeper([*lost, "healthy"])
    wait_until(lambda: len(guard.told_s) >= 10, timeout_s=20, what="it is told often")
    gaps_s = [b - a for a, b in zip(guard.told_s, guard.told_s[1:], strict=False)]
    # Waiting for one alone took ten seconds.
    assert max(gaps_s) < 5
    assert set(guard.asked) == set(lost)
    assert guard.asked.count("lost0") > 1


def test_a_guard_that_fails_for_one_is_told_of_the_others(
    make_keeper: Callable[..., Keeper], guard: Guard
) -> None:
    guard.fails = "lost0"
    make_keeper(["lost0", "lost1", "healthy"])
    wait_until(lambda: "lost1" in guard.asked, timeout_s=20, what="the next is ended")


def test_the_table_of_mounts_is_read_once_each_time_it_is_told(
    make_keeper: Callable[..., Keeper], guard: Guard
) -> None:
    keeper = make_keeper([f"healthy{number}" for number in range(50)])
    wait_until(lambda: len(guard.told_s) >= 4, timeout_s=20, what="it runs")
    keeper.stop()
    assert guard.tables_read == len(guard.told_s)


def test_no_thread_is_left(make_keeper: Callable[..., Keeper], guard: Guard) -> None:
    keeper = make_keeper(["healthy"])
    wait_until(lambda: len(guard.told_s) >= 2, timeout_s=20, what="it runs")
    keeper.stop()
    assert "keeper" not in [each.name for each in threading.enumerate()]
