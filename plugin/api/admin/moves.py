"""The control API's routes on moves: `remora move`."""

from __future__ import annotations

from typing import Any

import msgspec
from flask import Flask, Response, g, request

from backends.errors import InvalidRequestError
from plugin.api.admin.reading import read_body
from plugin.replication.moving import Moving
from plugin.volumes.service import VolumeService


class MoveRequest(msgspec.Struct, frozen=True):
    """`POST /v1/volumes/<name>/move`."""

    node: str


def add_moves(app: Flask, service: VolumeService, moving: Moving | None) -> None:
    """Add the routes to *app*; without *moving* the node is alone."""

    @app.post("/v1/volumes/<name>/move", endpoint="move")
    def start(name: str) -> Response:
        g.volume = name
        call = read_body(MoveRequest)
        record = service.existing(name).record
        return _answer(_required(moving).start(record, call.node))

    @app.get("/v1/volumes/<name>/move", endpoint="move-state")
    def state(name: str) -> Response:
        g.volume = name
        record = service.existing(name).record
        return _answer(_required(moving).state(record, request.args.get("owner", "")))


def _required(moving: Moving | None) -> Moving:
    if moving is None:
        raise InvalidRequestError(
            "this node is alone: there is nowhere to move a volume",
            hint="remora cluster join makes it a node of a cluster",
        )
    return moving


def _answer(value: Any) -> Response:
    return Response(msgspec.json.encode(value), content_type="application/json")
