"""
A Debian that a real systemd has booted becomes a node, over SSH and without a network.

The tests are a story on one machine: each leaves it a node again.
"""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import enrolling
from tests.support.enrolling import NAME, PASSWORD, THERE, Site
from tests.support.host import wait_until

pytestmark = pytest.mark.xdist_group("enrolment")
CONFIGURATION = "/etc/remora/remora.toml"
MARK = "/usr/lib/remora/bundle"
QUIET = ("--yes", "--json")


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    if lacks := enrolling.missing():
        pytest.skip(f"needs {lacks}")
    with enrolling.site() as site:
        yield site


@pytest.fixture
def enrolled(site: Site) -> Site:
    """Return the site with the machine being a node."""
    site.enroll(*QUIET)
    return site


def main_pid(site: Site) -> str:
    show = ("systemctl", "show", "--value", "--property=MainPID", "remora.service")
    return site.machine.out(*show)


def steps(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """Return what each step had to do."""
    found: dict[str, str] = json.loads(done.stdout)["steps"]
    return found


def assert_lives(site: Site) -> None:
    assert site.nodes()[NAME]["alive"]
    status = json.loads(site.machine.out("remora", "status", "--json"))
    assert status["node"]["name"] == NAME


def test_a_dry_run_shows_everything_and_changes_nothing(site: Site) -> None:
    done = site.enroll("--dry-run")
    assert 'node_name = "beta"' in done.stdout
    assert "copy Remora" in done.stderr
    assert f"write /etc/remora/etcd/ca.pem, {CONFIGURATION}" in done.stderr
    for path in ("/usr/lib/remora", "/usr/bin/remora", "/etc/remora"):
        assert site.machine.run(["test", "-e", path], check=False).returncode == 1
    assert NAME not in site.nodes()


def test_nothing_is_done_unasked(site: Site) -> None:
    done = site.enroll(check=False)
    assert done.returncode == 28
    assert "--yes" in done.stderr
    assert site.machine.run(["test", "-e", MARK], check=False).returncode == 1


def test_yes_accepts_no_host_key(site: Site) -> None:
    done = site.host.run(
        site.command("--yes"), check=False, env=site.environment(), timeout_s=60
    )
    assert done.returncode == 28
    assert site.fingerprint in done.stderr
    assert "was not confirmed" in done.stderr


def test_an_administrator_with_sudo_enrols_it_at_a_terminal(site: Site) -> None:
    code, screen = site.at_terminal(
        [
            ("Is that right? [y/N]:", "y"),
            (f"password of admin on {THERE}:", PASSWORD),
            (f"sudo password on {THERE}:", PASSWORD),
            ("Do this? [y/N]:", "y"),
        ],
        *("--user", "admin"),
    )
    assert code == 0, screen
    assert site.fingerprint in screen
    assert PASSWORD not in screen
    assert screen.rstrip().endswith(NAME)
    assert_lives(site)
    enabled = site.machine.out(
        "systemctl", "is-enabled", "remora.socket", "remora.service"
    )
    assert enabled.split() == ["enabled", "enabled"]
    path = "/etc/remora/etcd/ca.pem"
    assert site.machine.out("stat", "-c", "%a %U", path) == "600 root"
    here = Path(enrolling.CLUSTER["etcd_ca_file"]).read_text()
    assert site.machine.run(["cat", path]).stdout == here


def test_a_repeat_has_nothing_to_do(enrolled: Site) -> None:
    before = main_pid(enrolled)
    done = steps(enrolled.enroll(*QUIET))
    assert done.pop("verify")
    assert set(done.values()) == {""}
    assert main_pid(enrolled) == before
    assert_lives(enrolled)


@pytest.mark.long
def test_another_configuration_is_shown_and_kept(enrolled: Site) -> None:
    before = enrolled.machine.out("cat", CONFIGURATION)
    wished = (*QUIET, "--address", THERE)
    refused = enrolled.enroll(*wished, check=False)
    assert refused.returncode == 28
    assert f'+peer_address = "{THERE}"' in refused.stderr
    assert "--force" in refused.stderr.splitlines()[-1]
    assert enrolled.machine.out("cat", CONFIGURATION) == before
    done = steps(enrolled.enroll(*wished, "--force"))
    assert done["configuration"] == f"write {CONFIGURATION}"
    assert done["remora"] == ""
    assert done["start"]
    assert enrolled.nodes()[NAME]["addresses"][0] == THERE
    # The next test's wish is the first one again.
    enrolled.enroll(*QUIET, "--force")


def test_a_taken_name_is_refused_before_anything(enrolled: Site) -> None:
    before = main_pid(enrolled)
    done = enrolled.enroll(*QUIET, "--name", "alpha", "--force", check=False)
    assert done.returncode == 28
    assert "the cluster has a node 'alpha'" in done.stderr
    assert main_pid(enrolled) == before


@pytest.mark.long
def test_a_killed_enrolment_is_mended_by_the_next(enrolled: Site) -> None:
    """Whatever step it was in; what lies half made beside the library is no matter."""
    machine = enrolled.machine
    for after in ("packages:", "remora:", "configuration:"):
        machine.run(["rm", MARK])
        machine.run(["sh", "-c", f"echo '# old' > {CONFIGURATION}"])
        machine.run(["mkdir", "-p", "/usr/lib/remora.new/left", "/usr/lib/remora.old"])
        log = enrolled.host.log_path(f"killed-{after[:-1]}")
        process = enrolled.host.popen(
            enrolled.command(
                *("--yes", "--host-key-fingerprint", enrolled.fingerprint)
            ),
            env=enrolled.environment(),
            log=log,
        )
        wait_until(
            lambda log=log, after=after: f"\n{after}" in log.read_text(),
            timeout_s=enrolling.DEADLINE_S,
            what=f"step {after} is done",
        )
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
        enrolled.host.forget(process)
        done = steps(enrolled.enroll(*QUIET))
        assert done["start"]
        assert_lives(enrolled)
        for left in ("/usr/lib/remora.new", "/usr/lib/remora.old"):
            assert machine.run(["test", "-e", left], check=False).returncode == 1
        assert machine.out("cat", MARK)


def test_the_new_node_can_enrol_others_with_the_same(enrolled: Site) -> None:
    """What it would copy is, byte for byte, what was copied to it."""
    program = "from plugin.enrolment.bundle import make; print(make().digest)"
    python = "/usr/lib/remora/bin/python3"
    machine = enrolled.machine
    assert machine.out(python, "-I", "-c", program) == machine.out("cat", MARK)


@pytest.mark.long
def test_a_daemon_that_cannot_start_says_why(enrolled: Site) -> None:
    machine = enrolled.machine
    machine.run(["sh", "-c", "echo REMORA_PEER_PORT=none > /etc/default/remora"])
    machine.run(["rm", MARK])
    done = enrolled.enroll(*QUIET, check=False)
    assert done.returncode == 28
    assert "REMORA_PEER_PORT" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    machine.run(["rm", "/etc/default/remora"])
    # systemd may have started it again by then.
    enrolled.enroll(*QUIET)
    assert_lives(enrolled)


@pytest.mark.long
def test_a_node_under_another_name_is_not_verified(enrolled: Site) -> None:
    machine = enrolled.machine
    machine.run(["sh", "-c", "echo REMORA_NODE_NAME=gamma > /etc/default/remora"])
    machine.run(["rm", MARK])
    done = enrolled.enroll(*QUIET, check=False)
    assert done.returncode == 28
    assert "Remora there is node 'gamma', not 'beta'" in done.stderr
    machine.run(["rm", "/etc/default/remora"])
    machine.run(["rm", MARK])
    enrolled.enroll(*QUIET)
    assert_lives(enrolled)


@pytest.mark.long
def test_missing_packages_come_from_apt(enrolled: Site) -> None:
    machine = enrolled.machine
    machine.run(["dpkg", "--purge", "nfs-common"])
    done = enrolled.enroll(*QUIET, check=False)
    assert done.returncode == 28
    assert "apt-get" in done.stderr
    assert "nfs-common" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    # Older than any: libraries of the machine break with it, and would have to go.
    add_repository(enrolled, "nfs-common", version="1")
    done = enrolled.enroll(*QUIET, check=False)
    assert done.returncode == 28
    assert "remove is disabled" in done.stderr
    add_repository(enrolled, "nfs-common", version="9:1")
    done = enrolled.enroll(*QUIET)
    assert steps(done)["packages"] == "apt-get install nfs-common"
    query = ("dpkg-query", "-W", "-f", "${Version}", "nfs-common")
    assert machine.out(*query) == "9:1"
    assert_lives(enrolled)


def add_repository(site: Site, package: str, *, version: str) -> None:
    """Give the machine's apt a repository with a *package* that has nothing in it."""
    script = Path(__file__).with_name("make_repository.sh").read_bytes()
    site.machine.run(["sh", "-s", package, version], stdin=script)
