"""
What the control socket does around a call: a log line, metrics, errors.

Routes put the volume's name into ``g.volume``.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable

from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException

from backends.errors import RemoraError, VolumeBusyError
from plugin.api.metrics import Metrics
from plugin.api.told import Told, bug

Route = Callable[..., Response]
Limit = Callable[[Route], Route]


def observe_calls(
    app: Flask,
    metrics: Metrics,
    *,
    socket: str,
    render: Callable[[RemoraError], Response],
) -> None:
    """Make *app* log, count and render the outcome of each of its calls."""

    @app.before_request
    def begin() -> None:
        g.told = Told(str(request.endpoint or "unknown"))

    @app.after_request
    def end(response: Response) -> Response:
        told: Told = g.told
        told.volume = g.get("volume", "")
        told.ended(metrics, socket=socket)
        return response

    @app.errorhandler(RemoraError)
    def domain_error(error: RemoraError) -> Response:
        g.told.failed(error.code, str(error))
        return render(error)

    @app.errorhandler(HTTPException)
    def not_a_route(error: HTTPException) -> Response:
        g.told.failed("http", f"{request.method} {request.path}: {error.name}")
        return Response(f"{error.name}\n", error.code or 500, mimetype="text/plain")

    @app.errorhandler(Exception)
    def internal_error(error: Exception) -> Response:
        g.told.failed("internal")
        response = render(bug(error))
        response.status_code = 500
        return response


def at_most(calls_max: int) -> Limit:
    """
    Return a decorator for routes that may take hours: beyond *calls_max* they refuse.

    All routes that it decorates count together. So threads are left for the others.
    """
    room = threading.BoundedSemaphore(calls_max)

    def limit(route: Route) -> Route:
        @functools.wraps(route)
        def call(**values: str) -> Response:
            if not room.acquire(blocking=False):
                raise VolumeBusyError(
                    f"{calls_max} copies are being made already",
                    hint="retry when one is done; 'remora status' shows them",
                )
            try:
                return route(**values)
            finally:
                room.release()

        return call

    return limit


def caller_gone() -> Callable[[], bool]:
    """Return a function that says whether this call's peer has hung up."""
    gone: Callable[[], bool] = request.environ["waitress.client_disconnected"]
    return gone
