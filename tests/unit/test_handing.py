"""What a holder has copied to send it is gone when that has failed, too."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from backends.rsync.journal.journal import EVERYTHING, Journal
from backends.rsync.journal.packing import OUTBOX_NAME
from plugin.errors import PeerRefusedError, PeerUnreachableError
from plugin.ownership.state import EMPTY, Commit, Epoch, Head, Lineage
from plugin.replication.at_work import WorkRequest
from plugin.replication.deliveries import Deliveries, Delivery
from plugin.replication.handing import Handing, SendRequest
from plugin.replication.progress import Progress
from plugin.replication.report import Report
from tests.support.journal_trees import VOLUME

RECORD: Any = SimpleNamespace(id=VOLUME, name="v")
HEAD = Head(owner="asker", epoch=2, phase="recovering", members=("asker", "own"))


class Line:
    """Brings nothing; it looks at what was packed."""

    progress = Progress()

    def send(self, *_: object, source: Path, **__: object) -> int:
        assert source.is_dir()
        raise PeerUnreachableError("planned")


def test_who_has_given_up_is_waited_for_no_longer() -> None:
    """A commit is on its way to it all the time; that counts as work."""
    ended, deliveries = threading.Event(), Deliveries()
    worked: list[Any] = []

    def send() -> dict[str, Any]:
        before = deliveries.workers.answer("asker", WorkRequest(VOLUME))
        sum(range(100_000))
        worked.append(deliveries.workers.answer("asker", WorkRequest(VOLUME)) != before)
        ended.wait(30)
        return {}

    report = Report(Commit(1, 1))
    about: dict[str, Any] = {"base": None, "since": (1, 1), "filled": False}
    deliveries.deliver([Delivery(RECORD, "asker", report, send=send, **about)])
    told = [*[HEAD] * 3, replace(HEAD, phase="idle")]
    heads = SimpleNamespace(
        read=lambda _: SimpleNamespace(head=told[0] if len(told) == 1 else told.pop(0)),
        refresh=lambda _: None,
    )
    of: Any = SimpleNamespace(heads=heads)
    none: Any = None
    handing = Handing(of, none, none, deliveries, find=lambda _: RECORD)
    request = SendRequest(VOLUME, "v", 2, (1, 1), (0, 0))
    with pytest.raises(PeerRefusedError, match="not recovered any more"):
        handing.send("asker", request)
    assert not ended.is_set()
    assert worked == [True]
    ended.set()


def test_a_failed_send_leaves_no_copies(tmp_path: Path) -> None:
    (tmp_path / "live").mkdir()
    (tmp_path / "live/file").write_text("x")
    with closing(Journal(tmp_path, VOLUME)) as journal:
        journal.record(journal.look(EVERYTHING), (1, 1))

        @contextmanager
        def using(*_: object) -> Iterator[Journal]:
            yield journal

        heads = SimpleNamespace(
            read=lambda _: SimpleNamespace(head=HEAD),
            lineage=lambda _: Lineage({1: Epoch(EMPTY, "own")}),
            refresh=lambda _: None,
        )
        ownership: Any = SimpleNamespace(
            heads=heads,
            own=SimpleNamespace(name="own"),
            is_sealed=lambda _, commit: commit == Commit(1, 1),
        )
        journals: Any = SimpleNamespace(using=using)
        line: Any = Line()
        handing = Handing(
            ownership, journals, line, Deliveries(), find=lambda _: RECORD
        )
        request = SendRequest(VOLUME, "v", 2, (1, 1), (0, 0), paths=("ZmlsZQ==",))
        with pytest.raises(PeerUnreachableError):
            handing.send("asker", request)
    assert not (tmp_path / OUTBOX_NAME).exists()
