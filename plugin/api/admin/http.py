"""
The administrator's API on the control socket: JSON over HTTP, root only.

The socket's mode (0600) is the permission; the CLI is its client. Errors are
``{"error": {"code", "cause", "hint", "exit_code"}}`` with a status of 4xx or 5xx.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from flask import Flask, Response, g

from backends.errors import RemoraError
from plugin import __version__
from plugin.api import metrics as metrics_module
from plugin.api.admin.cluster import ClusterView, add_cluster
from plugin.api.admin.history import add_history
from plugin.api.admin.moves import add_moves
from plugin.api.admin.nodes import add_nodes, node_status
from plugin.api.admin.quarantine import add_quarantine
from plugin.api.admin.reading import read_body
from plugin.api.admin.replicas import add_replicas
from plugin.api.calls import caller_gone, observe_calls
from plugin.api.metrics import Metrics
from plugin.volumes.adoption import adopt
from plugin.volumes.apart import QuarantineService
from plugin.volumes.history import VolumeHistory
from plugin.volumes.importing import import_directory
from plugin.volumes.reconciler import Reconciler
from plugin.volumes.service import VolumeService
from plugin.volumes.snapshots import SnapshotService


class CreateRequest(msgspec.Struct, frozen=True):
    """`POST /v1/volumes`."""

    name: str
    options: dict[str, str] = {}


class ImportRequest(msgspec.Struct, frozen=True):
    """`POST /v1/import`; *source* is a directory of this machine."""

    name: str
    source: str
    options: dict[str, str] = {}


class CloneRequest(msgspec.Struct, frozen=True):
    """`POST /v1/clone`; *source* is a volume or `VOLUME@SNAPSHOT`."""

    name: str
    source: str
    options: dict[str, str] = {}


class SnapshotRequest(msgspec.Struct, frozen=True):
    """`POST /v1/volumes/<name>/snapshots` and `.../restore`."""

    snapshot: str


class RepairRequest(msgspec.Struct, frozen=True):
    """`POST /v1/repair`."""

    dry_run: bool = False


def create_app(
    service: VolumeService,
    reconciler: Reconciler,
    metrics: Metrics,
    cluster: ClusterView,
    quarantine: QuarantineService,
    history: VolumeHistory,
) -> Flask:
    """Return the WSGI application of the control socket; one function a route."""
    app = Flask("remora.control", static_folder=None)
    observe_calls(app, metrics, socket="control", render=_error)

    @app.get("/v1/status", endpoint="status")
    def status() -> Response:
        replication = cluster.replication
        more = {
            "transfers": replication.transfers() if replication else [],
            "node": node_status(cluster.membership),
        }
        return _answer({**_status(service), **more})

    @app.get("/v1/volumes", endpoint="ls")
    def list_volumes() -> Response:
        return _answer([_row(service, each.name) for each in service.volumes()])

    @app.get("/v1/volumes/<name>", endpoint="inspect")
    def inspect(name: str) -> Response:
        g.volume = name
        return _answer(_row(service, name))

    @app.post("/v1/volumes", endpoint="create")
    def create() -> Response:
        call = read_body(CreateRequest)
        g.volume = call.name
        service.create(call.name, call.options)
        return _answer(_row(service, call.name))

    @app.delete("/v1/volumes/<name>", endpoint="rm")
    def remove(name: str) -> Response:
        g.volume = name
        service.get(name)  # a person who mistypes a name wants to know
        service.remove(name)
        return _answer({"removed": name})

    @app.post("/v1/repair", endpoint="repair")
    def repair() -> Response:
        call = read_body(RepairRequest)
        report = adopt(service, dry_run=call.dry_run)
        report["released"] = [] if call.dry_run else reconciler.release_forgotten()
        return _answer(report)

    @app.get("/metrics", endpoint="metrics")
    def show_metrics() -> Response:
        return Response(metrics.render(), content_type=metrics_module.CONTENT_TYPE)

    replication = cluster.replication
    add_moves(app, service, replication.moving if replication else None)
    _add_copies(app, service)
    _add_snapshots(app, SnapshotService(service))
    add_nodes(app, cluster.membership)
    add_cluster(app, cluster)
    add_quarantine(app, quarantine)
    add_history(app, history)
    add_replicas(app, cluster.replicas)
    return app


def _add_copies(app: Flask, service: VolumeService) -> None:
    """Add the routes that make a volume with bytes in it."""

    @app.post("/v1/import", endpoint="import")
    def import_bytes() -> Response:
        call = read_body(ImportRequest)
        g.volume = call.name
        import_directory(
            service,
            call.name,
            call.options,
            Path(call.source),
            caller_gone=caller_gone(),
        )
        return _answer(_row(service, call.name))

    @app.post("/v1/clone", endpoint="clone")
    def clone() -> Response:
        call = read_body(CloneRequest)
        g.volume = call.name
        service.clone(call.name, call.source, call.options, caller_gone=caller_gone())
        return _answer(_row(service, call.name))


def _add_snapshots(app: Flask, snapshots: SnapshotService) -> None:
    """Add the routes below a volume's `snapshots`."""

    @app.get("/v1/volumes/<name>/snapshots", endpoint="snapshot-ls")
    def list_snapshots(name: str) -> Response:
        g.volume = name
        return _answer(snapshots.all(name))

    @app.post("/v1/volumes/<name>/snapshots", endpoint="snapshot-create")
    def take(name: str) -> Response:
        g.volume = name
        call = read_body(SnapshotRequest)
        return _answer(snapshots.take(name, call.snapshot, caller_gone=caller_gone()))

    @app.delete("/v1/volumes/<name>/snapshots/<snapshot>", endpoint="snapshot-rm")
    def remove_snapshot(name: str, snapshot: str) -> Response:
        g.volume = name
        snapshots.remove(name, snapshot)
        return _answer({"removed": snapshot})

    @app.post("/v1/volumes/<name>/restore", endpoint="snapshot-restore")
    def restore(name: str) -> Response:
        g.volume = name
        call = read_body(SnapshotRequest)
        kept = snapshots.restore(name, call.snapshot, caller_gone=caller_gone())
        return _answer({"restored": call.snapshot, "kept_as": kept})


