"""What Prometheus reads, from a real daemon."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.protocol import client
from tests.protocol.node import Node, running

pytestmark = pytest.mark.xdist_group("unit-metrics")
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def node(port: int) -> Iterator[Node]:
    with running(metrics_address=f"127.0.0.1:{port}") as found:
        yield found


def parse(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(node: Node) -> Samples:
    answer = node.control("GET", "/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return parse(answer.body.decode())


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, frozenset(labels.items())), 0.0)


def test_calls_are_counted_by_their_outcome(node: Node) -> None:
    before = scrape(node)
    node.create("counted")
    node.refused("Mount", Name="none", ID="a")
    node.refused("Create", Name="../x")
    node.ok("Remove", Name="counted")
    after = scrape(node)

    def grown(operation: str, code: str) -> float:
        labels = {"socket": "plugin", "operation": operation, "code": code}
        return value(after, "remora_calls_total", **labels) - value(
            before, "remora_calls_total", **labels
        )

    assert grown("Create", "ok") == 1
    assert grown("Create", "invalid-request") == 1
    assert grown("Mount", "volume-not-found") == 1
    assert grown("Remove", "ok") == 1
    labels = {"socket": "plugin", "operation": "Create"}
    count = value(after, "remora_call_duration_seconds_count", **labels)
    assert count == value(
        after, "remora_call_duration_seconds_bucket", le="+Inf", **labels
    )
    assert 0 < value(after, "remora_call_duration_seconds_sum", **labels) < 60


def test_paths_that_are_none_make_no_labels(node: Node) -> None:
    before = {name for name, _ in scrape(node)}
    for number in range(20):
        node.send(client.engine_request(f"VolumeDriver.Made{number}", b"{}"))
    after = scrape(node)
    assert {name for name, _ in after} == before
    unknown = {"socket": "plugin", "operation": "unknown", "code": "http"}
    assert value(after, "remora_calls_total", **unknown) >= 20
    assert not [key for key in after if "Made" in str(key)]


def test_volumes_mounts_and_references(node: Node) -> None:
    node.create("one")
    node.create("two")
    for mount_id in ("a", "b"):
        node.ok("Mount", Name="one", ID=mount_id)
    samples = scrape(node)
    assert value(samples, "remora_volumes", backend="rsync") == 2
    assert value(samples, "remora_mounted_volumes") == 1
    assert value(samples, "remora_mount_references", kind="live") == 2
    node.send(client.engine_request("Plugin.Activate", b""))
    samples = scrape(node)
    assert value(samples, "remora_mount_references", kind="live") == 0
    assert value(samples, "remora_mount_references", kind="inherited") == 2
    assert value(samples, "remora_mounted_volumes") == 1
    for mount_id in ("a", "b"):
        node.ok("Unmount", Name="one", ID=mount_id)
    for name in ("one", "two"):
        node.ok("Remove", Name=name)
    samples = scrape(node)
    assert value(samples, "remora_volumes", backend="rsync") == 0
    assert value(samples, "remora_mounted_volumes") == 0


def test_storage_is_healthy_until_its_disk_is_gone(node: Node) -> None:
    def of_storage(name: str) -> dict[str, float]:
        return {
            dict(labels).get("kind", ""): number
            for (sample, labels), number in scrape(node).items()
            if sample == name and ("backend", "rsync") in labels
        }

    assert of_storage("remora_storage_healthy") == {"": 1}
    sizes = of_storage("remora_storage_bytes")
    assert 0 < sizes["available"] <= sizes["total"]
    hidden = node.pool.with_name("hidden")
    node.pool.rename(hidden)
    try:
        assert of_storage("remora_storage_healthy") == {"": 0}
        # The size of what lies below the missing disk would mislead.
        assert of_storage("remora_storage_bytes") == {}
    finally:
        hidden.rename(node.pool)


def test_the_daemon_tells_of_itself(node: Node) -> None:
    samples = scrape(node)
    assert [key for key in samples if key[0] == "remora_build_info"]
    assert 10e6 < value(samples, "process_resident_memory_bytes") < 150e6
    assert value(samples, "process_open_fds") > 5


def test_the_loopback_port_serves_metrics_and_nothing_else(
    node: Node, port: int
) -> None:
    def ask(method: str, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        try:
            connection.request(method, path, body=b"" if method == "POST" else None)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    status, text = ask("GET", "/metrics")
    assert status == 200
    assert value(parse(text), "remora_volumes", backend="rsync") == 0
    for method, path in (
        ("GET", "/"),
        ("GET", "/v1/volumes"),
        ("DELETE", "/v1/volumes/x"),
        ("POST", "/VolumeDriver.List"),
        ("POST", "/v1/repair"),
    ):
        assert ask(method, path)[0] == 404
    assert ask("POST", "/metrics")[0] == 405


def test_without_an_address_no_port_is_opened() -> None:
    with running() as node:
        inodes = {
            target.removeprefix("socket:[").rstrip("]")
            for target in node.run(
                "sh", "-c", f"readlink /proc/{node.process.pid}/fd/*; true"
            ).split()
            if target.startswith("socket:[")
        }
        listed = set()
        for table in ("tcp", "tcp6", "udp", "udp6"):
            text = node.run(
                "sh", "-c", f"cat /proc/{node.process.pid}/net/{table}; true"
            )
            listed |= {line.split()[9] for line in text.splitlines()[1:]}
        assert inodes
        assert not inodes & listed
