"""Operations: one a volume, bounded, with deadlines that undo."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from backends.errors import BackendError, DeadlineError, VolumeBusyError
from backends.system.clock import Deadline
from plugin.volumes.operations import Operations


def wait_for(condition: object, *, within_s: float = 10) -> None:
    deadline = Deadline(within_s)
    while not condition():  # type: ignore[operator]
        assert not deadline.passed(), "it did not come about"
        time.sleep(0.01)


def test_the_result_and_the_error_reach_the_caller() -> None:
    operations = Operations()
    assert operations.run("v", lambda _: 7, deadline_s=5) == 7

    def fail(_: Deadline) -> None:
        raise BackendError("no")

    with pytest.raises(BackendError, match="no"):
        operations.run("v", fail, deadline_s=5)
    assert operations.locks.names() == []


def test_work_past_its_deadline_is_undone_and_others_do_not_wait() -> None:
    operations = Operations()
    release = threading.Event()
    undone: list[str] = []

    def slow(_: Deadline) -> str:
        release.wait(20)
        return "mounted"

    with pytest.raises(DeadlineError, match="being undone"):
        operations.run("slow", slow, deadline_s=0.2, undo=undone.append)
    assert operations.run("other", lambda _: "ok", deadline_s=5) == "ok"
    assert undone == []
    with pytest.raises(VolumeBusyError, match="still under way"):
        operations.run("slow", lambda _: "again", deadline_s=2)
    release.set()
    wait_for(lambda: undone == ["mounted"])
    wait_for(lambda: operations.locks.names() == [])
    assert operations.run("slow", lambda _: "again", deadline_s=5) == "again"


def test_a_caller_that_hangs_up_has_its_work_undone() -> None:
    operations = Operations()
    release = threading.Event()
    undone: list[str] = []

    def slow(_: Deadline) -> str:
        release.wait(20)
        return "mounted"

    with pytest.raises(DeadlineError):
        operations.run(
            "v", slow, deadline_s=30, undo=undone.append, caller_gone=lambda: True
        )
    release.set()
    wait_for(lambda: undone == ["mounted"])


def test_work_that_fails_after_its_deadline_is_not_undone() -> None:
    operations = Operations()
    release = threading.Event()
    undone: list[object] = []

    def fail(_: Deadline) -> None:
        release.wait(20)
        raise BackendError("late")

    with pytest.raises(DeadlineError):
        operations.run("v", fail, deadline_s=0.1, undo=undone.append)
    release.set()
    wait_for(lambda: operations.locks.names() == [])
    assert undone == []


def test_one_volume_has_one_operation_at_a_time() -> None:
    operations = Operations()
    inside = 0
    most = 0

    def work(_: Deadline) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.005)
        inside -= 1

    threads = [
        threading.Thread(
            target=operations.run, args=("v", work), kwargs={"deadline_s": 20}
        )
        for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_what_comes_at_once_waits_for_its_turn() -> None:
    operations = Operations(operations_max=3)
    with ThreadPoolExecutor(60) as threads:
        done = threads.map(
            lambda name: operations.run(
                f"{name}", lambda _: time.sleep(0.01), deadline_s=20
            ),
            range(60),
        )
        assert len(list(done)) == 60


def test_too_many_at_once_are_refused() -> None:
    """Some for lack of a turn in time; at once, if every thread would wait for one."""
    operations = Operations(operations_max=2, calls_max=3)
    release = threading.Event()
    threads = [
        threading.Thread(
            target=operations.run,
            args=(name, lambda _: release.wait(20)),
            kwargs={"deadline_s": 20},
        )
        for name in "ab"
    ]
    for thread in threads:
        thread.start()
    wait_for(lambda: operations.locks.names() == ["a", "b"])
    late = threading.Thread(
        target=operations.run, args=("d", lambda _: None), kwargs={"deadline_s": 20}
    )
    with pytest.raises(VolumeBusyError, match="2 operations are under way already"):
        operations.run("c", lambda _: None, deadline_s=0.2)
    late.start()
    wait_for(lambda: operations._calls._value == 0)
    with pytest.raises(VolumeBusyError, match="2 operations are under way already"):
        operations.run("c", lambda _: None, deadline_s=20)
    release.set()
    for thread in (*threads, late):
        thread.join()
    operations.run("c", lambda _: None, deadline_s=5)
