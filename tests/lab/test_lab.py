"""The lab itself: what the other tests here rely on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.lab.channel import NodeDownError
from tests.lab.disks import Disk
from tests.lab.lab import WORK_ROOT, Lab, Topology, processes_of, sweep_leftovers
from tests.lab.node import Node, NodeSpec
from tests.support.host import PYTHON_ENVIRONMENT, REPOSITORY, wait_until

DISKS = (
    Disk("xfs", at="/disks/xfs", options="prjquota"),
    Disk("btrfs", at="/disks/btrfs"),
    Disk("ext4", at="/disks/ext4"),
)
TOPOLOGY = Topology.of(NodeSpec("alpha", disks=DISKS), "beta", "gamma")


def reaches(node: Node, other: str, *, within_s: int = 10) -> bool:
    """Return whether *other*, a name or an address, answers a ping from *node*."""
    argv = ["ping", "-c1", f"-w{within_s}", other]
    return node.run(argv, check=False).returncode == 0


def silent(node: Node, other: str) -> bool:
    """Return whether *node* hears nothing from *other*."""
    return not reaches(node, other, within_s=1)


# Commands


def test_a_command_returns_what_it_printed_and_how_it_ended(lab: Lab) -> None:
    done = lab["alpha"].run(
        "cat; echo $WORD; echo bad >&2; exit 3",
        check=False,
        stdin=b"in\n",
        env={"WORD": "a b"},
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "in\na b\n", "bad\n")
    assert lab["alpha"].run("kill -9 $$", check=False).returncode == -9
    with pytest.raises(AssertionError, match=r"(?s)exit 1.*why"):
        lab["alpha"].run("echo why >&2; false")
    with pytest.raises(AssertionError, match="FileNotFoundError"):
        lab["alpha"].run(["no-such-program"])


def test_much_output_and_input_get_through(lab: Lab) -> None:
    data = os.urandom(2**22)
    lab["alpha"].put(data, "/data/big/file", mode=0o600)
    assert lab["alpha"].get("/data/big/file") == data
    assert lab["alpha"].out("stat -c %a /data/big/file; rm /data/big/file") == "600"
    text = lab["alpha"].run("seq 200000").stdout
    assert text == "".join(f"{n}\n" for n in range(1, 200001))


def test_a_command_over_its_deadline_is_killed_with_its_children(lab: Lab) -> None:
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        lab["alpha"].run("echo begun; sleep 1234 & sleep 1234", timeout_s=0.5)
    assert caught.value.output == "begun\n"
    assert lab["alpha"].run("pgrep -fx 'sleep 1234'", check=False).stdout == ""


def test_commands_do_not_wait_for_each_other(lab: Lab) -> None:
    alpha = lab["alpha"]
    background = alpha.popen("echo first; sleep 1234")
    assert background.poll() is None
    assert alpha.out("echo second") == "second"
    # Each of these ends only when all of them run.
    meet = "cd /tmp; touch met$N; until [ -e met0 -a -e met1 ]; do sleep 0.1; done"
    with ThreadPoolExecutor() as pool:
        met = [pool.submit(alpha.run, meet, env={"N": str(n)}) for n in range(2)]
        assert [each.result().returncode for each in met] == [0, 0]
    assert background.output() == "first\n"
    background.kill()
    assert background.wait(10) == -9


# Machines


def test_every_node_is_a_machine_of_its_own(lab: Lab) -> None:
    told = [
        node.out("hostname; cat /etc/machine-id /proc/sys/kernel/random/boot_id")
        for node in lab.nodes.values()
    ]
    hostnames, *ids = zip(*(each.split("\n") for each in told), strict=True)
    assert hostnames == ("alpha", "beta", "gamma")
    assert all(len(set(each)) == 3 for each in ids)
    marker = Path("/usr/remora-lab-marker")
    lab["alpha"].run(["touch", str(marker)])
    assert not marker.exists()
    assert lab["beta"].run(["test", "-e", str(marker)], check=False).returncode == 1
    # The code under test and its interpreter are visible at their own paths.
    lab["alpha"].run(["test", "-e", str(REPOSITORY / "pyproject.toml")])


def test_disks_have_what_their_filesystems_are_wanted_for(lab: Lab) -> None:
    alpha = lab["alpha"]
    kinds = {each.mount_point: each.fs_type for each in alpha.mounts("/disks")}
    assert kinds == {disk.at: disk.kind for disk in DISKS}
    assert "prjquota" in alpha.out("grep /disks/xfs /proc/mounts")
    for kind in ("xfs", "btrfs"):
        alpha.run(f"cd /disks/{kind}; echo x >a; sync; cp --reflink=always a b")
    # The engine's and the daemon's data are not on the overlay.
    kinds = {each.mount_point: each.fs_type for each in alpha.mounts("/var/lib")}
    assert kinds == {"/var/lib/docker": "ext4", "/var/lib/remora": "ext4"}


# Network


@pytest.mark.parametrize("other", ["beta", "beta-6", "10.77.0.3", "fd77::3"])
def test_nodes_reach_each_other(lab: Lab, other: str) -> None:
    assert reaches(lab["alpha"], other)


def test_nothing_outside_the_lab_can_be_reached(lab: Lab) -> None:
    done = lab["alpha"].run(["ping", "-c1", "-W1", "192.0.2.1"], check=False)
    assert "unreachable" in done.stderr


def test_a_cut_node_hears_and_says_nothing_until_it_is_healed(lab: Lab) -> None:
    alpha, beta = lab["alpha"], lab["beta"]
    beta.cut()
    assert silent(alpha, "beta")
    assert silent(alpha, "beta-6")
    assert silent(beta, "gamma")
    assert reaches(alpha, "gamma")
    # Its own network is up as far as it can see, and commands get through.
    assert "state DOWN" not in beta.out("ip link show vec0")
    # Neither does a boot bring it back.
    beta.power_off()
    beta.boot()
    assert silent(alpha, "beta")
    beta.heal()
    assert reaches(alpha, "beta")
    assert reaches(beta, "gamma")


def test_two_separated_nodes_still_see_the_third(lab: Lab) -> None:
    alpha, beta = lab["alpha"], lab["beta"]
    lab.separate(alpha, beta)
    assert silent(alpha, "beta")
    assert reaches(alpha, "gamma")
    assert reaches(beta, "gamma")
    lab.heal()
    assert reaches(alpha, "beta")


# Power


def test_after_a_power_failure_only_what_was_synced_is_there(lab: Lab) -> None:
    alpha, beta = lab["alpha"], lab["beta"]
    write = "import os, sys; f = open(sys.argv[1], 'wb'); f.write(b'kept'); f.flush(); "
    for path in ("/data/kept", "/etc/kept", *(f"{disk.at}/kept" for disk in DISKS)):
        alpha.run(["/usr/bin/python3", "-c", write + "os.fsync(f.fileno())", path])
    alpha.run("echo lost > /data/lost; echo lost > /run/lost")
    process = alpha.popen("sleep 1234")
    before = alpha.out("cat /proc/sys/kernel/random/boot_id /etc/machine-id").split()
    alpha.power_off()
    assert processes_of(alpha.work) == []
    assert silent(beta, "alpha")
    with pytest.raises(NodeDownError):
        alpha.run("true")
    with pytest.raises(NodeDownError):
        process.wait()
    alpha.boot()
    for path in ("/data/kept", "/etc/kept", *(f"{disk.at}/kept" for disk in DISKS)):
        assert alpha.get(path) == b"kept"
    assert alpha.run("cat /data/lost /run/lost", check=False).stdout == ""
    after = alpha.out("cat /proc/sys/kernel/random/boot_id /etc/machine-id").split()
    assert (before[0] == after[0], before[1] == after[1]) == (False, True)
    assert reaches(beta, "alpha")


def test_what_an_earlier_boot_printed_is_not_printed_again(lab: Lab) -> None:
    """Its files are still there for who reads them."""
    alpha = lab["alpha"]
    before = [alpha.popen(["sh", "-c", "echo before; sleep 100"]) for _ in range(40)]
    wait_until(
        lambda: all(each.output() == "before\n" for each in before),
        timeout_s=30,
        what="all have printed",
    )
    alpha.power_off()
    alpha.boot()
    assert {alpha.out(["echo", "after"]) for _ in range(60)} == {"after"}
    assert before[-1].output() == "before\n"


def test_a_kernel_that_panics_is_noticed_and_can_be_booted_again(lab: Lab) -> None:
    gamma = lab["gamma"]
    with pytest.raises(NodeDownError):
        gamma.run("echo c > /proc/sysrq-trigger")
    wait_until(lambda: not gamma.powered, timeout_s=10, what="the kernel has ended")
    assert "panic" in gamma.console.read_text()
    lab.restore()
    assert reaches(lab["beta"], "gamma")


# Nothing is left

OTHER_LAB = """
import sys
from tests.lab.lab import Lab, Topology
lab = Lab(Topology.of("alpha"))
lab.boot()
print(lab.work, lab.network_namespace, flush=True)
sys.stdin.read()
lab.close()
"""


def other_lab() -> tuple[subprocess.Popen[str], Path, str]:
    """Return a process with a lab, the lab's work directory and its network's id."""
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER_LAB],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=PYTHON_ENVIRONMENT,
        cwd="/",
        text=True,
    )
    assert process.stdout is not None
    work, _, namespace = process.stdout.readline().strip().partition(" ")
    return process, Path(work), str(Path(namespace).readlink())


def members_of(network: str) -> list[str]:
    """Return the processes in the network namespace *network*."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if str((directory / "ns/net").readlink()) == network:
                found.append(directory.name)
        except OSError:
            continue
    return found


