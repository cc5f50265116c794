"""The control API's routes on what has happened to a volume."""

from __future__ import annotations

from flask import Flask, Response, g, request

from backends.errors import InvalidRequestError
from plugin.api.admin.bodies import answer
from plugin.volumes.history import VolumeHistory


def add_history(app: Flask, history: VolumeHistory) -> None:
    """Add the routes below `/v1/volumes/<name>` to *app*; one function a route."""

    @app.get("/v1/volumes/<name>/history", endpoint="volume-history")
    def epochs(name: str) -> Response:
        g.volume = name
        return answer(history.epochs(name))

    @app.get("/v1/volumes/<name>/events", endpoint="volume-events")
    def events(name: str) -> Response:
        g.volume = name
        return answer(history.events(name, _limit(request.args.get("limit", "50"))))


def _limit(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InvalidRequestError(f"{text[:20]!r} is no number of events") from None
