"""
The administrator's API on the control socket: JSON over HTTP, root only.

The socket's mode (0600) is the permission; the CLI is its client. Errors are
``{"error": …}``, as `error_as_json` makes it, with a status of 4xx or 5xx.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from flask import Flask, Response, g

from backends.errors import RemoraError, one_line
from backends.registry import Registry
from plugin import __version__
from plugin.api import metrics as metrics_module
from plugin.api.admin.bodies import answer, read_body
from plugin.api.admin.claims import add_claimed_snapshots, add_claims
from plugin.api.admin.cluster import ClusterView, add_cluster
from plugin.api.admin.history import add_history
from plugin.api.admin.moves import add_moves
from plugin.api.admin.nodes import add_nodes, node_status
from plugin.api.admin.publishing import add_publishing
from plugin.api.admin.quarantine import add_quarantine
from plugin.api.admin.replicas import add_replicas
from plugin.api.admin.shares import ShareCalls, add_shares
from plugin.api.calls import Limit, at_most, caller_gone, observe_calls
from plugin.api.metrics import Metrics
from plugin.limits import LONG_CALLS_MAX
from plugin.model import VolumeSummary
from plugin.peers.lines import error_as_json
from plugin.volumes.creation import Creation
from plugin.volumes.removal import Removal
from plugin.volumes.snapshots import SnapshotService
from plugin.volumes.use_cases import UseCases
from plugin.volumes.views import VolumeViews


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
    volumes: UseCases,
    metrics: Metrics,
    cluster: ClusterView,
    registry: Registry,
    *,
    shares: ShareCalls,
    hidden: Callable[[], Sequence[str]],
) -> Flask:
    """Return the WSGI application of the control socket; one function a route."""
    app = Flask("remora.control", static_folder=None)
    observe_calls(app, metrics, socket="control", render=_error)
    replication, long = cluster.replication, at_most(LONG_CALLS_MAX)

    @app.get("/v1/status", endpoint="status")
    def status() -> Response:
        more = {
            "hidden_by_local_volumes": hidden(),
            "transfers": replication.transfers() if replication else [],
            "node": node_status(cluster.membership, cluster.nodes),
        }
        return answer({**_status(volumes, registry), **more})

    @app.post("/v1/repair", endpoint="repair")
    def repair() -> Response:
        call = read_body(RepairRequest)
        report = volumes.adoption.adopt(dry_run=call.dry_run)
        report["released"] = []
        if not call.dry_run:
            report["released"] = volumes.reconciler.release_forgotten()
        return answer(report)

    @app.get("/metrics", endpoint="metrics")
    def show_metrics() -> Response:
        return Response(metrics.render(), content_type=metrics_module.CONTENT_TYPE)

    _add_volumes(app, long, volumes.views, volumes.creation, volumes.removal)
    _add_copies(app, long, volumes.views, volumes.creation)
    _add_snapshots(app, long, volumes.snapshots)
    add_moves(app, volumes.views, replication.moving if replication else None)
    add_nodes(app, cluster.membership, cluster.nodes)
    add_cluster(app, cluster)
    add_publishing(app, volumes.scheduled.publishing)
    add_claims(app, volumes.scheduled.claims, volumes.scheduled.sizes)
    add_claimed_snapshots(app, volumes.scheduled.snapshots)
    add_quarantine(app, long, volumes.quarantine)
    add_history(app, volumes.history)
    add_replicas(app, cluster.members)
    add_shares(app, long, shares)
    return app


def _add_volumes(
    app: Flask,
    long: Limit,
    views: VolumeViews,
    creation: Creation,
    removal: Removal,
) -> None:
    """Add the routes on volumes themselves."""

    @app.get("/v1/volumes", endpoint="ls")
    def list_volumes() -> Response:
        rows = [_listed(views, each) for each in views.all(being_made=True)]
        return answer(rows + [_unreadable(name) for name in views.unreadable()])

    @app.get("/v1/volumes/<name>", endpoint="inspect")
    def inspect(name: str) -> Response:
        g.volume = name
        return answer(_row(views, name))

    @app.post("/v1/volumes", endpoint="create")
    def create() -> Response:
        call = read_body(CreateRequest)
        g.volume = call.name

        def made() -> Response:
            creation.create(call.name, call.options)
            return answer(_row(views, call.name))

        copies = any(each.lower() == "from" for each in call.options)
        return long(made)() if copies else made()

    @app.delete("/v1/volumes/<name>", endpoint="rm")
    def remove(name: str) -> Response:
        g.volume = name
        views.look_at(name)  # raises: people want to know that a name is wrong
        removal.remove(name)
        return answer({"removed": name})


def _add_copies(
    app: Flask,
    long: Limit,
    views: VolumeViews,
    creation: Creation,
) -> None:
    """Add the routes that make a volume with bytes in it."""

    @app.post("/v1/import", endpoint="import")
    @long
    def import_bytes() -> Response:
        call = read_body(ImportRequest)
        g.volume = call.name
        creation.import_directory(
            call.name, call.options, Path(call.source), caller_gone=caller_gone()
        )
        return answer(_row(views, call.name))

    @app.post("/v1/clone", endpoint="clone")
    @long
    def clone() -> Response:
        call = read_body(CloneRequest)
        g.volume = call.name
        creation.clone(call.name, call.source, call.options, caller_gone=caller_gone())
        return answer(_row(views, call.name))


def _add_snapshots(app: Flask, long: Limit, snapshots: SnapshotService) -> None:
    """Add the routes below a volume's `snapshots`."""

    @app.get("/v1/volumes/<name>/snapshots", endpoint="snapshot-ls")
    def list_snapshots(name: str) -> Response:
        g.volume = name
        return answer(snapshots.all(name))

    @app.post("/v1/volumes/<name>/snapshots", endpoint="snapshot-create")
    @long
    def create(name: str) -> Response:
        g.volume = name
        call = read_body(SnapshotRequest)
        return answer(snapshots.create(name, call.snapshot, caller_gone=caller_gone()))

    @app.delete("/v1/volumes/<name>/snapshots/<snapshot>", endpoint="snapshot-rm")
    def remove_snapshot(name: str, snapshot: str) -> Response:
        g.volume = name
        snapshots.remove(name, snapshot)
        return answer({"removed": snapshot})

    @app.post("/v1/volumes/<name>/restore", endpoint="snapshot-restore")
    @long
    def restore(name: str) -> Response:
        g.volume = name
        call = read_body(SnapshotRequest)
        kept = snapshots.restore(name, call.snapshot, caller_gone=caller_gone())
        return answer({"restored": call.snapshot, "kept_as": kept})


