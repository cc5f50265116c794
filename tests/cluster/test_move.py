"""
`remora move`: a node has the bytes before the container starts there.

See `tests/support/owners.py` for the nodes. The volume is on `alpha`, and in the first
tests on `beta`; it is moved to `gamma`, which has no copy.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.cluster.test_replication import wait_held
from tests.protocol.command import caller
from tests.protocol.node import wait_until
from tests.support.copies import live, wait_same
from tests.support.journal_trees import make_everything, shape
from tests.support.owners import WAIT_S, Owner, Records

Make = Callable[..., Owner]
Three = tuple[Owner, Owner, Owner]
NAME = "data"
MIB = 2**20
MOVE_S = 3 * WAIT_S


@pytest.fixture
def three(make_owner: Make) -> Three:
    """Return three nodes of one cluster."""
    return make_owner("alpha"), make_owner("beta"), make_owner("gamma")


def create(three: Three, **options: str) -> str:
    """Return the id of a new volume of alpha and beta, which all nodes know."""
    options = {"members": "alpha,beta", "interval": "1s", **options}
    volume_id = three[0].create(NAME, **options)
    for each in three[1:]:
        each.wait_known(NAME)
    return volume_id


def fill(target: Path, size_mib: int) -> None:
    for number in range(size_mib):
        (target / f"file-{number}").write_bytes(os.urandom(MIB))


def start(owner: Owner, node: Owner) -> Any:
    """Ask *owner* to move the volume; return the first view."""
    body = {"node": node.name}
    return owner.control_ok("POST", f"/v1/volumes/{NAME}/move", body)


def state(asked: Owner, owner: Owner) -> Any:
    return asked.control_ok("GET", f"/v1/volumes/{NAME}/move?owner={owner.name}")


def wait_done(asked: Owner, owner: Owner) -> Any:
    """Return the view of the move when it is done."""
    wait_until(
        lambda: state(asked, owner)["state"] == "done", "moved", timeout_s=MOVE_S
    )
    return state(asked, owner)


def refused(asked: Owner, node: str, volume: str = NAME) -> str:
    """Return why a move is refused."""
    return asked.control_refused("POST", f"/v1/volumes/{volume}/move", {"node": node})


def metric(owner: Owner, name: str, **labels: str) -> float:
    text = owner.control("GET", "/metrics").body.decode()
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def sent(owner: Owner) -> float:
    return metric(owner, "remora_replication_bytes_total", direction="sending")


@contextmanager
def writing(target: Path) -> Iterator[list[str]]:
    """Write about 200 KiB in a second, to a log as well; yield the log's lines."""
    lines: list[str] = []
    ended = threading.Event()

    def write() -> None:
        number = 0
        with (target / "log").open("a") as log:
            while not ended.wait(0.05):
                line = f"{number} {os.urandom(8).hex()}"
                log.write(line + "\n")
                log.flush()
                lines.append(line)
                (target / f"new-{number % 50}").write_bytes(os.urandom(10_000))
                number += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield lines
    finally:
        ended.set()
        thread.join()


def test_before_the_switch_almost_all_is_there(three: Three, records: Records) -> None:
    alpha, beta, gamma = three
    volume_id = create(three)
    alpha.mount(NAME)
    fill(live(alpha, volume_id), 64)
    # The usual member comes first, and has its copy.
    wait_held(records, volume_id, alpha, beta)
    with writing(live(alpha, volume_id)) as lines:
        wait_until(lambda: len(lines) > 10, "the writer writes")
        before = sent(alpha)
        start(alpha, gamma)
        view = wait_done(alpha, alpha)
        ahead = sent(alpha) - before
        assert view["small"]
        assert view["mounted"]
        assert records.head(volume_id).members[-1] == gamma.id
        # Gamma is a member, which the usual syncs bring in step.
        newest = len(lines)
        wait_until(
            lambda: len(read_lines(live(gamma, volume_id))) > newest,
            "gamma follows",
            timeout_s=WAIT_S,
        )
        before = sent(alpha)
    alpha.unmount(NAME)
    last = sent(alpha) - before
    left = shape(live(alpha, volume_id))
    moved = live(gamma, volume_id)
    gamma.mount_at_last(NAME)
    assert ahead > 60 * MIB
    assert last < ahead / 10
    assert read_lines(moved) == lines
    assert shape(moved) == left
    assert gamma.events("owned", NAME)[-1]["lost"] == ""


