"""One lost volume whose writers do not die takes no time from healthy ones."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from backends.system import clock
from plugin.errors import NotOwnerError, StoreError
from plugin.fencing.held import HeldVolume
from plugin.ownership import keeper as module
from plugin.ownership.keeper import Keeper, LeftMounted
from tests.support.host import wait_until

LOST = 8


class Guard:
    """Never says that writers are dead."""

    def __init__(self) -> None:
        self.told_s: list[float] = []
        self.told: list[list[str]] = []
        self.until_s: dict[str, float] = {}
        self.as_before: set[str] = set()
        self.asked: list[str] = []
        self.tables_read = 0

    def start(self) -> None:
        pass

    def close(self) -> None:
        pass

    def forget(self, volume_id: str) -> None:
        pass

    def kill(self, volume_ids: Collection[str]) -> dict[str, str]:
        self.asked += volume_ids
        return dict.fromkeys(volume_ids, "stopping")

    def hold(self, volumes: list[HeldVolume]) -> dict[str, Any]:
        self.told_s.append(clock.monotonic_s())
        self.told.append([each.id for each in volumes])
        self.until_s = {each.id: each.deadline_s for each in volumes}
        self.as_before = {each.id for each in volumes if each.as_before}
        return {}


@pytest.fixture
def guard() -> Guard:
    return Guard()


@pytest.fixture
def spoilt() -> set[str]:
    """Return the volumes whose heads cannot be read."""
    return set()


@pytest.fixture
def unlocked() -> set[str]:
    """Return the volumes whose locks went with an earlier lease."""
    return set()


@pytest.fixture
def make_keeper(
    guard: Guard,
    spoilt: set[str],
    unlocked: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[..., Keeper]]:
    made: list[Keeper] = []
    membership = SimpleNamespace(
        lease=1,
        deadline_s=lambda: clock.boottime_s() + 10,
        add_listener=lambda _: None,
    )

    def read(volume_id: str) -> Any:
        if volume_id in spoilt:
            raise StoreError("planned")
        return SimpleNamespace(head=SimpleNamespace(epoch=1))

    def still_owner(record: Any, epoch: int) -> bool:
        read(record.id)
        return (record.id, epoch) == ("healthy", 1)

    ownership: Any = SimpleNamespace(
        node_id="own",
        membership=membership,
        heads=SimpleNamespace(read=read),
        still_owner=still_owner,
        holds_lock=lambda record, _: record.id not in unlocked,
        knows_copy=lambda _: True,
        is_shared=lambda _: False,
        note=lambda *_args, **_more: None,
        events=SimpleNamespace(add=lambda *_args, **_more: None),
    )
    failsafe: Any = SimpleNamespace(
        extend=lambda _: None, deadline_s=lambda _: -math.inf
    )
    entry = SimpleNamespace(device="8:1", root="/x", source="")

    def mounted() -> dict[str, Any]:
        guard.tables_read += 1
        return {"/x": entry}

    monkeypatch.setattr(module.mounts, "mounted", mounted)
    monkeypatch.setattr(module.mounts, "mounted_at", lambda _: mounted()["/x"])

    def make(names: list[str] | LeftMounted, **times_s: float) -> Keeper:
        failsafe.pause_s = lambda: times_s.get("pause_s", math.inf)
        failsafe.hold_s = times_s.get("hold_s", 1.0)
        made.append(Keeper(ownership, guard, failsafe, freeze_max_s=60))  # type: ignore[arg-type]
        if isinstance(names, list):
            left = {each: (record(each), Path("/x")) for each in names}
            made[-1].start(lambda: left)
        else:
            made[-1].start(names)
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


def record(name: str) -> Any:
    return SimpleNamespace(id=name, name=name, options={})


def test_locks_are_taken_again_before_writers_are_killed_by_one_request(
    make_keeper: Callable[..., Keeper],
    guard: Guard,
    unlocked: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each request looks at all processes: many took longer than a lease has left."""
    order: list[object] = []
    monkeypatch.setattr(
        module, "resume_all", lambda _, volumes: order.append(volumes[0][0].id)
    )
    kill = guard.kill

    def noted_kill(volume_ids: Collection[str]) -> dict[str, str]:
        order.append({*volume_ids})
        return kill(volume_ids)

    guard.kill = noted_kill  # type: ignore[method-assign]
    unlocked.add("healthy")
    lost = [f"lost{number}" for number in range(LOST)]
    make_keeper([*lost, "healthy"])
    wait_until(lambda: len(order) >= 4, timeout_s=20, what="two rounds")
    assert order[:4] == ["healthy", {*lost}] * 2


def test_no_mount_begins_while_a_lost_epochs_mount_is_left(
    make_keeper: Callable[..., Keeper], guard: Guard
) -> None:
    """Its writers would be in the new epoch's files, or killed along with its own."""
    keeper = make_keeper(["lost0"])
    with pytest.raises(NotOwnerError, match="are being ended"):
        keeper.valid_epoch(record("lost0"))
    keeper.drop(record("lost0"))
    assert keeper.valid_epoch(record("lost0")) == 0
    assert guard.until_s.get("lost0", 0.0) == 0.0


