"""The benchmarks run and give every figure; what the figures are is not tested."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.bench import csi, fairness
from tests.bench.figures import percentile, ratio, turns
from tests.bench.large.database import Load, within
from tests.bench.mirrors import PlainRsync
from tests.bench.report import MISSED, REACHED, UNCLEAR, Target, row, tables
from tests.bench.subjects import CONTENT_LENGTH, Rclone
from tests.protocol import node
from tests.support import engine as engine_support
from tests.support import images
from tests.support.host import REPOSITORY
from tests.support.ssh_server import ssh_server

pytestmark = pytest.mark.xdist_group("bench")

KEYS = {
    *("path", "get", "list", "create", "mount", "unmount", "remove"),
    *("list-many", "get-many", "start-empty", "start-many"),
    *(
        f"memory-{state}-{moment}-{kind}"
        for state in ("empty", "many")
        for moment in ("start", "calls")
        for kind in ("rss", "pss")
    ),
    *("pair-api", "pair-cli", "run-api", "run-cli"),
    *("io-write", "io-read-cold", "io-read-cached", "io-create", "io-stat"),
    *("io-unlink", "io-synced-write"),
}


def test_a_quick_run_gives_every_row(tmp_path) -> None:
    if missing := engine_support.missing() or Rclone.missing():
        pytest.skip(f"needs {missing}")
    result_path = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", "--quick", "--json", str(result_path)],
        cwd=REPOSITORY,
        env={**os.environ, "REMORA_BENCH_IMAGES": "/dev/shm"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(result_path.read_text())
    rows = {each["key"]: each for each in result["rows"]}
    assert rows.keys() == KEYS
    assert all(each["spreads"]["remora"]["p50"] > 0 for each in rows.values())
    compared = {"local", "no-op", "rclone", "remora"}
    assert rows["run-cli"]["spreads"].keys() == compared
    assert "missing" not in result["machine"].values()
    assert "volume create + rm, CLI" in done.stdout


def test_a_percentile_is_a_sample() -> None:
    assert percentile(range(1, 101), 0.99) == 99
    assert percentile([3.0], 0.99) == 3.0


def test_a_ratio_lies_in_its_interval() -> None:
    found = ratio([2.0, 2.2, 1.8, 2.1], [1.0, 1.0, 1.1, 0.9])
    assert found.value == pytest.approx(2.05)
    assert found.low <= found.value <= found.high


def test_every_subject_begins_as_often() -> None:
    assert list(turns("ab", 3)) == [["a", "b"], ["b", "a"], ["a", "b"]]


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [([1.0] * 9, REACHED), ([9.0, 1.0] * 5, UNCLEAR), ([9.0] * 9, MISSED)],
)
def test_a_ratio_is_missed_only_beyond_its_interval(ours, verdict) -> None:
    samples = {"remora": ours, "local": [1.0] * len(ours)}
    found = row("section", "key", "what", samples, target=Target(ratio_max=1.15))
    assert found.verdict == verdict
    assert f"| {verdict} " in tables([found])


def test_speeds_are_compared_the_other_way_round() -> None:
    samples = {"remora": [1.0, 1.0], "local": [2.0, 2.0]}
    found = row("section", "key", "what", samples, of_speeds=True)
    assert found.ratios["remora : local"].value == 2.0


def test_the_end_of_an_answer_is_found_by_its_length() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: a\r\nContent-Length: 2\r\nDate: b\r\n"
    assert CONTENT_LENGTH.search(head) is None
    found = CONTENT_LENGTH.search(head + b"\r\n{}")
    assert int(found[1]) == 2
    assert found.end() == len(head) + 2


def test_turns_are_measured() -> None:
    longest, median = fairness.measure(20, 4, life_s=25)
    assert longest >= median > 0


def quick_rows(module: str, *arguments: str, timeout_s: float) -> list[str]:
    """Return the rows of the tables that a quick run of *module* prints."""
    done = subprocess.run(
        [sys.executable, "-m", module, "--quick", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("| ")]


def test_a_quick_run_in_a_cluster_gives_every_row() -> None:
    if missing := node.missing() or ("" if shutil.which("etcd") else "etcd"):
        pytest.skip(f"needs {missing}")
    rows = quick_rows("tests.bench.cluster", timeout_s=180)
    begins = [each.split("|")[1].strip() for each in rows[1:]]
    assert begins == ["mount", "second mount", "second unmount", "unmount"]


def test_a_quick_run_between_nodes_gives_every_row() -> None:
    if missing := node.missing() or ("" if shutil.which("etcd") else "etcd"):
        pytest.skip(f"needs {missing}")
    rows = quick_rows("tests.bench.peers", timeout_s=180)
    begins = [each.split("|")[1].strip() for each in rows]
    assert [each for each in begins if each.startswith("a call")] == [
        "a call, one after the other",
        "a call beside a transfer that fills the line",
    ]
    assert "sshd" in begins
    assert "together" in begins


def test_a_quick_run_with_many_volumes_gives_every_row() -> None:
    if missing := node.missing() or ("" if shutil.which("etcd") else "etcd"):
        pytest.skip(f"needs {missing}")
    rows = quick_rows("tests.bench.scale", timeout_s=180)
    begins = [each.split("|")[1].strip() for each in rows]
    assert "at rest: etcd's transactions a second" in begins
    assert begins[-1].startswith("leases ended") or begins[-1].startswith("warning: ")
    [never] = [each for each in rows if "never copied" in each]
    assert never.endswith("| 0 |")


@pytest.mark.long
def test_a_quick_run_on_nfs_gives_every_row() -> None:
    rows = quick_rows("tests.bench.nfs", timeout_s=300)
    begins = [each.split("|")[1].split()[:1] for each in rows[1:]]
    assert begins == [["mount"], ["write"], ["read"], ["create"]]


def test_time_without_a_commit_counts_up_to_the_end_of_the_work() -> None:
    load = Load(10.0, 20.0, rate=1.0, p50_ms=1.0, p99_ms=1.0)
    assert within([9.0, 13.0, 15.0, 21.0], load) == [3.0, 2.0, 5.0]
    assert within([], load) == [10.0]


def test_a_peer_copies_what_changed_twice_within_a_second(tmp_path) -> None:
    source, member = tmp_path / "source", tmp_path / "member"
    source.mkdir()
    member.mkdir()
    file = source / "file"
    with ssh_server(tmp_path / "sshd") as server:
        peer = PlainRsync(source, member, server)
        for moment_ns, content in enumerate((b"one", b"two")):
            file.write_bytes(content)
            os.utime(file, ns=(0, moment_ns))
            peer.follow()
            assert (peer.copy / "file").read_bytes() == content


def large_rows(*arguments: str) -> list[str]:
    """Return how each row of a quick run with large files begins."""
    if missing := node.missing() or ("" if shutil.which("etcd") else "etcd"):
        pytest.skip(f"needs {missing}")
    rows = quick_rows("tests.bench.large", *arguments, timeout_s=300)
    return [each.split("|")[1].strip() for each in rows]


def test_a_quick_run_with_a_large_file_gives_every_row() -> None:
    begins = large_rows("--case", "file", "--filesystem", "xfs")
    assert {"rsync", "rsync --inplace", "remora", "seconds"} <= {*begins}
    assert begins[-2:] == ["written at the member", "syncs in each round"]


@pytest.mark.long
def test_a_quick_run_with_trees_gives_every_row() -> None:
    for kind in ("btrfs", "ext4"):
        begins = large_rows("--case", "chown", "--filesystem", kind)
        assert {"rsync", "remora", "on the line"} <= {*begins}
        begins = large_rows("--case", "first", "--filesystem", kind)
        assert begins[-1] == "speed"


@pytest.mark.long
def test_a_quick_run_with_a_database_gives_every_row() -> None:
    if missing := images.missing():
        pytest.skip(f"needs {missing}")
    begins = large_rows("--case", "database", "--filesystem", "btrfs")
    assert {"unreplicated", "replicated", "first copy", "throughput"} <= {*begins}
    assert begins[-1] == "orderly move, our part"
    begins = large_rows("--case", "pause")
    assert begins[-1] == "not built" or begins[-1].startswith("p99 of ")


def test_csi_is_measured() -> None:
    if missing := node.missing():
        pytest.skip(f"needs {missing}")
    rows = {each.key for each in csi.measure(csi.QUICK_ROUNDS)}
    assert rows == {
        f"csi-{each}" for each in ("pair", "publish", "unpublish", "memory", "daemon")
    }
