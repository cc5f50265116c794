"""The control API's routes for schedulers: a volume at a path that they name."""

from __future__ import annotations

from typing import Annotated

import msgspec
from flask import Flask, Response, g

from plugin.api.admin.bodies import answer, read_body
from plugin.limits import LONG_DEADLINE_S, TARGET_LENGTH_MAX
from plugin.volumes.publishing import Publishing, Wanted

_Path = Annotated[
    str, msgspec.Meta(pattern=r"\A/[^\x00-\x1f\x7f]*\Z", max_length=TARGET_LENGTH_MAX)
]
_Wait = Annotated[float, msgspec.Meta(gt=0, le=LONG_DEADLINE_S)]
_Text = Annotated[
    str, msgspec.Meta(pattern=r"\A[^\x00-\x1f\x7f\ud800-\udfff]*\Z", max_length=512)
]


class PublishRequest(msgspec.Struct, frozen=True):
    """`POST /v1/published`; *target* lies below *root*, *user* tells for whom it is."""

    name: str
    target: _Path
    root: _Path
    mode: Annotated[int, msgspec.Meta(ge=1, le=7)] = 1
    read_only: bool = False
    user: Annotated[dict[_Text, _Text], msgspec.Meta(max_length=16)] = {}
    wait_s: _Wait = 10.0


class UnpublishRequest(msgspec.Struct, frozen=True):
    """`DELETE /v1/published`."""

    name: str
    target: _Path
    root: _Path
    wait_s: _Wait = 10.0


def add_publishing(app: Flask, publishing: Publishing) -> None:
    """Add the routes on what is published to *app*."""

    @app.post("/v1/published", endpoint="publish")
    def publish() -> Response:
        call = read_body(PublishRequest)
        g.volume = call.name
        wanted = Wanted(
            call.name, call.target, call.root, call.mode, call.read_only, call.user
        )
        publishing.publish(wanted, wait_s=call.wait_s)
        return answer({"published": call.target})

    @app.delete("/v1/published", endpoint="unpublish")
    def unpublish() -> Response:
        call = read_body(UnpublishRequest)
        g.volume = call.name
        publishing.unpublish(call.name, call.target, call.root, wait_s=call.wait_s)
        return answer({"unpublished": call.target})
