"""The control API's routes on shares; also `remora share`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
from flask import Flask, Response

from plugin.api.admin.bodies import answer, read_body
from plugin.api.calls import Limit


class AcceptRequest(msgspec.Struct, frozen=True):
    """`POST /v1/shares/accept`; *share* is `server:path`."""

    share: str


class MoveRequest(msgspec.Struct, frozen=True):
    """`POST /v1/shares/move`; both are `server:path`."""

    share: str
    to: str


@dataclass(frozen=True, slots=True)
class ShareCalls:
    """
    What can be done with shares.

    ``accept`` says which one is the right one, and returns its identity. ``move`` says
    what a share is called now, and returns the names of its volumes.
    """

    accept: Callable[[str], str]
    move: Callable[[str, str], Sequence[str]]


def add_shares(app: Flask, long: Limit, shares: ShareCalls) -> None:
    """Add the routes."""

    @app.post("/v1/shares/accept", endpoint="share-accept")
    def accept_share() -> Response:
        share = read_body(AcceptRequest).share
        return answer({"share": share, "identity": shares.accept(share)})

    @app.post("/v1/shares/move", endpoint="share-move")
    @long
    def move_share() -> Response:
        asked = read_body(MoveRequest)
        names = shares.move(asked.share, asked.to)
        return answer({"share": asked.share, "to": asked.to, "volumes": [*names]})
