"""What Prometheus is told of transfers, read at the moment of a scrape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from plugin.replication.node import ReplicationNode
from plugin.replication.progress import Direction

_DIRECTIONS: Final[tuple[Direction, ...]] = get_args(Direction)


class ReplicationCollector(Collector):
    """Labels are directions, and the names of volumes that are mounted here."""

    def __init__(self, replication: ReplicationNode) -> None:
        self._replication = replication

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        yield from self._under_way()
        yield from self._carried()
        yield from self._paused()
        ages = GaugeMetricFamily(
            "remora_last_sync_age_seconds",
            "Time since another node got, or had, the newest commit of a volume that "
            "is mounted here.",
            labels=["volume"],
        )
        for name, age_s in self._replication.sync_ages_s().items():
            ages.add_metric([name], age_s)
        yield ages
        left_out = GaugeMetricFamily(
            "remora_left_out_of_group",
            "1 for each volume that is mounted here and was left out of the last "
            "moment of its group; remora inspect says why.",
            labels=["volume"],
        )
        for name in self._replication.left_out():
            left_out.add_metric([name], 1)
        yield left_out
        failed = GaugeMetricFamily(
            "remora_sync_failed",
            "1 for each volume that is mounted here and cannot be committed; "
            "remora status says why.",
            labels=["volume"],
        )
        for name in self._replication.failures():
            failed.add_metric([name], 1)
        yield failed

    def _paused(self) -> Iterator[Metric]:
        lengths = GaugeMetricFamily(
            "remora_pause_seconds",
            "How long containers of a volume that is mounted here stood still for a "
            "commit: quantiles of the last hundred.",
            labels=["volume", "quantile"],
        )
        for name, facts in self._replication.pauses().items():
            if facts.count:
                lengths.add_metric([name, "0.5"], facts.p50_ms / 1000)
                lengths.add_metric([name, "0.99"], facts.p99_ms / 1000)
        yield lengths

    def _under_way(self) -> Iterator[Metric]:
        count = GaugeMetricFamily(
            "remora_transfers", "Transfers under way.", labels=["direction"]
        )
        size = GaugeMetricFamily(
            "remora_transfer_bytes",
            "Bytes of the files in the transfers under way: done, and in all.",
            labels=["direction", "kind"],
        )
        transfers = self._replication.progress.under_way()
        for direction in _DIRECTIONS:
            done = [each.done for each in transfers if each.direction == direction]
            count.add_metric([direction], len(done))
            size.add_metric([direction, "done"], sum(each.done_bytes for each in done))
            size.add_metric(
                [direction, "total"], sum(each.total_bytes for each in done)
            )
        yield from (count, size)

    def _carried(self) -> Iterator[Metric]:
        size = CounterMetricFamily(
            "remora_replication_bytes",
            "Bytes on the line to and from other nodes.",
            labels=["direction"],
        )
        commits = CounterMetricFamily(
            "remora_replication_commits",
            "Commits of volumes that other nodes got, or that came from them.",
            labels=["direction"],
        )
        for direction in _DIRECTIONS:
            carried = self._replication.progress.carried(direction)
            size.add_metric([direction], carried.size_bytes)
            commits.add_metric([direction], carried.commits)
        yield from (size, commits)
