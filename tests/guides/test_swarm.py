"""swarm.md: services, and tasks that come to their data, in a swarm of the machines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest

from tests.guides import steps
from tests.support.guide_site import ADDRESSES, GuideMachine, Site
from tests.support.guides import Printed, changed
from tests.support.host import REPOSITORY
from tests.support.images import BUSYBOX_IMAGE

# No registry is here: what only sleeps has the images' names.
IMAGES: Final = ("mariadb:10.11", "wordpress:6")
# What a service needs, where the guide leaves it out.
LEFT_OUT: Final = {
    "!= none' …": "!= none' --name near busybox",
    "== owner' …": "== owner' --name nearest busybox",
}


@pytest.fixture
def swarm(cluster: Site) -> Iterator[Site]:
    """Yield the machines as a swarm of managers, whose daemons keep labels."""
    stack = (REPOSITORY / "examples/stack-wordpress.yaml").read_text()
    alpha = cluster["alpha"]
    alpha.shell("cat > stack-wordpress.yaml", stdin=stack.encode())
    alpha.shell(f"docker swarm init --advertise-addr {ADDRESSES['alpha']}")
    token = alpha.shell("docker swarm join-token -q manager").strip()
    for machine in cluster.machines.values():
        if machine is not alpha:
            address = ADDRESSES[machine.name]
            join = f"docker swarm join --advertise-addr {address} --token {token}"
            machine.shell(f"{join} {ADDRESSES['alpha']}")
        for image in IMAGES:
            machine.shell(f"docker tag {BUSYBOX_IMAGE} {image}")
        file = "/etc/remora/remora.toml"
        # Whether the section stands in the file already or not.
        machine.shell(
            f"grep -q '^.swarm.' {file} || echo '[swarm]' >> {file};"
            f"sed -i '/^.swarm./a labels = true' {file}; systemctl restart remora"
        )
    steps.wait_ready(alpha, *ADDRESSES)
    yield cluster
    for machine in reversed(cluster.machines.values()):
        machine.shell("docker swarm leave --force", check=False)


@pytest.mark.printed("swarm.md", "A service with a volume")
@pytest.mark.printed("swarm.md", "Bring tasks to their data")
@pytest.mark.printed(
    "swarm.md", "WordPress, as Compose file and stack", "printf", "docker stack"
)
@pytest.mark.printed("swarm.md", "WordPress, as Compose file and stack", "docker node")
@pytest.mark.printed(
    "operations.md", "A node is to be repaired or switched off", "docker"
)
def test_services_come_to_their_data(swarm: Site, printed: Printed) -> None:
    alpha = swarm["alpha"]
    alpha.type(printed.take("docker service create --name db"))
    assert tasks(alpha, "db") == 1
    labels = printed.take("docker node inspect")
    steps.until(alpha, labels.text, lambda told: "remora.volume.rows" in told)
    for _ in range(2):
        command = printed.take("docker service create --constraint").text
        alpha.shell(changed(command, LEFT_OUT))
    assert tasks(alpha, "near") == tasks(alpha, "nearest") == 1
    alpha.shell("docker service rm near nearest")

    for beginning in ("printf", "docker stack deploy"):
        alpha.type(printed.take(beginning))
    assert "wordpress_database" in alpha.shell("docker stack services wordpress")
    alpha.shell("docker stack rm wordpress")
    # Each of them in turn; the database goes on elsewhere.
    for each in printed.rest():
        alpha.type(each)
        name = each.text.split()[-1]
        steps.until(
            alpha,
            "docker service ps db --filter desired-state=running",
            lambda told, name=name: "Running" in told and f" {name} " not in told,
        )
        alpha.shell(f"docker node update --availability active {name}")
    alpha.shell("docker service rm db")


def tasks(machine: GuideMachine, service: str) -> int:
    """Return how many tasks of *service* run."""
    state = "--filter desired-state=running --format '{{.CurrentState}}'"
    return machine.shell(f"docker service ps {service} {state}").count("Running")
