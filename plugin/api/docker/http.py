"""The routes of Docker's volume protocol: parse, one use case, render."""

from __future__ import annotations

from flask import Flask, Response, g, request

from backends.errors import InvalidRequestError, RemoraError
from plugin.api.calls import ConnectionDroppedError, caller_gone, observe_calls
from plugin.api.docker import wire
from plugin.api.metrics import Metrics
from plugin.errors import VolumeNotFoundError
from plugin.volumes.creation import Creation
from plugin.volumes.mounting import Mounting
from plugin.volumes.options import AllowedOptions
from plugin.volumes.removal import Removal
from plugin.volumes.unmounting import Unmounting
from plugin.volumes.views import VolumeViews


def create_app(  # noqa: C901
    views: VolumeViews,
    creation: Creation,
    mounting: Mounting,
    unmounting: Unmounting,
    removal: Removal,
    metrics: Metrics,
    allowed: AllowedOptions,
) -> Flask:
    """Return the WSGI application of the plugin socket; one function a route."""
    app = Flask("remora.plugin", static_folder=None)
    observe_calls(
        app,
        metrics,
        socket="plugin",
        render=_refuse,
    )

    @app.post("/Plugin.Activate", endpoint="Activate")
    def activate() -> Response:
        mounting.engine_activated()
        return _answer(wire.render_activation())

    @app.post("/VolumeDriver.Capabilities", endpoint="Capabilities")
    def capabilities() -> Response:
        return _answer(wire.render_capabilities(creation.scope()))

    @app.post("/VolumeDriver.Create", endpoint="Create")
    def create() -> Response:
        call = wire.parse(wire.CreateCall, request.get_data())
        g.volume = call.name
        allowed.checked(call.options or {})
        creation.create(call.name, call.options, caller_gone=caller_gone())
        return _answer(wire.render_empty())

    @app.post("/VolumeDriver.Remove", endpoint="Remove")
    def remove() -> Response:
        call = wire.parse(wire.NameCall, request.get_data())
        g.volume = call.name
        removal.remove(call.name, caller_gone=caller_gone())
        return _answer(wire.render_empty())

    @app.post("/VolumeDriver.Mount", endpoint="Mount")
    def mount() -> Response:
        call = wire.parse(wire.MountCall, request.get_data())
        g.volume, g.mount_id = call.name, call.mount_id
        mountpoint = mounting.mount(call.name, call.mount_id, caller_gone=caller_gone())
        return _answer(wire.render_mountpoint(str(mountpoint)))

    @app.post("/VolumeDriver.Unmount", endpoint="Unmount")
    def unmount() -> Response:
        call = wire.parse(wire.MountCall, request.get_data())
        g.volume, g.mount_id = call.name, call.mount_id
        unmounting.unmount(call.name, call.mount_id)
        return _answer(wire.render_empty())

    @app.post("/VolumeDriver.Path", endpoint="Path")
    def path() -> Response:
        call = wire.parse(wire.NameCall, request.get_data())
        g.volume = call.name
        return _answer(wire.render_mountpoint(views.path(call.name)))

    @app.post("/VolumeDriver.Get", endpoint="Get")
    def get() -> Response:
        # Any answer without a volume tells the engine that it is gone, and makes it
        # forget the volume's labels and references; without an answer it tries again.
        # So we only answer "there is none", and errors that no repetition would mend.
        try:
            call = wire.parse(wire.NameCall, request.get_data())
            g.volume = call.name
            view = views.get_for_engine(call.name, caller_gone=caller_gone())
        except (VolumeNotFoundError, InvalidRequestError) as error:
            if isinstance(error, wire.EmptyBodyError):
                raise ConnectionDroppedError from error
            raise
        except Exception as error:
            raise ConnectionDroppedError from error
        return _answer(
            wire.render_volume(
                view.record.name,
                views.path_of(view.record.id),
                view.record.created_at,
                view.status(),
            )
        )

    @app.post("/VolumeDriver.List", endpoint="List")
    def list_volumes() -> Response:
        return _answer(
            wire.render_list(
                [
                    (each.name, views.path_of(each.id), each.created_at)
                    for each in views.all_for_engine()
                ]
            )
        )

    return app


def _refuse(error: RemoraError) -> Response:
    """
    Answer with *error* in a form that the caller shows as an error, in our words.

    Docker puts a prefix before the text of any status but 200; Podman reads ``Err``
    only if the status is not 200. Podman alone sends a Content-Type.
    """
    response = _answer(wire.render_error(error))
    response.status_code = 500 if request.content_type else 200
    return response


def _answer(body: bytes) -> Response:
    return Response(body, content_type=wire.CONTENT_TYPE)
