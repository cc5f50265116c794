"""
The guide to a cluster, docs/guides/cluster.md, done as it says, command by command.

Its text is the program: only addresses, paths and the names of programs are replaced.
systemd's part (environment files, starting, stopping) is done by hand.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.protocol import node
from tests.support import etcd, peers
from tests.support.host import REPOSITORY
from tests.support.owners import WAIT_S, Owner

pytestmark = pytest.mark.xdist_group("guide")
GUIDE = (REPOSITORY / "docs/guides/cluster.md").read_text()
NAMES = ("alpha", "beta", "gamma")
RUN_S = 60


def blocks(language: str) -> list[str]:
    """Return the guide's blocks in *language*."""
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)


def commands(*begin: str) -> list[str]:
    """Return the commands that are typed and begin with these words, each one line."""
    text = "\n".join(blocks("console")).replace("\\\n", " ")
    typed = re.findall(r"^# (.*)$", text, re.MULTILINE)
    found = [each for each in typed if each.split()[: len(begin)] == [*begin]]
    assert found, f"the guide does not say {' '.join(begin)}"
    return found


def columns(line: str) -> list[str]:
    return re.split(r" {2,}", line.strip())


class Site:
    """Three machines below *directory*, for whom the guide's commands are changed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.addresses = {name: etcd.new_address() for name in NAMES}
        self._members: list[subprocess.Popen[bytes]] = []

    def changed(self, text: str, name: str = "alpha") -> str:
        """Return *text* of the guide for the machine *name*."""
        for number, address in enumerate(self.addresses.values(), start=1):
            text = text.replace(f"10.0.0.{number}", address)
        here = self.directory / name
        for path in ("/etc/remora", "/etc/etcd", "/etc/default"):
            text = text.replace(path, f"{here}{path}")
        return text

    def shell(self, script: str, *, check: bool = True) -> str:
        """Return what *script* prints, run beside the authority's key."""
        done = subprocess.run(
            ["sh", "-euc", script],
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=RUN_S,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def prepare(self, name: str) -> None:
        """Do what the guide says before etcd is started on the machine *name*."""
        (self.directory / name / "etc/default").mkdir(parents=True)
        for command in commands("install"):
            # Its user is there with its package only.
            own = command.replace("-o etcd -g etcd ", "").replace("alpha.", f"{name}.")
            self.shell(self.changed(own, name))
        _, settings = blocks("sh")
        first, rest = settings.split("\n", 1)
        assert first == "name=alpha address=10.0.0.1"
        first = f"name={name} address={self.addresses[name]}"
        self.shell(f"{first}\n{self.changed(rest, name)}")

    def start(self, name: str) -> None:
        """Start etcd as systemd does, with the machine's environment file."""
        here = self.directory / name
        lines = (here / "etc/default/etcd").read_text().splitlines()
        with (here / "log").open("wb") as log:
            self._members.append(
                subprocess.Popen(
                    ["setpriv", "--pdeathsig", "KILL", "--", "etcd"],
                    env={
                        "PATH": node.SYSTEM_PATH,
                        "ETCD_DATA_DIR": str(here / "data"),
                        **dict(line.split("=", 1) for line in lines),
                    },
                    stdout=log,
                    stderr=log,
                )
            )

    def healthy(self) -> bool:
        """Return whether the guide's question finds all members well."""
        [question] = commands("ETCDCTL_API=3", "etcdctl")
        answer = self.shell(self.changed(question), check=False)
        return answer.count("is healthy") == len(NAMES)

    def close(self) -> None:
        for member in self._members:
            member.kill()
            member.wait(timeout=10)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if lacks := node.missing() or ("" if shutil.which("openssl") else "openssl"):
        pytest.skip(f"needs {lacks}")
    peers.require_programs()
    directory = etcd.memory_directory(tmp_path_factory.mktemp("guide"))
    with closing(Site(directory)) as made:
        certificates, _ = blocks("sh")
        made.shell(made.changed(certificates))
        for name in NAMES:
            made.prepare(name)
        for name in NAMES:
            made.start(name)
        etcd.wait_until(made.healthy, "all members are well")
        yield made


@pytest.fixture
def machines(site: Site) -> Iterator[tuple[Owner, Owner]]:
    """Yield two machines with the daemon installed, which does not run."""
    made = []
    try:
        for name in NAMES[:2]:
            address = site.addresses[name]
            nobody = etcd.Cluster([])
            machine = Owner(name, nobody, "/remora/", peer_address=address)
            made.append(machine)
            alone = machine.config.read_text().replace("etcd = []\n", "")
            machine.config.write_text(alone)
        yield made[0], made[1]
    finally:
        for each in made:
            each.close()


def remora(machine: Owner, site: Site, command: str) -> str:
    """Return what the guide's *command* prints on *machine*."""
    program, *arguments = shlex.split(site.changed(command, machine.name))
    assert program == "remora"
    done = subprocess.run(
        machine.inside(*machine.remora(*arguments)),
        env=machine.environment(),
        capture_output=True,
        text=True,
        timeout=RUN_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_from_one_machine_to_a_cluster(
    site: Site, machines: tuple[Owner, Owner]
) -> None:
    alpha, beta = machines
    alpha.start()
    alpha.create("db")
    target = alpha.mount("db")
    alpha.run("sh", "-c", f"echo precious > {target}/file")
    alpha.unmount("db")
    assert alpha.stop() == 0

    [join] = commands("remora", "cluster", "join")
    remora(alpha, site, join)
    [section] = blocks("toml")
    written = tomllib.loads(alpha.config.read_text())["cluster"]
    wanted = tomllib.loads(site.changed(section))["cluster"]
    assert written.items() >= wanted.items()
    alpha.start()
    alpha.wait_member()
    assert alpha.run("cat", str(alpha.mount("db") / "file")) == "precious\n"
    alpha.unmount("db")

    remora(beta, site, join)
    beta.start()
    beta.wait_member()
    beta.wait_known("db")
    beta.create("other")
    target = beta.mount("other")
    beta.run("sh", "-c", f"echo there > {target}/file")
    beta.unmount("other")
    alpha.wait_known("other")
    node.wait_until(
        lambda: not beta.call("Mount", {"Name": "db", "ID": "x"}).error,
        "beta has the data of alpha's volume",
        timeout_s=WAIT_S,
    )
    assert beta.run("cat", f"{beta.get('db')['Mountpoint']}/file") == "precious\n"
    beta.unmount("db", "x")
    node.wait_until(
        lambda: alpha.control_ok("GET", "/v1/nodes/beta")["state"] == "ready",
        "alpha sees beta ready",
        timeout_s=WAIT_S,
    )

    check_shown(alpha, site)


def check_shown(alpha: Owner, site: Site) -> None:
    """What is shown is what the guide shows."""
    [listed] = commands("remora", "node", "ls")
    shown = remora(alpha, site, listed).splitlines()
    example = GUIDE.partition(f"# {listed}\n")[2].splitlines()
    assert columns(shown[0]) == columns(example[0])
    assert columns(shown[1])[:4] == columns(site.changed(example[1]))[:4]
    assert [columns(each)[:2] for each in shown[1:]] == [
        ["alpha*", "ready"],
        ["beta", "ready"],
    ]
    for command in ("remora cluster status", "remora doctor"):
        remora(alpha, site, command)