def create_metrics_app(metrics: Metrics) -> Flask:
    """Return the application of the loopback port: the metrics and nothing else."""
    app = Flask("remora.metrics", static_folder=None)

    @app.get("/metrics")
    def show_metrics() -> Response:
        return Response(metrics.render(), content_type=metrics_module.CONTENT_TYPE)

    return app


def _listed(views: VolumeViews, volume: VolumeSummary) -> dict[str, Any]:
    """Return the volume's row; what is wrong with it hides no other volume."""
    try:
        views.require_readable(volume.id)
        return _row(views, volume.name)
    except RemoraError as error:
        fault = {"phase": "unknown", "health": "error", "error": str(error)}
        return {**msgspec.to_builtins(volume), **fault}


def _unreadable(name: str) -> dict[str, Any]:
    """Return the row of a volume of which nothing is known but that there is one."""
    told = "its record cannot be read; the daemon's log says why"
    fault = {"phase": "unknown", "health": "error", "error": told, "warnings": [told]}
    nothing = dict.fromkeys(("id", "backend", "mountpoint", "created_at"), "")
    return {"name": one_line(name), **nothing, **fault}


def _row(views: VolumeViews, name: str) -> dict[str, Any]:
    view = views.look_at(name)
    health = "creating"
    if view.record.phase != "creating":
        health = "ok" if views.is_healthy(view.record) else "error"
    return {
        "name": view.record.name,
        "created_at": view.record.created_at,
        "mountpoint": view.mountpoint,
        "health": health,
        **view.status(),
    }


def _status(volumes: UseCases, registry: Registry) -> dict[str, Any]:
    """Return the daemon's state: version, storage, counts, what is under way."""
    found = volumes.views.all()
    busy = volumes.operations.under_way()
    storages = {
        storage.name: {
            "backend": kind,
            "health": storage.error or "ok",
            "total_bytes": storage.total_bytes,
            "available_bytes": storage.available_bytes,
        }
        for kind, backend in registry.all().items()
        for storage in backend.storages()
    }
    return {
        "version": __version__,
        "scope": volumes.creation.scope(),
        "volumes": len(found),
        "mounted": sum(bool(each.mountpoint) for each in found),
        "left_over": [each for each in volumes.views.left_over() if each not in busy],
        "operations": busy,
        "copies": volumes.creation.copying.under_way(),
        "storages": storages,
    }


def _error(error: RemoraError) -> Response:
    return answer({"error": error_as_json(error)}, 503 if error.transient else 400)
