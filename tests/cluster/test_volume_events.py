"""
Who owned a volume when, as two daemons tell it after moves, crashes and a loss.

What is kept of events, and how they are merged, is in `tests/unit/test_events.py` and
`test_volume_history.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.protocol.command import Cli, caller
from tests.protocol.node import wait_until
from tests.support.copies import live, wait_held
from tests.support.owners import WAIT_S, Owner, Records

Make = Callable[..., Owner]
NAME = "data"


def command(
    owner: Owner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Cli:
    return caller(owner, monkeypatch, capsys)


def write(records: Records, volume_id: str, owner: Owner, text: str) -> None:
    """Write while the volume is mounted; return when a later commit is held by two."""
    before = records.head(volume_id).committed
    (live(owner, volume_id) / "file").write_text(text)

    def done() -> bool:
        head = records.head(volume_id)
        return head.committed > before and len(head.holders) > 1

    wait_until(done, f"{text} is held by two", timeout_s=WAIT_S)


def history(owner: Owner) -> list[dict[str, Any]]:
    answer = owner.control_ok("GET", f"/v1/volumes/{NAME}/history")
    return list(answer["epochs"])


def events(owner: Owner, limit: int = 1000) -> Any:
    return owner.control_ok("GET", f"/v1/volumes/{NAME}/events?limit={limit}")


def told(found: Any, node: str, kind: str) -> list[dict[str, Any]]:
    """Return the facts of the events of one kind on one node, the first one first."""
    return [
        each["facts"]
        for each in found["events"]
        if (each["node"], each["kind"]) == (node, kind)
    ]


@pytest.mark.timeout(900)
def test_moves_a_crash_and_a_loss_are_told(
    make_owner: Make,
    records: Records,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    alpha, beta = make_owner("alpha"), make_owner("beta")
    volume_id = alpha.create(NAME, interval="1s")
    beta.wait_known(NAME)
    first_move(alpha, beta, records, volume_id)
    crash(alpha, beta, records, volume_id)
    lost, epoch = loss(alpha, beta, records, volume_id)
    check_history(alpha, beta, lost)
    check_silent(alpha, monkeypatch, capsys)
    beta.start()
    beta.wait_member()

    def apart() -> list[dict[str, Any]]:
        found = told(events(alpha), "beta", "set-apart")
        return [each for each in found if each["commit"] == lost]

    wait_until(apart, "beta sets apart what was lost", timeout_s=WAIT_S)
    assert Path(str(apart()[0]["path"])).is_dir()
    [owned] = [
        each for each in told(events(beta), "alpha", "owned") if each["epoch"] == epoch
    ]
    assert owned["lost"] == lost
    assert "lost" not in told(events(beta), "alpha", "owned")[0]
    alpha.unmount(NAME)


def first_move(alpha: Owner, beta: Owner, records: Records, volume_id: str) -> None:
    """Move the volume orderly; each node tells its part of it."""
    alpha.mount(NAME)
    wait_held(records, volume_id, alpha, beta)  # what goes ahead is not counted
    write(records, volume_id, alpha, "x" * 5000)
    alpha.unmount(NAME)
    wait_held(records, volume_id, alpha, beta)
    beta.mount_at_last(NAME)
    [first, second] = history(beta)
    assert (first["owner"], first["epoch"], first["ended"]) == ("alpha", 1, "released")
    assert first["began_at"] <= first["released_at"] <= second["began_at"]
    assert (second["owner"], second["ended"]) == ("beta", "owned")
    assert second["base"] == str(records.head(volume_id).committed)
    assert second["base"].startswith("1.")
    found = events(alpha)
    assert found["silent"] == []
    [owned] = told(found, "alpha", "owned")
    assert owned == {"epoch": 1, "base": "0.0"}
    [released] = told(found, "alpha", "released")
    assert released == {"epoch": 1, "commit": second["base"]}
    commits = told(found, "alpha", "committed")
    assert max(each["size_bytes"] for each in commits) >= 5000
    assert {"alpha, beta", "beta, alpha"} & {each["holders"] for each in commits}
    received = told(found, "beta", "received")
    assert received[-1] == {"commit": second["base"], "sender": "alpha"}
    assert events(beta)["events"] == events(alpha)["events"]


def crash(alpha: Owner, beta: Owner, records: Records, volume_id: str) -> None:
    """Let the owner crash; another one goes on from its last commit."""
    write(records, volume_id, beta, "two")
    (live(beta, volume_id) / "file").write_text("not committed, or just so")
    beta.kill()
    alpha.mount_at_last(NAME)
    crashed = history(alpha)[-2]
    assert (crashed["owner"], crashed["ended"]) == ("beta", "not-released")
    beta.start()
    beta.wait_member()
    beta.call("Unmount", {"Name": NAME, "ID": "one"})
    write(records, volume_id, alpha, "three")
    assert told(events(beta), "beta", "owned")[0]["epoch"] == 2  # kept by a restart


def loss(
    alpha: Owner, beta: Owner, records: Records, volume_id: str
) -> tuple[str, int]:
    """Lose a commit that only a dead node has; return it, and the epoch without it."""
    alpha.unmount(NAME)
    wait_held(records, volume_id, alpha, beta)
    alpha.kill()
    beta.mount_at_last(NAME)
    (live(beta, volume_id) / "file").write_text("nobody else has it")
    beta.unmount(NAME)
    wait_held(records, volume_id, beta)
    lost = str(records.head(volume_id).committed)
    beta.kill()
    alpha.start()
    alpha.wait_member()
    alpha.mount_at_last(NAME)
    return lost, records.head(volume_id).epoch


def check_history(alpha: Owner, beta: Owner, lost: str) -> None:
    found = history(alpha)
    assert [each["owner"] for each in found] == [
        *("alpha", "beta", "alpha", "beta", "alpha"),
    ]
    assert [each["ended"] for each in found] == [
        *("released", "not-released", "released", "released", "owned"),
    ]
    assert [each["lost"] for each in found] == ["", "", "", "", lost]
    assert found[-1]["base"] < lost


def check_silent(
    alpha: Owner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A node that does not answer is named, and the others are shown."""
    cli = command(alpha, monkeypatch, capsys)
    done = cli("volume", "events", NAME)
    assert done.code == 0
    assert done.out.splitlines()[-1].split()[1:3] == ["alpha", "owned"]
    assert done.err.startswith("warning: the events of node 'beta' are not shown: ")
    assert done.err.count("\n") == 1
    silent = {"node": "beta", "cause": "its daemon does not run"}
    wait_until(
        lambda: cli("volume", "events", NAME, "--json").json()["silent"] == [silent],
        "beta is not even asked",
        timeout_s=WAIT_S,
    )
    assert len(cli("volume", "events", NAME, "--limit", "2").out.splitlines()) == 3
    table = cli("volume", "history", NAME).out.splitlines()
    assert table[0].split() == ["EPOCH", "OWNER", "BEGAN", "BASE", "LOST", "ENDED"]
    assert table[2].endswith("not released")
    assert table[-1].endswith("owned now")
    assert cli("volume", "history", "none").code == 11
    assert cli("volume", "events", "none").code == 11
    assert cli("volume", "events", NAME, "--limit", "1001").code == 2
    print(done.out, "\n".join(table))


