"""The control API's routes on nodes; the answers are the CLI's `--json` as well."""

from __future__ import annotations

from typing import Any

from flask import Flask, Response, request

from plugin.api.admin.bodies import answer
from plugin.membership.directory import NodeDirectory
from plugin.membership.membership import Membership
from plugin.membership.nodes import NodeView


def add_nodes(app: Flask, membership: Membership, nodes: NodeDirectory) -> None:
    """Add the routes below `/v1/nodes` to *app*; one function a route."""

    @app.get("/v1/nodes", endpoint="node-ls")
    def list_nodes() -> Response:
        return answer([_row(membership, each) for each in nodes.all()])

    @app.get("/v1/nodes/<name>", endpoint="node-inspect")
    def inspect(name: str) -> Response:
        return answer(_row(membership, nodes.find(name)))

    @app.post("/v1/nodes/<name>/drain", endpoint="node-drain")
    def drain(name: str) -> Response:
        return answer(_row(membership, nodes.set_drained(name, drained=True)))

    @app.post("/v1/nodes/<name>/undrain", endpoint="node-undrain")
    def undrain(name: str) -> Response:
        return answer(_row(membership, nodes.set_drained(name, drained=False)))

    @app.delete("/v1/nodes/<name>", endpoint="node-rm")
    def remove(name: str) -> Response:
        force = request.args.get("force") == "1"
        return answer({"removed": membership.remove(name, force=force)})


def node_status(membership: Membership, nodes: NodeDirectory) -> dict[str, Any]:
    """Return what `GET /v1/status` tells of this node's membership."""
    return {
        "name": membership.own.name,
        "id": membership.own.id,
        "cluster": not membership.alone,
        "health": membership.fault() or "ok",
        "warnings": nodes.clock_warnings(),
    }


def _row(membership: Membership, view: NodeView) -> dict[str, Any]:
    record = view.record
    this_node = record.id == membership.own.id
    return {
        "id": record.id,
        "name": record.name,
        "state": view.state,
        "this_node": this_node,
        "alive": view.alive,
        "drained": record.drained,
        "addresses": record.addresses,
        "peer_port": record.peer_port,
        "version": record.version,
        "protocol": record.protocol,
        "protocol_oldest": record.protocol_oldest,
        "pool_total_bytes": record.pool_total_bytes,
        "pool_available_bytes": record.pool_available_bytes,
        "clock_offset_s": 0.0 if this_node else view.clock_offset_s,
        "clock_warning": view.clock_warning(),
        "fault": membership.fault() or "" if this_node else "",
        "machine_id": record.machine_id,
        "boot_id": record.boot_id,
        "host_key": record.host_key,
        "public_key": record.public_key,
        "joined_at": record.joined_at,
    }
