"""
What both sockets do around a call: a log line, metrics, errors, callers that hang up.

Routes put the volume's name into ``g.volume`` and the mount id into ``g.mount_id``.
"""

from __future__ import annotations

import functools
import logging
import secrets
import threading
from collections.abc import Callable

from flask import Flask, Response, g, request
from waitress.channel import ClientDisconnected
from werkzeug.exceptions import HTTPException

from backends.errors import RemoraError, VolumeBusyError, one_line
from backends.system.clock import monotonic_s
from plugin.api.metrics import Metrics
from plugin.logs import fields

log = logging.getLogger(__name__)
Route = Callable[..., Response]
Limit = Callable[[Route], Route]

# Read-only calls, which are made all the time: their log lines say little.
_QUIET = frozenset({"Get", "List", "Path", "Capabilities", "status", "metrics", "ls"})


class ConnectionDroppedError(Exception):
    """The call must be left unanswered; the server closes the connection."""


def observe_calls(
    app: Flask,
    metrics: Metrics,
    *,
    socket: str,
    render: Callable[[RemoraError], Response],
) -> None:
    """Make *app* log, count and render the outcome of each of its calls."""
    # Without this, Flask would answer a dropped call with a page of its own.
    app.config["PROPAGATE_EXCEPTIONS"] = True

    @app.before_request
    def begin() -> None:
        g.began_s = monotonic_s()
        g.code = "ok"

    @app.after_request
    def end(response: Response) -> Response:
        operation = str(request.endpoint or "unknown")
        duration_s = monotonic_s() - g.began_s
        metrics.observe(
            socket=socket, operation=operation, code=g.code, duration_s=duration_s
        )
        level = logging.INFO
        if g.code == "ok" and operation in _QUIET:
            level = logging.DEBUG
        log.log(level, "call", extra=_line(operation, duration_s))
        return response

    @app.errorhandler(RemoraError)
    def domain_error(error: RemoraError) -> Response:
        g.code = error.code
        g.error = str(error)
        return render(error)

    @app.errorhandler(ConnectionDroppedError)
    def dropped(error: ConnectionDroppedError) -> Response:
        log.warning(
            "call left unanswered: %s",
            error.__cause__,
            extra=fields(
                op=str(request.endpoint), volume=one_line(g.get("volume", ""))
            ),
        )
        # With this exception waitress closes the connection without an answer.
        raise ClientDisconnected from error

    @app.errorhandler(HTTPException)
    def not_a_route(error: HTTPException) -> Response:
        g.code = "http"
        g.error = one_line(f"{request.method} {request.path}: {error.name}")
        return Response(f"{error.name}\n", error.code or 500, mimetype="text/plain")

    @app.errorhandler(Exception)
    def bug(error: Exception) -> Response:
        reference = secrets.token_hex(4)
        g.code = "internal"
        log.error("internal error %s", reference, exc_info=error)
        response = render(RemoraError(f"a fault in Remora; log line {reference}"))
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


def _line(operation: str, duration_s: float) -> dict[str, dict[str, object]]:
    values: dict[str, object] = {
        "op": operation,
        "volume": one_line(g.get("volume", "")),
        "id": one_line(g.get("mount_id", ""))[:12],
        "duration_ms": round(duration_s * 1000, 1),
        "outcome": "ok" if g.code == "ok" else "error",
        "code": g.code,
        "error": g.get("error", ""),
    }
    return fields(**{key: value for key, value in values.items() if value != ""})
