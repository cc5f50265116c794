"""Background work: what hangs or fails holds up nothing else, and is told once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest

from backends.errors import BackendError, VolumeBusyError
from plugin.volumes.chores import Chores
from tests.support.host import wait_until

PATIENT_S = 20.0
SOON_S = 0.01


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Yield what lets all go on that hangs."""
    event = threading.Event()
    yield event
    event.set()


def fails() -> None:
    raise BackendError("no disk")


def test_the_result_comes_in_time() -> None:
    assert Chores(threads_max=1).run("a", lambda: 7, patience_s=PATIENT_S) == 7


def test_what_hangs_is_passed_over_until_it_has_ended(
    release: threading.Event,
) -> None:
    chores = Chores(threads_max=8)
    began: list[int] = []

    def hangs() -> int:
        began.append(1)
        release.wait()
        return 1

    assert chores.run("hung", hangs, patience_s=SOON_S) is None
    # Waiting for it once more would take for ever.
    assert chores.run("hung", hangs, patience_s=PATIENT_S * 1000) is None
    assert chores.run("other", lambda: 7, patience_s=PATIENT_S) == 7
    assert len(began) == 1
    release.set()
    wait_until(
        lambda: chores.run("hung", lambda: 8, patience_s=PATIENT_S) == 8,
        timeout_s=PATIENT_S,
        what="it has ended",
    )


def test_threads_are_bounded(release: threading.Event) -> None:
    chores = Chores(threads_max=3)
    for number in range(3):
        chores.run(f"hung{number}", release.wait, patience_s=SOON_S)
    before = threading.active_count()
    assert chores.run("other", lambda: 7, patience_s=PATIENT_S * 1000) is None
    assert threading.active_count() == before


def test_a_reason_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    chores = Chores(threads_max=1)
    for _ in range(3):
        assert chores.run("a", fails, patience_s=PATIENT_S) is None
    assert caplog.text.count("no disk") == 1
    chores.run("a", lambda: 0, patience_s=PATIENT_S)
    chores.run("a", fails, patience_s=PATIENT_S)
    assert caplog.text.count("no disk") == 2


def test_a_busy_volume_is_no_news_and_a_bug_has_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def busy() -> None:
        raise VolumeBusyError("at work")

    chores = Chores(threads_max=1)
    assert chores.run("a", busy, patience_s=PATIENT_S) is None
    assert not caplog.records
    assert chores.run("a", lambda: int("no number"), patience_s=PATIENT_S) is None
    assert "Traceback" in caplog.text