def read_lines(directory: Path) -> list[str]:
    with suppress(FileNotFoundError):
        return (directory / "log").read_text().splitlines()
    return []


def test_any_node_passes_it_on_to_the_owner(
    three: Three,
    records: Records,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    alpha, beta, gamma = three
    volume_id = create(three)
    alpha.mount(NAME)
    make_everything(live(alpha, volume_id))
    done = caller(beta, monkeypatch, capsys)("move", NAME, "gamma")
    assert (done.code, done.err) == (0, "")
    assert "node 'gamma' has commit 1." in done.out
    assert "stop the container on 'alpha' and start it on 'gamma'" in done.out
    wait_same(alpha, gamma, volume_id)
    again = caller(gamma, monkeypatch, capsys)("move", NAME, "gamma", "--json").json()
    assert again["rounds"][-1]["carried_bytes"] < 100_000
    assert again["owner"] == "alpha"
    alpha.unmount(NAME)
    wait_held(records, volume_id, alpha, beta, gamma)


def test_a_volume_that_nobody_uses_is_brought_as_well(
    three: Three,
    records: Records,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    alpha, beta, gamma = three
    volume_id = create(three)
    alpha.mount(NAME)
    make_everything(live(alpha, volume_id))
    alpha.unmount(NAME)
    wait_held(records, volume_id, alpha, beta)
    beta.wait_known(NAME, ownership="idle")
    done = caller(beta, monkeypatch, capsys)("move", NAME, "gamma")
    assert (done.code, done.err) == (0, "")
    assert done.out.endswith("it is mounted nowhere: start its container on 'gamma'\n")
    assert set(records.head(volume_id).holders) == {alpha.id, beta.id, gamma.id}
    left = shape(live(alpha, volume_id))
    assert shape(live(gamma, volume_id)) == left
    gamma.mount_at_last(NAME)
    assert shape(live(gamma, volume_id)) == left


def test_what_cannot_be_moved_is_told(three: Three) -> None:
    alpha, beta, gamma = three
    create(three)
    assert "has never been mounted" in refused(beta, "gamma")
    alpha.mount(NAME)
    beta.wait_known(NAME, ownership="owned")
    assert "is on node 'alpha' already" in refused(beta, "alpha")
    assert "there is no node 'delta'" in refused(beta, "delta")
    assert "there is no volume 'other'" in refused(beta, "gamma", "other")
    beta.control_ok("POST", "/v1/nodes/gamma/drain")
    alpha.wait_drained("gamma")
    assert "remora node undrain gamma" in refused(alpha, "gamma")
    beta.control_ok("POST", "/v1/nodes/gamma/undrain")
    # The other node's record may not have been read yet.
    wait_until(
        lambda: (
            "no move of 'data' is under way on node 'beta'"
            in alpha.control_refused("GET", f"/v1/volumes/{NAME}/move?owner=beta")
        ),
        "beta says so",
        timeout_s=WAIT_S,
    )
    gamma.kill()
    beta.wait_down("gamma")
    assert "node 'gamma' is down" in refused(beta, "gamma")
    # It has not let the volume go: nobody else knows what the newest bytes are.
    alpha.kill()
    gamma.start()
    gamma.wait_member()
    beta.wait_down("alpha")
    assert "was last on node 'alpha', which is down" in refused(beta, "gamma")


LIMIT = '[replication]\nbandwidth_limit = "2MiB"\nnice = 5'


def test_the_limit_is_kept_and_progress_is_shown_everywhere(
    make_owner: Make,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """16 MiB at 2 MiB in a second: without the limit it takes less than one second."""
    alpha = make_owner("alpha", profiles=LIMIT)
    gamma = make_owner("gamma")
    volume_id = alpha.create(NAME, replicas="1", interval="1s")
    gamma.wait_known(NAME)
    alpha.mount(NAME)
    fill(live(alpha, volume_id), 16)
    began_s = time.monotonic()
    start(alpha, gamma)
    seen = watch_transfers(alpha, gamma)
    wait_done(alpha, alpha)
    took_s = time.monotonic() - began_s
    assert took_s > 4
    for owner, other, direction in (
        (alpha, "gamma", "sending"),
        (gamma, "alpha", "receiving"),
    ):
        (transfer,) = seen[owner.name]
        assert (transfer["node"], transfer["direction"]) == (other, direction)
        assert transfer["total_bytes"] == 16 * MIB
        assert 0 < transfer["percent"] < 100
        assert transfer["left_s"] < 60
    assert alpha.get(NAME)["Status"]["transfers"] == []
    received = metric(gamma, "remora_replication_bytes_total", direction="receiving")
    assert received == pytest.approx(sent(alpha), rel=0.05)
    assert metric(gamma, "remora_replication_commits_total", direction="receiving") >= 1
    assert metric(alpha, "remora_last_sync_age_seconds", volume=NAME) < 60
    assert metric(alpha, "remora_transfers") == 0
    status = caller(alpha, monkeypatch, capsys)("status")
    assert "transfers: []" in status.out
    alpha.unmount(NAME)


def watch_transfers(sender: Owner, receiver: Owner) -> dict[str, list[Any]]:
    """Return what each node shows of a transfer that is known on both sides."""
    found: dict[str, list[Any]] = {}

    def known() -> bool:
        for owner in (sender, receiver):
            found[owner.name] = owner.get(NAME)["Status"]["transfers"]
        return all(each and each[0]["percent"] for each in found.values())

    wait_until(known, "both show the transfer", timeout_s=WAIT_S)
    (shown,) = sender.control_ok("GET", "/v1/status")["transfers"]
    assert shown["volume"] == NAME
    assert metric(sender, "remora_transfers", direction="sending") == 1
    assert metric(sender, "remora_transfer_bytes", kind="total") >= 16 * MIB
    return found


def test_a_mount_that_waits_for_bytes_says_how_many_have_come(
    make_owner: Make,
) -> None:
    alpha = make_owner("alpha", profiles=LIMIT)
    gamma = make_owner("gamma", daemon={"mount_deadline_s": 6})
    volume_id = alpha.create(NAME, replicas="1")
    gamma.wait_known(NAME)
    alpha.mount(NAME)
    fill(live(alpha, volume_id), 24)
    alpha.unmount(NAME)
    gamma.wait_known(NAME, ownership="idle")
    left = shape(live(alpha, volume_id))
    error = gamma.call("Mount", {"Name": NAME, "ID": "one"}).error
    assert re.search(r"'data' is catching up with node 'alpha', [1-9][0-9]? %", error)
    gamma.mount_at_last(NAME)
    assert shape(live(gamma, volume_id)) == left


@pytest.mark.parametrize("victim", ["alpha", "gamma"])
def test_a_daemon_that_dies_in_a_move_leaves_everything_whole(
    make_owner: Make, records: Records, victim: str
) -> None:
    alpha = make_owner("alpha", profiles=LIMIT)
    gamma = make_owner("gamma")
    volume_id = alpha.create(NAME, replicas="1", interval="1s")
    gamma.wait_known(NAME)
    alpha.mount(NAME)
    fill(live(alpha, volume_id), 16)
    start(alpha, gamma)
    watch_transfers(alpha, gamma)
    killed = alpha if victim == "alpha" else gamma
    killed.kill()
    if victim == "gamma":
        wait_until(
            lambda: "node 'gamma' has not taken 'data'" in ended(alpha),
            "the move fails",
            timeout_s=MOVE_S,
        )
    killed.start()
    killed.wait_member()
    if victim == "alpha":
        assert "no move of 'data' is under way" in ended(alpha)
    # The member is brought in step by the usual syncs, and a move goes on from there.
    path, body = f"/v1/volumes/{NAME}/move", {"node": "gamma"}
    wait_until(
        lambda: gamma.control("POST", path, body).status == 200,
        "gamma reaches alpha",
        timeout_s=WAIT_S,
    )
    assert wait_done(gamma, alpha)["small"]
    alpha.unmount(NAME)
    wait_held(records, volume_id, alpha, gamma)
    left = shape(live(alpha, volume_id))
    gamma.mount_at_last(NAME)
    assert shape(live(gamma, volume_id)) == left


def ended(owner: Owner) -> str:
    """Return why the owner's move has ended, "" while it goes on."""
    answer = owner.control("GET", f"/v1/volumes/{NAME}/move?owner={owner.name}")
    return "" if answer.status == 200 else answer.json()["error"]["cause"]
