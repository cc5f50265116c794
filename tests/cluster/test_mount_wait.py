"""A Mount waits for the node that has the volume: to let it go, or to be dead."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing

from plugin.store.base import Put
from tests.protocol.node import wait_until
from tests.support.owners import TTL_S, WAIT_S, Owner, Records

Make = Callable[..., Owner]

PATIENT_S = 40.0
NAME = "data"


def mount_meanwhile(owner: Owner) -> tuple[threading.Thread, list[str]]:
    """Mount the volume in a thread; return it, and where its error will be."""
    errors: list[str] = []

    def mount() -> None:
        errors.append(owner.call("Mount", {"Name": NAME, "ID": "one"}).error)

    thread = threading.Thread(target=mount)
    thread.start()
    return thread, errors


def test_a_mount_waits_for_a_node_that_lets_the_volume_go(make_owner: Make) -> None:
    alpha = make_owner("alpha")
    volume_id = alpha.create(NAME)
    alpha.mount(NAME)
    (alpha.copy(volume_id) / "live" / "file").write_text("moved")
    beta = make_owner("beta", mount_wait_s=PATIENT_S)
    beta.wait_known(NAME, ownership="owned")
    thread, errors = mount_meanwhile(beta)
    time.sleep(2)
    assert not errors
    alpha.unmount(NAME)
    thread.join(WAIT_S)
    assert errors == [""]
    assert (beta.copy(volume_id) / "live" / "file").read_text() == "moved"


def test_a_mount_waits_for_the_lease_of_this_nodes_last_boot(
    make_owner: Make, records: Records
) -> None:
    """A machine that is up again in a moment starts its containers once."""
    alpha = make_owner("alpha", mount_wait_s=PATIENT_S)
    alpha.create(NAME)
    alpha.stop()
    (alive,) = records.store.prefix("alive/")[0]
    boot_id = json.loads(alive.value)["boot_id"].encode()
    earlier = alive.value.replace(boot_id, b"of an earlier boot")
    records.store.transact([], [Put(alive.key, earlier, alive.lease)])
    with closing(sqlite3.connect(alpha.state_dir / "node.db")) as node, node:
        node.execute("UPDATE facts SET value = 'earlier 1' WHERE key = 'lease'")
    alpha.start()
    alpha.mount(NAME)


def test_a_mount_waits_for_the_lease_of_a_node_that_is_dead(make_owner: Make) -> None:
    alpha = make_owner("alpha")
    beta = make_owner("beta", mount_wait_s=PATIENT_S)
    volume_id = alpha.create(NAME, interval="1s")
    alpha.mount(NAME)
    (alpha.copy(volume_id) / "live" / "file").write_text("kept")
    copy = beta.copy(volume_id) / "live" / "file"
    wait_until(copy.exists, "beta has a copy", timeout_s=WAIT_S)
    alpha.kill()
    thread, errors = mount_meanwhile(beta)
    thread.join(TTL_S + WAIT_S)
    assert errors == [""]
    assert copy.read_text() == "kept"


def test_it_waits_no_longer_than_it_was_told(make_owner: Make) -> None:
    alpha = make_owner("alpha")
    alpha.create(NAME)
    alpha.mount(NAME)
    beta = make_owner("beta", mount_wait_s=2)
    beta.wait_known(NAME, ownership="owned")
    began_s = time.monotonic()
    refused = beta.call("Mount", {"Name": NAME, "ID": "one"}).error
    assert "is in use on node 'alpha'" in refused
    assert 2 <= time.monotonic() - began_s < WAIT_S
