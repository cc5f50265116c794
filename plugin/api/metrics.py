"""What Prometheus is told: calls as they happen, volumes and storage when asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from backends.errors import RemoraError
from backends.registry import Registry
from plugin import __version__
from plugin.membership.quarantine_records import QuarantineRecords
from plugin.replication.metrics import ReplicationCollector
from plugin.replication.node import ReplicationNode
from plugin.volumes.references import References
from plugin.volumes.views import VolumeViews

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 120)


class Metrics:
    """The daemon's metrics in a registry of their own."""

    def __init__(
        self,
        views: VolumeViews,
        registry: Registry,
        references: References,
        quarantine_records: QuarantineRecords,
        replication: ReplicationNode | None = None,
        *,
        hidden: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        """Let *hidden* tell by which of our names Docker means volumes of its own."""
        self._registry = CollectorRegistry()
        self._calls = Counter(
            "remora_calls_total",
            "Calls answered, by socket, operation and outcome code.",
            ["socket", "operation", "code"],
            registry=self._registry,
        )
        self._durations = Histogram(
            "remora_call_duration_seconds",
            "Time from a call's arrival to its answer.",
            ["socket", "operation"],
            buckets=_BUCKETS_S,
            registry=self._registry,
        )
        ProcessCollector(registry=self._registry)
        self._registry.register(
            _VolumeCollector(views, registry, references, quarantine_records, hidden)
        )
        if replication is not None:
            self._registry.register(ReplicationCollector(replication))

    def observe(
        self, *, socket: str, operation: str, code: str, duration_s: float
    ) -> None:
        """Count one answered call."""
        self._calls.labels(socket, operation, code).inc()
        self._durations.labels(socket, operation).observe(duration_s)

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)


@dataclass(frozen=True, slots=True, eq=False)
class _VolumeCollector(Collector):
    """Reads the gauges at the moment of a scrape."""

    views: VolumeViews
    registry: Registry
    references: References
    quarantine_records: QuarantineRecords
    hidden: Callable[[], Sequence[str]]

    def collect(self) -> Iterator[Metric]:
        build = GaugeMetricFamily(
            "remora_build_info", "Always 1; the version is a label.", labels=["version"]
        )
        build.add_metric([__version__], 1)
        yield build
        hidden = GaugeMetricFamily(
            "remora_hidden_by_local_volumes",
            "Volumes by whose names Docker means volumes of its own driver, local.",
        )
        hidden.add_metric([], len(self.hidden()))
        yield hidden
        yield from self._volumes()
        yield from self._storage()

    def _volumes(self) -> Iterator[Metric]:
        volumes = GaugeMetricFamily(
            "remora_volumes", "Volumes known, by backend.", labels=["backend"]
        )
        mounted = GaugeMetricFamily(
            "remora_mounted_volumes", "Volumes that the engine holds mounted."
        )
        references = GaugeMetricFamily(
            "remora_mount_references", "Mount references, by kind.", labels=["kind"]
        )
        unreadable = GaugeMetricFamily(
            "remora_unreadable_records", "Records of volumes that cannot be read."
        )
        try:
            records = self.views.all()
            unreadable.add_metric([], len(self.views.unreadable()))
        except RemoraError:
            return  # the scrape shows the rest; the gap shows that the store is away
        counts = dict.fromkeys(self.registry.all(), 0)
        live = inherited = held = 0
        for record in records:
            counts[record.backend] = counts.get(record.backend, 0) + 1
            total = self.references.total(record.id)
            live += total.live
            inherited += total.inherited
            held += bool(total)
        for kind, count in counts.items():
            volumes.add_metric([kind], count)
        mounted.add_metric([], held)
        references.add_metric(["live"], live)
        references.add_metric(["inherited"], inherited)
        yield from (volumes, mounted, references, unreadable)
        yield from self._set_apart()

    def _set_apart(self) -> Iterator[Metric]:
        quarantined = GaugeMetricFamily(
            "remora_quarantined",
            "Commits that nodes of the cluster have set apart, as this node knows.",
        )
        try:
            found = self.quarantine_records.all()
        except RemoraError:
            return
        quarantined.add_metric([], len(found))
        yield quarantined

    def _storage(self) -> Iterator[Metric]:
        healthy = GaugeMetricFamily(
            "remora_storage_healthy",
            "1 if the pool or share is ready.",
            labels=["backend", "storage"],
        )
        capacity = GaugeMetricFamily(
            "remora_storage_bytes",
            "Size of the pool or share.",
            labels=["backend", "storage", "kind"],
        )
        for kind, backend in self.registry.all().items():
            for storage in backend.storages():
                healthy.add_metric([kind, storage.name], 0 if storage.error else 1)
                if storage.total_bytes is not None:
                    capacity.add_metric(
                        [kind, storage.name, "total"], storage.total_bytes
                    )
                if storage.available_bytes is not None:
                    capacity.add_metric(
                        [kind, storage.name, "available"], storage.available_bytes
                    )
        yield from (healthy, capacity)
