"""A restore holds its volume as a container does, and changes nothing once lost."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from plugin.ownership.heads import drop_lock
from tests.cluster.test_ownership_leases import take_over
from tests.cluster.test_replication_scenarios import wait_holders
from tests.protocol.client import Answer
from tests.protocol.node import wait_until
from tests.support.owners import WAIT_S, Owner, Records
from tests.support.processes import signal_all

NAME = "db"
# So many that their copy can be stopped before it ends.
FILES = 3000


def copying(pid: int) -> list[int]:
    """Return the processes that *pid* has started to copy a tree, as they run now."""
    found = []
    with suppress(OSError):  # it may have ended
        if b"/copies/" in Path(f"/proc/{pid}/cmdline").read_bytes():
            found.append(pid)
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += copying(int(child))
    return found


def copying_of(owner: Owner, answers: list[Answer]) -> list[int]:
    """Return the processes with which *owner* copies a tree, stopped."""
    assert owner.process is not None
    stopped: list[int] = []
    while not stopped:
        assert not answers
        stopped = copying(owner.process.pid)
    signal_all(stopped, signal.SIGSTOP)
    return stopped


def test_a_restore_keeps_its_lock_and_changes_nothing_once_another_node_has_begun(
    make_owner: Callable[..., Owner], records: Records
) -> None:
    alpha = make_owner("alpha")
    volume_id = alpha.create(NAME)
    path = alpha.path(alpha.mount(NAME))
    for number in range(FILES):
        (path / str(number)).touch()
    alpha.control_ok("POST", f"/v1/volumes/{NAME}/snapshots", {"snapshot": "s"})
    (path / "later").touch()
    alpha.unmount(NAME)
    answers: list[Answer] = []
    target = f"/v1/volumes/{NAME}/restore"
    restore = threading.Thread(
        target=lambda: answers.append(alpha.control("POST", target, {"snapshot": "s"}))
    )
    restore.start()
    stopped = copying_of(alpha, answers)
    try:
        lock = records.heads.read(volume_id).lock
        assert lock is not None
        records.store.transact([], [drop_lock(volume_id)])
        wait_until(
            lambda: records.heads.read(volume_id).lock == lock,
            "the lock is taken again",
            timeout_s=WAIT_S,
        )
        take_over(records, volume_id)
        alpha.wait_known(NAME, ownership="recovering")
    finally:
        signal_all(stopped, signal.SIGCONT)
    restore.join(WAIT_S)
    [answer] = answers
    assert "another node has taken" in json.loads(answer.body)["error"]["cause"]
    home = alpha.copy(volume_id)
    assert (home / "live/later").exists()
    assert [each.name for each in (home / "snapshots").iterdir()] == ["s"]


def test_no_snapshot_is_kept_of_what_another_node_has_changed_meanwhile(
    make_owner: Callable[..., Owner], records: Records
) -> None:
    alpha, beta = make_owner("alpha"), make_owner("beta")
    volume_id = alpha.create(NAME, interval="1s", members="alpha,beta")
    beta.wait_known(NAME)
    path = alpha.path(alpha.mount(NAME))
    for number in range(500):
        (path / str(number)).touch()
    alpha.unmount(NAME)
    beta.wait_known(NAME, ownership="idle")
    wait_holders(records, volume_id, alpha, beta)
    answers: list[Answer] = []
    target = f"/v1/volumes/{NAME}/snapshots"
    snapshot = threading.Thread(
        target=lambda: answers.append(alpha.control("POST", target, {"snapshot": "s"}))
    )
    snapshot.start()
    stopped = copying_of(alpha, answers)
    try:
        beta.mount_at_last(NAME)
        (beta.copy(volume_id) / "live/new").touch()
        new = alpha.copy(volume_id) / "live/new"
        wait_until(new.exists, "alpha has it", timeout_s=WAIT_S)
    finally:
        signal_all(stopped, signal.SIGCONT)
    snapshot.join(WAIT_S)
    [answer] = answers
    cause = json.loads(answer.body)["error"]["cause"]
    assert "was brought up to date meanwhile" in cause
    assert not [*(alpha.copy(volume_id) / "snapshots").glob("*")]
