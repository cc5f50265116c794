"""The control API's route on shares; also `remora share`."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from flask import Flask, Response

from plugin.api.admin.bodies import answer, read_body


class AcceptRequest(msgspec.Struct, frozen=True):
    """`POST /v1/shares/accept`; *share* is `server:path`."""

    share: str


def add_shares(app: Flask, accept: Callable[[str], str]) -> None:
    """Let *accept* say which share is the right one, and return its identity."""

    @app.post("/v1/shares/accept", endpoint="share-accept")
    def accept_share() -> Response:
        share = read_body(AcceptRequest).share
        return answer({"share": share, "identity": accept(share)})
