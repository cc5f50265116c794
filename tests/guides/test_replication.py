"""replication.md: copies, moves, bytes that were set apart, who owned a volume when."""

from __future__ import annotations

import re

import pytest

from tests.guides import steps
from tests.support.guide_site import GuideMachine, Site
from tests.support.guides import Printed, changed

MOUNT = "--mount type=volume,volume-driver=remora,source={0},target=/d"


def hold(machine: GuideMachine, volume: str) -> None:
    """Start the container *volume* with the volume of that name."""
    machine.shell(f"docker run -d --name {volume} {MOUNT.format(volume)} busybox")


def inside(machine: GuideMachine, volume: str, script: str) -> str:
    return machine.shell(f"docker exec {volume} sh -c '{script}'")


@pytest.fixture
def db(cluster: Site) -> Site:
    """Return the cluster with a volume `db`, which a container on alpha has."""
    alpha = cluster["alpha"]
    if "db" not in alpha.shell("docker ps --format '{{.Names}}'").split():
        # A test before this one has had it.
        cluster["beta"].shell("docker rm -f holder", check=False)
        alpha.shell("docker volume rm db", check=False)
        alpha.shell(
            "docker volume create -d remora -o interval=1s -o members=alpha,beta db"
        )
        hold(alpha, "db")
        inside(alpha, "db", "mkdir /d/orders; echo 1 > /d/orders/index")
    steps.wait_copies(alpha, "db", 2)
    return cluster


@pytest.mark.printed("replication.md", "Moving a volume ahead of time")
def test_a_volume_is_moved(db: Site, printed: Printed) -> None:
    move = printed.take()
    told = db["gamma"].type(move)
    for told_line, shown in zip(told.splitlines(), move.shown, strict=True):
        assert re.sub(r"\d.*", "", told_line)[:20] == re.sub(r"\d.*", "", shown)[:20]


@pytest.mark.printed("replication.md", "Which nodes keep copies")
def test_copies_are_added_and_removed(db: Site, printed: Printed) -> None:
    alpha = db["alpha"]
    listed = printed.take("remora replica ls")
    steps.assert_shown(alpha.type(listed), listed, columns=2)
    alpha.type(printed.take("remora replica add"))
    steps.wait_copies(alpha, "db", 3)
    alpha.type(printed.take("remora replica rm"))
    steps.wait_copies(alpha, "db", 2)


@pytest.mark.printed("replication.md", "Snapshots in a cluster")
def test_snapshots_are_listed(db: Site, printed: Printed) -> None:
    alpha = db["alpha"]
    alpha.shell("remora snapshot create db monday")
    listed = printed.take()
    told = alpha.type(listed)
    assert told.splitlines()[0].split() == listed.shown[0].split()
    assert "monday" in told
    alpha.shell("remora snapshot rm db monday")


@pytest.mark.printed("replication.md", "Use")
@pytest.mark.printed("replication.md", "Several volumes at one moment")
def test_volumes_are_made_with_options(db: Site, printed: Printed) -> None:
    alpha = db["alpha"]
    for each in printed.rest():
        name = each.text.split()[-1]
        told = alpha.type(each)
        assert told == f"{name}\n"
        if name != "db":
            alpha.shell(f"docker volume rm {name}")


@pytest.mark.printed("replication.md", "Bytes that were set apart")
@pytest.mark.printed("operations.md", "Both sides have written")
def test_bytes_are_set_apart_and_saved(db: Site, printed: Printed) -> None:
    """Two volumes of a node that is cut off, one for each guide."""
    alpha, beta = db["alpha"], db["beta"]
    alpha.shell("docker volume create -d remora -o interval=1s other")
    hold(alpha, "other")
    steps.wait_copies(alpha, "other", 2)
    db.cut_off("alpha")
    inside(alpha, "db", "echo 22 > /d/orders/index; echo > /d/orders/4711.json")
    inside(alpha, "other", "echo > /d/more")
    for volume in ("db", "other"):
        steps.until(
            beta,
            f"docker run --rm {MOUNT.format(volume)} busybox ls /d",
            lambda told: "rror" not in told,
        )
    db.heal("alpha")
    alpha.shell("docker rm -f db other")
    listed = printed.take("remora quarantine ls")
    steps.until(alpha, listed.text, lambda told: len(re.findall(r"alpha\*", told)) == 2)
    told = alpha.type(listed)
    assert told.splitlines()[0].split() == listed.shown[0].split()
    commits = dict(re.findall(r"^(\w+) +(\d+\.\d+)", told, re.MULTILINE))

    # The four steps of the one guide; at the last one it asks.
    here = {"db 3.7": f"db {commits['db']}"}
    differ = printed.take("remora quarantine diff")
    shown = alpha.shell(changed(differ.text, here))
    assert [each.split() for each in shown.splitlines()] == [
        each.split() for each in differ.shown
    ]
    for beginning in ("remora quarantine export", "remora quarantine clone", "docker"):
        alpha.shell(changed(printed.take(beginning).text, here))
    look = f"docker run --rm {MOUNT.format('db')} busybox ls /d/orders"
    assert alpha.shell(look).split() == ["4711.json", "index"]
    alpha.answer(changed(printed.take("remora quarantine discard").text, here), "y\n")

    # And the other one.
    here = {"db 3.4": f"other {commits['other']}"}
    for each in printed.rest():
        command = changed(each.text, here)
        if "discard" in command:
            alpha.answer(command, "y\n")
        else:
            alpha.shell(command)
    assert "alpha" not in alpha.shell("remora quarantine ls")


@pytest.mark.printed("replication.md", "Who owned it when")
def test_what_happened_is_told(db: Site, printed: Printed) -> None:
    alpha = db["alpha"]
    history = printed.take("remora volume history")
    told = alpha.type(history)
    assert told.splitlines()[0].split() == history.shown[0].split()
    assert "owned now" in told
    events = printed.take("remora volume events")
    told = alpha.type(events)
    assert told.splitlines()[0].split() == events.shown[0].split()
    assert 1 < len(re.findall("^20", told, re.MULTILINE)) <= 5
