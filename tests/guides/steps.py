"""What more than one test of the guides needs, done once."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.support.guide_site import (
    ADDRESSES,
    CHECKOUT,
    OFFLINE,
    RUN_S,
    GuideMachine,
    Site,
)
from tests.support.guides import Claim, Command, Printed, changed
from tests.support.host import wait_until


def install(site: Site, printed: Printed | None = None) -> None:
    """Install Remora on alpha, as the guide says."""
    alpha = site["alpha"]
    if printed is None:
        if alpha.shell("command -v remora", check=False):
            return
        printed = Printed([Claim("", "install.md", "Install and start")])
    make = printed.take("make install").text
    alpha.shell(f"cd {CHECKOUT}; export {OFFLINE}; {make}")
    alpha.type(printed.take("systemctl enable --now"))
    told = alpha.type(printed.take("remora doctor"))
    assert "control socket" in told
    assert "fault" not in told


def make_cluster(site: Site, printed: Printed | None = None) -> None:
    """Make a cluster of the three machines, as the guide says."""
    if printed is None:
        if "gamma" in site["alpha"].shell("remora node ls", check=False):
            return
        sections = ("1. etcd with TLS, copy and paste", "2. The first node")
        claims = [Claim("", "cluster.md", each) for each in sections]
        claims.append(Claim("", "cluster.md", "3. The other nodes"))
        printed = Printed(claims)
    start_etcd(site, printed)
    join(site["alpha"], printed)
    enroll = printed.take("remora node enroll")
    for name in ("beta", "gamma"):
        other = {"10.0.0.2": ADDRESSES[name], "beta": name}
        site["alpha"].answer(changed(enroll.text, other), "y\ny\n")
    wait_ready(site["alpha"], *ADDRESSES)


def start_etcd(site: Site, printed: Printed) -> None:
    """Make the certificates, on gamma, and start a member on each machine."""
    make, carry = printed.take("nodes="), printed.take("for node in")
    members = [printed.take() for _ in range(INSTALLED)]
    settings = printed.take("name=alpha")
    starting = [printed.take() for _ in range(3)]
    export, question = printed.take("export ETCDCTL"), printed.take("etcdctl")
    know_hosts(site["gamma"])
    site["gamma"].shell(f"mkdir -m 0700 ca; cd ca; {make.text}\n{carry.text}")
    for name, machine in site.machines.items():
        for each in members:
            machine.type(each)
        machine.shell(own(settings.text, name))
    # None of them starts without another one.
    with ThreadPoolExecutor(len(ADDRESSES)) as pool:
        script = "; ".join(each.text for each in starting)
        list(pool.map(lambda each: each.shell(script), site.machines.values()))
    told = site["beta"].shell(f"{export.text}\n{question.text}")
    assert told.count("is healthy") == len(ADDRESSES), told


# Commands that put certificates and etcd in their places.
INSTALLED = 8


def own(settings: str, name: str) -> str:
    """Return the script with etcd's *settings* for the machine *name*."""
    first, rest = settings.split("\n", 1)
    assert first == "name=alpha address=10.0.0.1"
    return f"name={name} address={ADDRESSES[name]}\n{rest}"


def know_hosts(machine: GuideMachine) -> None:
    """Have *machine* know the others' host keys, as if it had been asked."""
    addresses = " ".join(ADDRESSES.values())
    machine.shell(f"ssh-keyscan {addresses} > .ssh/known_hosts 2> /dev/null")


def join(machine: GuideMachine, printed: Printed) -> None:
    """Make *machine* the first node."""
    machine.type(printed.take("systemctl stop"))
    machine.type(printed.take("remora cluster join"))
    machine.type(printed.take("systemctl start"))
    listed = printed.take("remora node ls")
    wait_ready(machine, machine.name)
    assert_shown(machine.type(listed), listed)


def assert_shown(told: str, command: Command, *, columns: int = 3) -> None:
    """See that the guide shows what was *told*, in the first *columns* and the head."""
    rows = [line.split() for line in told.splitlines()]
    shown = [line.split() for line in command.shown]
    assert rows[0] == shown[0]
    assert [row[:columns] for row in rows] == [row[:columns] for row in shown]


def wait_ready(machine: GuideMachine, *names: str) -> None:
    """Return when *machine* sees the nodes *names* living."""

    def ready() -> bool:
        told = machine.shell("remora node ls --json", check=False)
        try:
            rows = json.loads(told)
        except ValueError:
            return False
        living = {each["name"] for each in rows if each["state"] == "ready"}
        return living >= set(names)

    wait_until(
        ready,
        timeout_s=RUN_S,
        what=f"{names} are ready",
        evidence=lambda: machine.shell("remora node ls", check=False),
        interval_s=0.5,
    )


ETCD = "1. etcd with TLS, copy and paste"


def etcdctl_environment() -> str:
    """Return what the guide has a shell for etcdctl told."""
    return Printed([Claim("", "cluster.md", ETCD, ("export ETCDCTL",))]).take().text


def add_member(site: Site, machine: GuideMachine, printed: Printed) -> None:
    """Have *machine* be a member of etcd in place of a lost one, as the guide says."""
    for beginning in ("ssh-keygen", *("scp",) * 3):
        site["gamma"].shell(f"cd ca; {printed.take(beginning).text}")
        if beginning == "ssh-keygen":
            know_hosts(site["gamma"])
    places = ("install", "apt-get", "rm client.key", "name=alpha")
    known = Printed([Claim("", "cluster.md", ETCD, places)])
    for each in known.rest():
        own_text = own(each.text, machine.name) if "name=" in each.text else each.text
        machine.shell(own_text)
    for beginning in ("echo", "systemctl stop", "rm -rf", "systemctl start"):
        machine.type(printed.take(beginning))


def wait_copies(machine: GuideMachine, volume: str, count: int) -> None:
    """Return when *count* nodes have the newest commit of *volume*."""
    wanted = f"{count} of {count} copies"
    wait_until(
        lambda: wanted in machine.shell(f"remora inspect {volume}", check=False),
        timeout_s=RUN_S,
        what=f"{volume} has {wanted}",
        evidence=lambda: machine.shell(f"remora inspect {volume}", check=False),
        interval_s=0.5,
    )


def until(machine: GuideMachine, command: str, met: Callable[[str], object]) -> None:
    """Return when what *command* prints meets that."""
    wait_until(
        lambda: met(machine.shell(command, check=False)),
        timeout_s=RUN_S,
        what=command,
        evidence=lambda: machine.shell(command, check=False),
        interval_s=0.5,
    )
