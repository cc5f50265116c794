"""Two thousand volumes, half of them on two servers of which none answers: lists."""

from __future__ import annotations

import json
import shutil
import threading
import time
import uuid
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from plugin.model import VolumeRecord
from plugin.store.sqlite import SqliteStore
from plugin.volumes.catalogue import Catalogue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.daemon import Machine

pytestmark = pytest.mark.xdist_group("engine-checklist")

EACH = 1000
# One takes connections and says nothing, at the other nobody is.
SERVERS = ("127.0.0.2", "127.0.0.3")
SILENT = (
    "import socket, time; s = socket.create_server(('127.0.0.2', 2049), backlog=4096);"
    " time.sleep(600)"
)
# Others took 15 s for one dead socket, and 51 s for a list. A call of the engine's that
# waited for one server would take three seconds at least.
AT_ONCE_S = 3.0


def records() -> Iterator[VolumeRecord]:
    """Yield the records of the volumes, as their creations would have made them."""
    for number in range(EACH):
        local = {"mode": "0755", "uid": "0", "gid": "0"}
        shared = {
            "server": SERVERS[number % 2],
            "share": "/export",
            "nfsvers": "4.2",
            "subDir": f"on-share-{number:04}",
            "onDelete": "retain",
        }
        for kind, options in (("rsync", local), ("nfs", shared)):
            yield VolumeRecord(
                id=str(uuid.uuid4()),
                name=f"{kind}-{number:04}",
                backend=kind,
                requested={},
                options=options,
                created_at="2026-01-01T00:00:00Z",
                phase="ready",
                node="",
                filled=False,
            )


def test_lists_wait_for_no_server(
    make_machine: Callable[..., Machine], tmp_path: Path
) -> None:
    machine: Machine = make_machine()
    machine.daemon.stop()
    with closing(SqliteStore(tmp_path / "store.db")) as store:
        catalogue = Catalogue(store)
        for each in records():
            assert catalogue.insert(each)
    shutil.copy(tmp_path / "store.db", machine.host.path("/var/lib/remora"))
    silent = machine.host.popen(["python3", "-c", SILENT])
    machine.daemon.start()
    engine, names = machine.engine, sorted(each.name for each in records())
    took_s = {}

    def asked(*command: str) -> str:
        began_s = time.monotonic()
        answer = engine.out(*command)
        took_s[" ".join(command)] = time.monotonic() - began_s
        return answer

    assert sorted(asked("volume", "ls", "-q").split()) == names
    # As Portainer asks, twice for each look at its page.
    dangling = asked("volume", "ls", "-q", "--filter", "dangling=true")
    assert sorted(dangling.split()) == names
    assert asked("volume", "ls", "-q", "--filter", "name=nfs-0007") == "nfs-0007"
    asked("system", "df")
    assert json.loads(asked("volume", "inspect", "nfs-0007"))[0]["Driver"] == "remora"
    # While removals wait for the silent server, dockerd's own list waits for them, but
    # not ours.
    waiting = [
        threading.Thread(
            target=engine.docker,
            args=("volume", "rm", f"nfs-{number:04}"),
            kwargs={"check": False},
        )
        for number in range(0, 16, 2)
    ]
    for each in waiting:
        each.start()
    while any(each.is_alive() for each in waiting):
        began_s = time.monotonic()
        assert len(machine.daemon.call("List", {})["Volumes"]) == len(names)
        took_s["List"] = max(took_s.get("List", 0), time.monotonic() - began_s)
        time.sleep(0.1)
    silent.kill()
    assert max(took_s.values()) < AT_ONCE_S, took_s
