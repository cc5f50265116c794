"""Who waits for what does not answer yet: for how long, how many, and who does not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from backends.errors import BackendError, RemoraError, StorageAwayError
from backends.system.clock import Deadline, boottime_s
from plugin.errors import NotKnownYetError
from plugin.limits import ATTEMPTS_FOR_ONE_MAX, ATTEMPTS_MAX
from plugin.volumes.operations import Operations, never
from plugin.volumes.patience import Patience

SOON_S = 5.0


class Storage:
    """Storage that does not answer before it is told to."""

    def __init__(self, error: RemoraError | None = None) -> None:
        self.error = error
        self.attempts = 0
        self.at_once = 0
        self.at_once_max = 0
        self.attempt_s = 0.0
        self._guard = threading.Lock()

    def attempt(self, _: Deadline) -> str:
        error = self.error
        with self._guard:
            self.attempts += 1
            self.at_once += 1
            self.at_once_max = max(self.at_once, self.at_once_max)
        time.sleep(self.attempt_s)
        with self._guard:
            self.at_once -= 1
        if error:
            raise error
        return "done"


def patient(**bounds: object) -> Patience:
    return Patience(until_s=boottime_s() + 60, attempt_min_s=0.1, **bounds)


def run(patience: Patience, storage: Storage, within_s: float = 30.0) -> str:
    deadline = Deadline(within_s)
    return patience.run("it", storage.attempt, deadline, caller_gone=never)


def begin(patience: Patience, storage: Storage, attempts: int = 0) -> Future[str]:
    pool = ThreadPoolExecutor(1)
    waiting = pool.submit(run, patience, storage)
    pool.shutdown(wait=False)
    wait_until(lambda: storage.attempts > attempts)
    return waiting


def wait_until(happened: Callable[[], bool]) -> None:
    until = time.monotonic() + SOON_S
    while not happened() and time.monotonic() < until:
        time.sleep(0.01)


def test_what_answers_later_is_waited_for() -> None:
    storage = Storage(StorageAwayError("not mounted"))
    waiting = begin(patient(), storage)
    storage.error = None
    assert waiting.result(SOON_S) == "done"
    assert storage.attempts == 2


@pytest.mark.parametrize("error", [BackendError("it says no"), RemoraError("a fault")])
def test_an_answer_is_not_waited_for(error: RemoraError) -> None:
    storage = Storage(error)
    with pytest.raises(type(error)):
        run(patient(), storage)
    assert storage.attempts == 1


def test_a_no_ends_the_wait() -> None:
    storage = Storage(StorageAwayError("not mounted"))
    waiting = begin(patient(), storage)
    storage.error = BackendError("it says no")
    with pytest.raises(BackendError, match="it says no"):
        waiting.result(SOON_S)


def test_only_errors_of_the_kind_are_waited_for() -> None:
    storage = Storage(StorageAwayError("not mounted"))
    with pytest.raises(StorageAwayError):
        run(patient(error=NotKnownYetError), storage)
    assert storage.attempts == 1


@pytest.mark.parametrize("until_s", [0.0, 1.0])
def test_long_after_the_start_nobody_waits(until_s: float) -> None:
    storage = Storage(StorageAwayError("not mounted"))
    with pytest.raises(StorageAwayError):
        run(Patience(until_s=until_s, attempt_min_s=0.1), storage)
    assert storage.attempts == 1


def test_the_wait_ends_with_the_time_after_the_start() -> None:
    patience = Patience(until_s=boottime_s() + 1, attempt_min_s=0.1)
    storage = Storage(StorageAwayError("not mounted"))
    with pytest.raises(StorageAwayError):
        begin(patience, storage).result(SOON_S)
    assert storage.attempts > 1


def test_the_last_error_is_told_before_the_caller_hears_of_a_deadline() -> None:
    storage = Storage(StorageAwayError("not mounted"))
    patience = Patience(until_s=boottime_s() + 60, attempt_min_s=2.0)
    began_s = time.monotonic()
    with pytest.raises(StorageAwayError):
        run(patience, storage, within_s=3.0)
    assert 0.9 < time.monotonic() - began_s < 2.5


def test_the_daemons_stop_ends_every_wait() -> None:
    patience = patient()
    storage = Storage(StorageAwayError("not mounted"))
    waiting = begin(patience, storage)
    patience.stop()
    with pytest.raises(StorageAwayError):
        waiting.result(1)


def test_nobody_waits_for_a_caller_that_has_gone() -> None:
    storage, gone = Storage(StorageAwayError("not mounted")), threading.Event()
    gone.set()
    with pytest.raises(StorageAwayError):
        patient().run("it", storage.attempt, Deadline(30), caller_gone=gone.is_set)
    assert storage.attempts == 1


def test_no_more_wait_than_there_are_places() -> None:
    patience = patient(waiting_max=1)
    first, second = (Storage(StorageAwayError("not mounted")) for _ in range(2))
    # A second attempt is made by one that waits.
    waiting = begin(patience, first, attempts=1)
    with pytest.raises(StorageAwayError):
        run(patience, second)
    assert second.attempts == 1
    patience.stop()
    assert waiting.exception(1)


@pytest.mark.parametrize(
    ("causes", "at_once_max"), [(1, ATTEMPTS_FOR_ONE_MAX), (99, ATTEMPTS_MAX)]
)
def test_few_of_those_who_wait_try_at_once(causes: int, at_once_max: int) -> None:
    patience = patient()
    storage = Storage()
    waiting = []
    for number in range(2 * ATTEMPTS_MAX):
        storage.error = StorageAwayError(f"pool {number % causes} is not mounted")
        waiting.append(begin(patience, storage, attempts=number))
    storage.attempt_s, storage.at_once_max = 0.3, 0
    time.sleep(1.2)
    patience.stop()
    assert all(each.exception(SOON_S) for each in waiting)
    assert 1 < storage.at_once_max <= at_once_max


def test_who_waits_for_one_server_does_not_delay_who_waits_for_another() -> None:
    patience = patient(waiting_max=200)
    dead = Storage(StorageAwayError("one does not answer"))
    waiting = [begin(patience, dead) for _ in range(50)]
    dead.attempt_s, begun = 1.5, dead.attempts
    wait_until(lambda: dead.attempts >= begun + ATTEMPTS_FOR_ONE_MAX)
    other = Storage(StorageAwayError("another does not answer yet"))
    coming = begin(patience, other)
    other.error = None
    assert coming.result(1.5) == "done"
    patience.stop()
    assert all(each.exception(SOON_S) for each in waiting)


def test_who_waits_keeps_neither_the_volume_nor_a_place_of_its_storage() -> None:
    operations, patience = Operations(operations_max=1), patient()
    storage = Storage(StorageAwayError("not mounted"))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(
            operations.run, "v", storage.attempt, deadline_s=30.0, patience=patience
        )
        time.sleep(0.2)
        for name in ("v", "other"):
            assert operations.run(name, lambda _: "at once", deadline_s=0.3)
        patience.stop()
        assert waiting.exception(SOON_S)
