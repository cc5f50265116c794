"""`remora move`: broken off, outrun by a writer, asked twice, and alone."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable

import pytest

from tests.cluster.test_move import (
    MIB,
    NAME,
    fill,
    refused,
    start,
    wait_done,
)
from tests.cluster.test_replication import live, wait_held
from tests.protocol.command import caller
from tests.protocol.node import running, wait_until
from tests.support.joining import put_volume, volume
from tests.support.owners import WAIT_S, Owner, Records

Make = Callable[..., Owner]
LIMIT = '[replication]\nbandwidth_limit = "2MiB"'


@pytest.fixture
def pair(make_owner: Make) -> tuple[Owner, Owner]:
    return make_owner("alpha", profiles=LIMIT), make_owner("gamma")


def mounted(pair: tuple[Owner, Owner]) -> str:
    """Return the id of a volume that alpha has mounted and gamma has no copy of."""
    alpha, gamma = pair
    volume_id = alpha.create(NAME, replicas="1", interval="1s")
    gamma.wait_known(NAME)
    alpha.mount(NAME)
    return volume_id


def test_ctrl_c_ends_the_waiting_only(
    pair: tuple[Owner, Owner], records: Records
) -> None:
    alpha, gamma = pair
    volume_id = mounted(pair)
    fill(live(alpha, volume_id), 32)
    # Of whom a shell starts in the background, the children ignore the signal.
    heeding = ("env", "--default-signal=INT")
    command = subprocess.Popen(
        alpha.inside(*heeding, *alpha.remora("move", NAME, "gamma")),
        env=alpha.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(
            lambda: alpha.get(NAME)["Status"]["transfers"],
            "the transfer has begun",
            timeout_s=WAIT_S,
        )
        command.send_signal(signal.SIGINT)
        out, error = command.communicate(timeout=WAIT_S)
    finally:
        command.kill()
        command.wait()
    assert command.returncode == 130
    assert out == ""
    assert "no longer waited for: 'data' is brought to 'gamma' all the same" in error
    assert wait_done(alpha, alpha)["small"]
    wait_held(records, volume_id, alpha, gamma)
    alpha.unmount(NAME)


def test_a_writer_that_is_faster_than_the_link_is_told_of(
    pair: tuple[Owner, Owner],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    alpha, _ = pair
    volume_id = mounted(pair)
    ended = threading.Event()

    def write() -> None:
        while not ended.wait(0.2):
            for number in range(4):
                content = os.urandom(MIB)
                (live(alpha, volume_id) / f"file-{number}").write_bytes(content)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        done = caller(alpha, monkeypatch, capsys)("move", NAME, "gamma")
    finally:
        ended.set()
        writer.join()
    assert done.code == 0
    assert "written to faster than it is carried" in done.err
    assert "node 'gamma' has commit" in done.out
    alpha.unmount(NAME)


def test_one_move_of_a_volume_at_a_time(
    pair: tuple[Owner, Owner], make_owner: Make
) -> None:
    alpha, gamma = pair
    beta = make_owner("beta")
    volume_id = mounted(pair)
    fill(live(alpha, volume_id), 16)
    start(alpha, gamma)
    # The same again joins the one that is under way.
    assert start(gamma, gamma)["state"] == "running"
    beta.wait_known(NAME)
    assert "is being brought to node 'gamma'" in refused(beta, "beta")
    assert wait_done(gamma, alpha)["small"]
    start(beta, beta)
    assert wait_done(beta, alpha)["node"] == "beta"
    alpha.unmount(NAME)


def test_alone_there_is_nowhere_to_go(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with running() as node:
        node.create("lonely")
        done = caller(node, monkeypatch, capsys)("move", "lonely", "beta")
        assert done.code == 10
        assert "this node is alone" in done.error
        unknown = caller(node, monkeypatch, capsys)("move", "none", "beta")
        assert unknown.code == 11


def test_what_lies_on_a_share_is_everywhere_already(
    make_owner: Make, records: Records
) -> None:
    alpha = make_owner("alpha")
    options = {"backend": "nfs", "server": "127.0.0.1", "export": "/e"}
    shared = volume("shared", backend="nfs", options=options)
    records.store.transact([], [put_volume(shared)])
    wait_until(
        lambda: "every node sees" in refused(alpha, "alpha", "shared"),
        "the volume is known",
        timeout_s=WAIT_S,
    )
