"""The control API's routes on moves: `remora move`."""

from __future__ import annotations

import msgspec
from flask import Flask, Response, g, request

from backends.errors import InvalidRequestError
from plugin.api.admin.bodies import answer, read_body
from plugin.replication.moving import Moving
from plugin.volumes.views import VolumeViews


class MoveRequest(msgspec.Struct, frozen=True):
    """`POST /v1/volumes/<name>/move`."""

    node: str


def add_moves(app: Flask, views: VolumeViews, moving: Moving | None) -> None:
    """Add the routes to *app*; without *moving* the node is alone."""

    @app.post("/v1/volumes/<name>/move", endpoint="move")
    def start(name: str) -> Response:
        g.volume = name
        call = read_body(MoveRequest)
        record = views.existing(name).record
        return answer(_required(moving).start(record, call.node))

    @app.get("/v1/volumes/<name>/move", endpoint="move-state")
    def state(name: str) -> Response:
        g.volume = name
        record = views.existing(name).record
        return answer(_required(moving).state(record, request.args.get("owner", "")))


def _required(moving: Moving | None) -> Moving:
    if moving is None:
        raise InvalidRequestError(
            "this node is alone: there is nowhere to move a volume",
            hint="remora cluster join makes it a node of a cluster",
        )
    return moving