def create_metrics_app(metrics: Metrics) -> Flask:
    """Return the application of the loopback port: the metrics and nothing else."""
    app = Flask("remora.metrics", static_folder=None)

    @app.get("/metrics")
    def show_metrics() -> Response:
        return Response(metrics.render(), content_type=metrics_module.CONTENT_TYPE)

    return app


def _row(service: VolumeService, name: str) -> dict[str, Any]:
    view = service.get(name)
    backend = service.registry.get(str(view.status["backend"]))
    # A volume that knows its own storage says more.
    faults = [each.error for each in backend.storages() if each.error]
    return {
        "name": view.name,
        "created_at": view.created_at,
        "mountpoint": view.mountpoint,
        "health": "error" if faults else "ok",
        **view.status,
    }


def _status(service: VolumeService) -> dict[str, Any]:
    """Return the daemon's state: version, storage, counts, what is under way."""
    volumes = service.volumes()
    storages = {
        storage.name: {
            "backend": kind,
            "health": storage.error or "ok",
            "total_bytes": storage.total_bytes,
            "available_bytes": storage.available_bytes,
        }
        for kind, backend in service.registry.all().items()
        for storage in backend.storages()
    }
    return {
        "version": __version__,
        "scope": service.scope(),
        "volumes": len(volumes),
        "mounted": sum(bool(each.mountpoint) for each in volumes),
        "operations": service.operations.locks.names(),
        "copies": service.copies.under_way(),
        "storages": storages,
    }


def _answer(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, content_type="application/json")


def _error(error: RemoraError) -> Response:
    detail = {
        "code": error.code,
        "cause": error.cause,
        "hint": error.hint,
        "exit_code": error.exit_code,
    }
    return _answer({"error": detail}, 503 if error.transient else 400)