def test_a_removal_is_told_for_as_long_as_there_is_room(
    make_owner: Make, records: Records
) -> None:
    alpha, beta = make_owner("alpha"), make_owner("beta")
    volume_id = alpha.create(NAME, interval="1s")
    beta.wait_known(NAME)
    alpha.mount(NAME)
    (live(alpha, volume_id) / "file").write_text("text")
    alpha.unmount(NAME)
    wait_held(records, volume_id, alpha, beta)
    alpha.ok("Remove", Name=NAME)
    beta.wait_unknown(NAME)
    wait_until(
        lambda: told(events(beta), "beta", "copy-removed"),
        "beta removes its copy",
        timeout_s=WAIT_S,
    )
    assert told(events(beta), "alpha", "removed") == [{}]
    assert "volume-not-found" in str(
        alpha.control("GET", f"/v1/volumes/{NAME}/history").body
    )


def test_what_a_mount_fetches_is_told(make_owner: Make) -> None:
    alpha, beta = make_owner("alpha"), make_owner("beta")
    volume_id = alpha.create(NAME, replicas="1")
    beta.wait_known(NAME)
    alpha.mount(NAME)
    (live(alpha, volume_id) / "file").write_text("text")
    alpha.unmount(NAME)
    beta.wait_known(NAME, ownership="idle")
    beta.mount_at_last(NAME)
    fetched = {"commit": "1.1", "holders": "alpha"}
    found = events(beta)
    assert told(found, "beta", "catching-up") == [fetched]
    assert told(found, "beta", "caught-up") == [fetched]
    beta.unmount(NAME)
