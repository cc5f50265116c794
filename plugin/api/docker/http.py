"""
The routes of Docker's volume protocol: parse, one use case, render.

They are few, all alike, and each command of Docker's makes several of these calls: what
Flask does around one takes longer than most of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from waitress.channel import ClientDisconnected

from backends.errors import InvalidRequestError, RemoraError, one_line
from plugin.api.docker import wire
from plugin.api.metrics import Metrics
from plugin.api.told import Told, bug
from plugin.errors import VolumeNotFoundError
from plugin.logs import fields
from plugin.volumes.creation import Creation
from plugin.volumes.mounting import Mounting
from plugin.volumes.options import AllowedOptions
from plugin.volumes.patience import CallerGone
from plugin.volumes.removal import Removal
from plugin.volumes.unmounting import Unmounting
from plugin.volumes.views import VolumeViews

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

log = logging.getLogger(__name__)
_TEXT: Final = "text/plain; charset=utf-8"


class _DroppedError(Exception):
    """The call must be left unanswered; the server closes the connection."""


@dataclass(frozen=True, slots=True)
class _Call:
    """One call: its body, whether its peer has hung up, and what is told of it."""

    body: bytes
    caller_gone: CallerGone
    told: Told


Route = Callable[[_Call], bytes]


@dataclass(frozen=True, slots=True)
class _Answer:
    """A body to be sent; its caller does not wait for what is told of the call."""

    body: bytes
    tell: Callable[[], None]

    def __iter__(self) -> Iterator[bytes]:
        return iter((self.body,))

    def close(self) -> None:
        """Tell of the call: the server calls this when the answer is sent."""
        self.tell()


class PluginApp:
    """The WSGI application of the plugin socket; routes are in `create_app`."""

    def __init__(self, routes: Mapping[str, Route], metrics: Metrics) -> None:
        """Answer with the route of the request's path."""
        self._routes = routes
        self._metrics = metrics

    def __call__(
        self, environment: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        """Answer one call, tell of it, or leave it unanswered."""
        method, path = environment["REQUEST_METHOD"], environment["PATH_INFO"]
        route = self._routes.get(path)
        told = Told(path.rpartition(".")[2] if route else "unknown")
        if route is None or method != "POST":
            status = HTTPStatus.METHOD_NOT_ALLOWED if route else HTTPStatus.NOT_FOUND
            told.failed("http", f"{method} {path}: {status.phrase}")
            body, kind = f"{status.phrase}\n".encode(), _TEXT
        else:
            call = _Call(
                environment["wsgi.input"].read(),
                environment["waitress.client_disconnected"],
                told,
            )
            status, body = self._answered(route, call, environment)
            kind = wire.CONTENT_TYPE
        length = str(len(body))
        start_response(
            f"{status.value} {status.phrase}",
            [("Content-Type", kind), ("Content-Length", length)],
        )
        return _Answer(body, partial(told.ended, self._metrics, socket="plugin"))

    def _answered(
        self, route: Route, call: _Call, environment: WSGIEnvironment
    ) -> tuple[HTTPStatus, bytes]:
        """
        Return what *route* answers; an error in a form that is shown in our words.

        Docker puts a prefix before the text of any status but 200; Podman reads ``Err``
        only if the status is not 200. Podman alone sends a Content-Type.
        """
        try:
            return HTTPStatus.OK, route(call)
        except RemoraError as error:
            call.told.failed(error.code, str(error))
            podman = environment.get("CONTENT_TYPE")
            status = HTTPStatus.INTERNAL_SERVER_ERROR if podman else HTTPStatus.OK
            return status, wire.render_error(error)
        except _DroppedError as error:
            log.warning(
                "call left unanswered: %s",
                error.__cause__,
                extra=fields(op=call.told.operation, volume=one_line(call.told.volume)),
            )
            # With this exception waitress closes the connection without an answer.
            raise ClientDisconnected from error
        except Exception as error:  # noqa: BLE001 - the engine gets an answer
            call.told.failed("internal")
            return HTTPStatus.INTERNAL_SERVER_ERROR, wire.render_error(bug(error))


def create_app(  # noqa: C901
    views: VolumeViews,
    creation: Creation,
    mounting: Mounting,
    unmounting: Unmounting,
    removal: Removal,
    metrics: Metrics,
    allowed: AllowedOptions,
) -> PluginApp:
    """Return the WSGI application of the plugin socket; one function a route."""

    def activate(call: _Call) -> bytes:
        del call
        mounting.engine_activated()
        return wire.render_activation()

    def capabilities(call: _Call) -> bytes:
        del call
        return wire.render_capabilities(creation.scope())

    def create(call: _Call) -> bytes:
        asked = wire.parse(wire.CreateCall, call.body)
        call.told.volume = asked.name
        allowed.checked(asked.options or {})
        creation.create(asked.name, asked.options, caller_gone=call.caller_gone)
        return wire.render_empty()

    def remove(call: _Call) -> bytes:
        asked = wire.parse(wire.NameCall, call.body)
        call.told.volume = asked.name
        removal.remove(asked.name, caller_gone=call.caller_gone)
        return wire.render_empty()

    def mount(call: _Call) -> bytes:
        asked = wire.parse(wire.MountCall, call.body)
        call.told.volume, call.told.mount_id = asked.name, asked.mount_id
        mountpoint = mounting.mount(
            asked.name, asked.mount_id, caller_gone=call.caller_gone
        )
        return wire.render_mountpoint(str(mountpoint))

    def unmount(call: _Call) -> bytes:
        asked = wire.parse(wire.MountCall, call.body)
        call.told.volume, call.told.mount_id = asked.name, asked.mount_id
        unmounting.unmount(asked.name, asked.mount_id)
        return wire.render_empty()

    def path(call: _Call) -> bytes:
        asked = wire.parse(wire.NameCall, call.body)
        call.told.volume = asked.name
        return wire.render_mountpoint(views.path(asked.name))

    def get(call: _Call) -> bytes:
        # Any answer without a volume tells the engine that it is gone, and makes it
        # forget the volume's labels and references; without an answer it tries again.
        # So we only answer "there is none", and errors that no repetition would mend.
        try:
            asked = wire.parse(wire.NameCall, call.body)
            call.told.volume = asked.name
            view = views.get_for_engine(asked.name, caller_gone=call.caller_gone)
        except (VolumeNotFoundError, InvalidRequestError) as error:
            if isinstance(error, wire.EmptyBodyError):
                raise _DroppedError from error
            raise
        except Exception as error:
            raise _DroppedError from error
        return wire.render_volume(
            view.record.name,
            views.path_of(view.record.id),
            view.record.created_at,
            view.status(),
        )

    def list_volumes(call: _Call) -> bytes:
        del call
        return wire.render_list(
            [
                (each.name, views.path_of(each.id), each.created_at)
                for each in views.all_for_engine()
            ]
        )

    return PluginApp(
        {
            "/Plugin.Activate": activate,
            "/VolumeDriver.Capabilities": capabilities,
            "/VolumeDriver.Create": create,
            "/VolumeDriver.Remove": remove,
            "/VolumeDriver.Mount": mount,
            "/VolumeDriver.Unmount": unmount,
            "/VolumeDriver.Path": path,
            "/VolumeDriver.Get": get,
            "/VolumeDriver.List": list_volumes,
        },
        metrics,
    )
