"""cluster.md and enroll.md: three machines become a cluster, command by command."""

from __future__ import annotations

import tomllib

import pytest

from tests.guides import steps
from tests.support import guides
from tests.support.guide_site import GuideMachine, Site
from tests.support.guides import Printed


@pytest.mark.printed("cluster.md", "1. etcd with TLS, copy and paste")
@pytest.mark.printed("cluster.md", "2. The first node")
@pytest.mark.printed("cluster.md", "3. The other nodes")
def test_from_one_machine_to_a_cluster(
    site: Site, alpha: GuideMachine, printed: Printed
) -> None:
    alpha.shell("docker volume create -d remora kept")
    write = "docker run --rm -v kept:/d busybox sh -c 'echo precious > /d/file'"
    alpha.shell(write)
    steps.make_cluster(site, printed)
    [section] = [
        each.text
        for each in guides.blocks("cluster.md")
        if (each.language, each.section) == ("toml", "2. The first node")
    ]
    written = tomllib.loads(alpha.shell("cat /etc/remora/remora.toml"))["cluster"]
    assert written.items() >= tomllib.loads(section)["cluster"].items()
    look = (
        "docker run --rm --mount type=volume,volume-driver=remora,source=kept,target=/d"
    )
    assert site["beta"].shell(f"{look} busybox cat /d/file") == "precious\n"


@pytest.mark.printed("enroll.md", "Enrolling a machine")
def test_a_machine_is_enrolled(cluster: Site, printed: Printed) -> None:
    """It is a node already: what is shown is the same, and little is left to do."""
    enroll = printed.take()
    alpha = cluster["alpha"]
    alpha.shell("ssh-keygen -R 10.0.0.2", check=False)
    told = alpha.type(enroll, answers="y\ny\n")
    for line in enroll.shown:
        what, _, _ = line.partition(":")
        assert what.strip() in told, told
