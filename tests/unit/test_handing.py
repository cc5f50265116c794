"""What a holder has copied to send it is gone when that has failed, too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from backends.rsync.journal.journal import EVERYTHING, OUTBOX_NAME, Journal
from plugin.errors import PeerUnreachableError
from plugin.ownership.state import EMPTY, Commit, Epoch, Head, Lineage
from plugin.replication.deliveries import Deliveries
from plugin.replication.handing import Handing, SendRequest
from plugin.replication.progress import Progress
from tests.support.journal_trees import VOLUME

RECORD: Any = SimpleNamespace(id=VOLUME, name="v")
HEAD = Head(owner="asker", epoch=2, phase="recovering", members=("asker", "own"))


class Line:
    """Brings nothing; it looks at what was packed."""

    progress = Progress()

    def send(self, *_: object, source: Path, **__: object) -> int:
        assert source.is_dir()
        raise PeerUnreachableError("planned")


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