@pytest.mark.parametrize("end", ["orderly", "killed"])
def test_nothing_is_left_of_a_lab(end: str) -> None:
    process, work, network = other_lab()
    with process:
        try:
            assert work.parent == WORK_ROOT
            assert processes_of(work)
            assert members_of(network)
            sweep_leftovers()
            assert (work / "alpha/disk0").exists()
            if end == "killed":
                process.send_signal(signal.SIGKILL)
            else:
                process.stdin.close()
            process.wait(timeout=30)
        finally:
            process.kill()
    wait_until(
        lambda: not processes_of(work) and not members_of(network),
        timeout_s=10,
        what="every process has ended",
        evidence=lambda: (processes_of(work), members_of(network)),
    )
    sweep_leftovers()
    assert not work.exists()
    loops = subprocess.run(
        ["losetup", "-a"], capture_output=True, text=True, check=True
    )
    assert str(WORK_ROOT) not in loops.stdout


def test_the_interactive_lab_runs_commands() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.lab", "--nodes", "alpha", "--no-server"],
        input="alpha uname -r; hostname\ncut alpha\nheal\nnonsense\nalpha false\n",
        env=PYTHON_ENVIRONMENT,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for expected in ("alpha\n", "nonsense", "exit 1"):
        assert expected in done.stdout
