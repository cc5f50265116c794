"""operations.md: a node that is down, drained, gone for good and replaced."""

from __future__ import annotations

import re

import pytest

from tests.guides import steps
from tests.support.guide_site import ADDRESSES, RUN_S, Site
from tests.support.guides import Printed, changed
from tests.support.host import wait_until

HOLD = (
    "docker run -d --name holder --mount "
    "type=volume,volume-driver=remora,source=db,target=/d busybox"
)
MEMBER = "8211f1d0f64f3269"


@pytest.fixture
def volume(cluster: Site) -> Site:
    """Return the cluster with a volume `db` that a container on beta has."""
    beta = cluster["beta"]
    if "holder" not in beta.shell("docker ps --format '{{.Names}}'"):
        beta.shell("docker volume create -d remora -o interval=1s db")
        beta.shell(f"docker rm -f holder 2> /dev/null; {HOLD}")
        beta.shell("docker exec holder sh -c 'echo kept > /d/file'")
    steps.wait_copies(beta, "db", 2)
    return cluster


@pytest.mark.printed("operations.md", "A disk is full")
def test_a_look_at_a_disk(volume: Site, printed: Printed) -> None:
    for each in printed.rest():
        volume["beta"].type(each)


@pytest.mark.printed(
    "operations.md", "A node is to be repaired or switched off", "remora", "ls"
)
def test_a_node_is_drained(volume: Site, printed: Printed) -> None:
    alpha = volume["alpha"]
    alpha.type(printed.take("remora node drain"))
    assert "drained" in alpha.shell("remora node ls")
    # Its container has one.
    assert volume["beta"].type(printed.take("ls"))
    alpha.type(printed.take("remora node undrain"))
    steps.wait_ready(alpha, "beta")


@pytest.mark.printed("operations.md", "A node is down")
@pytest.mark.printed("operations.md", "A node is gone for good")
@pytest.mark.printed("operations.md", "A lost node is replaced")
def test_a_lost_node_is_replaced(volume: Site, printed: Printed) -> None:
    """With its member of etcd."""
    beta = volume["beta"]
    volume["alpha"].close()
    wait_until(
        lambda: re.search("alpha .*down", beta.shell("remora node ls")),
        timeout_s=RUN_S,
        what="alpha is down",
    )
    for _ in range(3):
        beta.type(printed.take())

    remove = printed.take("remora node rm")
    refused = beta.shell(remove.text, check=False)
    if "hint" in refused:
        beta.shell(f"{remove.text} --force")
    beta.type(printed.take("remora replica ls"))

    environment = steps.etcdctl_environment()
    listed = beta.shell(f"{environment}\n{printed.take('etcdctl member list').text}")
    [member] = re.findall(r"^(\w+), \w+, alpha", listed, re.MULTILINE)
    for command in ("etcdctl member remove", "etcdctl member add"):
        text = changed(printed.take(command).text, {MEMBER: member})
        beta.shell(f"{environment}\n{text}")
    alpha = volume.replace("alpha")
    steps.add_member(volume, alpha, printed)
    steps.know_hosts(beta)
    beta.type(printed.take("remora node enroll"), answers="y\n")
    steps.wait_ready(beta, *ADDRESSES)
    status = beta.shell("remora cluster status")
    assert len(re.findall(r":2379 +yes", status)) == len(ADDRESSES), status
