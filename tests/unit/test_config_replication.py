"""The section [replication]: sizes and numbers, and every fault in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from plugin.config import ReplicationConfig
from tests.unit.test_config import faults_of, read


@pytest.mark.parametrize("limit", ["", "0", " 0 "])
def test_no_limit_is_none(tmp_path: Path, limit: str) -> None:
    config = read(tmp_path, f'[replication]\nbandwidth_limit = "{limit}"')
    assert config.replication == ReplicationConfig()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('bandwidth_limit = "fast"', "'fast' must be a size from 64KiB to 1TiB"),
        ('bandwidth_limit = "1K"', "'1K' must be a size from 64KiB"),
        ('bandwidth_limit = "2T"', "'2T' must be a size"),
        ("bandwidth_limit = 5", "[replication] bandwidth_limit: "),
        ("nice = 20", "[replication] nice: "),
        ("nice = -1", "[replication] nice: "),
        ("nice = true", "[replication] nice: "),
        ("limit = 1", "[replication] limit: unknown key (valid: bandwidth_limit, "),
    ],
)
def test_a_fault_of_replication_is_one_clear_line(
    tmp_path: Path, text: str, fault: str
) -> None:
    (told,) = faults_of(tmp_path, f"[replication]\n{text}", {})
    assert fault in told
