"""
`remora move`: a node has the bytes before the container starts there.

See `tests/support/owners.py` for the nodes. Two copies of each volume are on `alpha` and
`beta`; it is moved to `gamma`, which has none.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.cluster.test_replication import live, wait_held
from tests.protocol.command import caller
from tests.protocol.node import wait_until
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
    """Append to a file and make new ones, about 200 KiB in a second; yield the lines."""
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
    alpha, _, gamma = three
    volume_id = create(three)
    target = alpha.mount(NAME)
    fill(live(alpha, volume_id), 64)
    with writing(target) as lines:
        wait_until(lambda: len(lines) > 10, "the writer writes")
        before = sent(alpha)
        start(alpha, gamma)
        view = wait_done(alpha, alpha)
        ahead = sent(alpha) - before
        assert view["small"]
        assert view["mounted"]
        assert max(each["carried_bytes"] for each in view["rounds"]) > 60 * MIB
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
    moved = live(gamma, volume_id)
    gamma.mount_at_last(NAME)
    assert ahead > 60 * MIB
    assert last < ahead / 10
    assert read_lines(moved) == lines
    assert shape(moved) == shape(live(alpha, volume_id))
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
    make_everything(Path(alpha.mount(NAME)))
    done = caller(beta, monkeypatch, capsys)("move", NAME, "gamma")
    assert (done.code, done.err) == (0, "")
    assert "node 'gamma' has commit 1." in done.out
    assert "stop the container on 'alpha' and start it on 'gamma'" in done.out
    assert shape(live(gamma, volume_id)) == shape(live(alpha, volume_id))
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
    assert shape(live(gamma, volume_id)) == shape(live(alpha, volume_id))
    gamma.mount_at_last(NAME)
    assert shape(live(gamma, volume_id)) == shape(live(alpha, volume_id))


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
    assert "remora node undrain gamma" in refused(alpha, "gamma")
    beta.control_ok("POST", "/v1/nodes/gamma/undrain")
    unknown = alpha.control_refused("GET", f"/v1/volumes/{NAME}/move?owner=beta")
    assert "no move of 'data' is under way on node 'beta'" in unknown
    gamma.kill()
    wait_until(
        lambda: "node 'gamma' is down" in refused(beta, "gamma"),
        "gamma is known to be down",
        timeout_s=WAIT_S,
    )
    alpha.unmount(NAME)
    alpha.kill()
    gamma.start()
    gamma.wait_member()
    wait_until(
        lambda: "was last on node 'alpha', which is down" in refused(beta, "gamma"),
        "alpha is known to be down",
        timeout_s=WAIT_S,
    )
