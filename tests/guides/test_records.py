"""cluster-records.md: records are saved and read anew; a node leaves and joins."""

from __future__ import annotations

import pytest

from tests.guides import steps
from tests.support.guide_site import ADDRESSES, Site
from tests.support.guides import Printed

STOP = "systemctl stop remora.socket remora.service"
START = "systemctl start remora.socket remora.service"


def everywhere(site: Site, script: str) -> None:
    for machine in site.machines.values():
        machine.shell(script)


@pytest.mark.printed("cluster-records.md", "See how it is")
@pytest.mark.printed("cluster-records.md", "Save the records")
@pytest.mark.printed("cluster-records.md", "Restore them")
def test_records_are_saved_and_read_anew(cluster: Site, printed: Printed) -> None:
    alpha = cluster["alpha"]
    status = printed.take("remora cluster status")
    told = alpha.type(status)
    for line in status.shown:
        assert line.split()[0] in told
    alpha.type(printed.take("remora cluster dump"))
    assert "records" in alpha.shell("head -1 /var/backups/remora-*.dump")
    everywhere(cluster, STOP)
    environment = steps.etcdctl_environment()
    assert alpha.shell(f"{environment}\n{printed.take('etcdctl del').text}") == "1\n"
    everywhere(cluster, START)
    steps.wait_ready(alpha, *ADDRESSES)


@pytest.mark.printed("cluster-records.md", "Leave a cluster")
@pytest.mark.printed("cluster-records.md", "Take a machine's volumes into a cluster")
def test_a_node_leaves_and_joins(cluster: Site, printed: Printed) -> None:
    alpha, gamma = cluster["alpha"], cluster["gamma"]
    everywhere(cluster, STOP)
    gamma.type(printed.take("systemctl stop"))
    gamma.type(printed.take("remora cluster dump"))
    editor = "export EDITOR='sed -i /^etcd.=/d'"
    gamma.shell(f"{editor}; {printed.take('$EDITOR').text}")
    gamma.type(printed.take("remora cluster load"), answers="y\n")
    gamma.type(printed.take("systemctl start"))
    for each in (alpha, cluster["beta"]):
        each.shell(START)
    steps.wait_ready(alpha, "alpha", "beta")
    told = gamma.shell("remora cluster status", check=False)
    assert "10.0.0.1" not in told
    # Not before its lease has ended.
    steps.until(
        alpha, "remora node rm gamma --force", lambda told: told.strip() == "gamma"
    )

    for each in printed.rest():
        gamma.type(each)
    steps.wait_ready(alpha, *ADDRESSES)
