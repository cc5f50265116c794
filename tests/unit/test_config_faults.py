"""What a faulty configuration is told: in one line, what to write instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.test_config import faults_of


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('etcd = ["10.0.0.1:2379"]', "etcd: '10.0.0.1:2379' must be http://"),
        ('etcd = "http://a:1"', "[cluster] etcd: "),
        ('replace_after = "soon"', "replace_after: must be a duration such as 30m"),
        ('etcd_prefix = "remora"', "etcd_prefix: must begin and end"),
        ('node_name = "a b"', "node_name: 'a b' is not a node's name"),
        ('etcd_key_file = "/k"', "belong together"),
        ('etcd_user = "u"', "etcd_user needs an etcd_password_file"),
        ('peer_address = "host"', "peer_address: 'host' is not an IP address"),
        (
            "lease_ttl_s = 7.9",
            "[cluster] lease_ttl_s: must be a number of seconds from 8 to 300, not 7.9",
        ),
        (
            'lease_ttl_s = "8"',
            'lease_ttl_s: must be a number of seconds from 8 to 300, not "8"',
        ),
        ("peer_port = 0", "peer_port: must be a whole number from 1 to 65535, not 0"),
        ("failsafe = 1", "failsafe: must be true or false, not 1"),
        ("node_name = 5", 'node_name: must be a text in quotes ("…"), not 5'),
        (
            'etcd = "http://a:1"',
            'etcd: must be a list of texts (["…", "…"]), not "http',
        ),
        ("colour = 1", "[cluster] colour: unknown key (valid: etcd, "),
    ],
)
def test_a_fault_of_the_cluster_is_one_clear_line(
    tmp_path: Path, text: str, fault: str
) -> None:
    (told,) = faults_of(tmp_path, f"[cluster]\n{text}", {})
    assert fault in told


def test_a_section_that_stands_there_twice_is_told_with_its_lines(
    tmp_path: Path,
) -> None:
    """A guide's example was appended to the installed file, which has all sections."""
    text = "[daemon]\n\n [ cluster ] # of the file\n[swarm]\n[cluster]\nfailsafe = true"
    (told,) = faults_of(tmp_path, text, {})
    assert told.endswith(
        "/remora.toml cannot be read: [cluster] stands in it more than once "
        "(lines 3, 5): put all keys below the first one"
    )
    (told,) = faults_of(tmp_path, "[profiles.a]\n[profiles.a]", {})
    assert "[profiles.a] stands in it more than once (lines 1, 2)" in told