def test_writers_of_a_later_mount_are_not_killed(
    make_keeper: Callable[..., Keeper], guard: Guard
) -> None:
    """They came while the guard was asked to kill those before them."""
    killing, go_on = threading.Event(), threading.Event()
    kill = guard.kill

    def slow_kill(volume_ids: Collection[str]) -> dict[str, str]:
        killing.set()
        go_on.wait(20)
        return kill(volume_ids)

    guard.kill = slow_kill  # type: ignore[method-assign]
    keeper = make_keeper(["lost0", "lost1"])
    assert killing.wait(20)
    keeper.drop(record("lost1"))
    keeper._ownership.still_owner = lambda each, epoch: (  # type: ignore[method-assign]
        each.id == "lost1" and epoch == 2
    )
    keeper._ownership.require_owned = lambda *_: None  # type: ignore[method-assign]
    keeper._ownership.require_valid = lambda: None  # type: ignore[method-assign]
    mount = threading.Thread(
        target=keeper.hold, args=(record("lost1"), 2, Path("/x")), daemon=True
    )
    mount.start()
    wait_until(
        lambda: ("lost1", 2) in [(each.id, epoch) for each, epoch in keeper.held()],
        timeout_s=20,
        what="it is mounted again",
    )
    go_on.set()
    wait_until(lambda: "lost0" in guard.asked, timeout_s=20, what="it is asked")
    told = guard.asked.count("lost0")
    wait_until(
        lambda: guard.asked.count("lost0") > told + 1, timeout_s=20, what="rounds go on"
    )
    assert guard.asked.count("lost1") == 1


def test_a_lost_volume_is_to_be_unmounted_when_its_writers_are_dead(
    make_keeper: Callable[..., Keeper], guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOST_GRACE_S", 0.0)
    keeper = make_keeper(["lost0", "healthy"])
    wait_until(lambda: guard.asked, timeout_s=20, what="its writers are killed")
    assert keeper.lost() == []
    guard.kill = lambda volume_ids: dict.fromkeys(volume_ids, "killed")  # type: ignore[method-assign]
    wait_until(keeper.lost, timeout_s=20, what="they are dead")
    assert [each.id for each in keeper.lost()] == ["lost0"]
    keeper.drop(record("lost0"))
    assert keeper.lost() == []


def test_the_guard_is_not_told_less_than_it_knows(
    make_keeper: Callable[..., Keeper], guard: Guard
) -> None:
    """Etcd is away and nothing was ever read from it, but volumes are mounted."""
    known = threading.Event()

    def left_mounted() -> dict[str, tuple[Any, Path]]:
        if not known.is_set():
            raise StoreError("nothing was ever read")
        return {"healthy": (record("healthy"), Path("/x"))}

    keeper = make_keeper(left_mounted)
    with pytest.raises(StoreError):
        keeper.hold(record("other"), 1, Path("/x"))
    keeper.drop(record("other"))
    assert guard.told == []
    known.set()
    wait_until(lambda: guard.told, timeout_s=20, what="the guard is told")
    assert guard.told[0] == ["healthy"]


def test_of_a_head_that_cannot_be_read_the_lock_tells_that_the_lease_counts(
    make_keeper: Callable[..., Keeper], guard: Guard, spoilt: set[str]
) -> None:
    spoilt.add("healthy")
    make_keeper(["healthy"], hold_s=0.1)
    wait_until(lambda: guard.told, timeout_s=20, what="the guard is told")
    until_s = guard.until_s["healthy"]
    assert until_s > clock.boottime_s()
    wait_until(
        lambda: guard.until_s["healthy"] > until_s,
        timeout_s=20,
        what="it is told as the lease goes on",
    )
    assert guard.asked == []
    assert guard.as_before == set()


def test_of_what_cannot_be_known_the_guard_goes_on_with_what_it_was_told(
    make_keeper: Callable[..., Keeper],
    guard: Guard,
    spoilt: set[str],
    unlocked: set[str],
) -> None:
    spoilt.add("healthy")
    unlocked.add("healthy")
    keeper = make_keeper(["healthy"], hold_s=0.1)
    wait_until(lambda: guard.told, timeout_s=20, what="the guard is told")
    assert guard.as_before == {"healthy"}
    with pytest.raises(StoreError):
        keeper.valid_epoch(record("healthy"))
    spoilt.clear()
    unlocked.clear()
    wait_until(lambda: guard.until_s["healthy"], timeout_s=20, what="it may write")
    assert guard.as_before == set()
    assert [(each.id, epoch) for each, epoch in keeper.held()] == [("healthy", 1)]
    assert keeper.valid_epoch(record("healthy")) == 1
    assert guard.asked == []


def test_members_are_asked_as_soon_as_it_is_time(
    make_keeper: Callable[..., Keeper], guard: Guard
) -> None:
    """A short lease has less than the usual pause from then until its deadline."""
    make_keeper(["healthy"], hold_s=1000.0, pause_s=0.05)
    told = 10  # two in each round; the next would come when the lease is over
    wait_until(lambda: len(guard.told_s) >= told, timeout_s=8, what="it looks again")


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
