"""The control API's routes for schedulers: volumes, snapshots and sizes as claimed."""

from __future__ import annotations

from typing import Annotated

import msgspec
from flask import Flask, Response, g, request

from plugin.api.admin.bodies import answer, read_body
from plugin.volumes.claimed_snapshots import ClaimedSnapshots, SnapshotClaim
from plugin.volumes.claims import ClaimRequest, Claims
from plugin.volumes.sizes import Sizes

_Size = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class GrowRequest(msgspec.Struct, frozen=True):
    """`POST /v1/claims/<name>/size`; 0 is no such bound."""

    required_bytes: _Size = 0
    limit_bytes: _Size = 0


def add_claims(app: Flask, claims: Claims, sizes: Sizes) -> None:
    """Add the routes on claimed volumes to *app*."""

    @app.get("/v1/claims", endpoint="claim-ls")
    def list_claims() -> Response:
        return answer(claims.all())

    @app.post("/v1/claims", endpoint="claim-create")
    def create() -> Response:
        asked = read_body(ClaimRequest)
        g.volume = asked.name
        return answer(claims.create(asked))

    @app.get("/v1/claims/<name>", endpoint="claim-inspect")
    def inspect(name: str) -> Response:
        g.volume = name
        return answer(claims.get(name))

    @app.post("/v1/claims/<name>/size", endpoint="claim-grow")
    def grow(name: str) -> Response:
        g.volume = name
        asked = read_body(GrowRequest)
        return answer(sizes.grow(name, asked.required_bytes, asked.limit_bytes))

    @app.post("/v1/claims/<name>/fit", endpoint="claim-fit")
    def fit(name: str) -> Response:
        g.volume = name
        return answer(sizes.hold(name))

    @app.get("/v1/claims/<name>/usage", endpoint="claim-usage")
    def usage(name: str) -> Response:
        g.volume = name
        return answer(sizes.usage(name, request.args.get("target", "")))


def add_claimed_snapshots(app: Flask, snapshots: ClaimedSnapshots) -> None:
    """Add the routes on snapshots of all volumes to *app*."""

    @app.get("/v1/snapshots", endpoint="claimed-snapshot-ls")
    def list_snapshots() -> Response:
        name = request.args.get("volume", "")
        return answer(snapshots.of(name) if name else snapshots.all())

    @app.post("/v1/snapshots", endpoint="claimed-snapshot-create")
    def create() -> Response:
        asked = read_body(SnapshotClaim)
        g.volume = asked.name
        return answer(snapshots.create(asked))

    @app.delete("/v1/snapshots", endpoint="claimed-snapshot-rm")
    def remove() -> Response:
        asked = read_body(SnapshotClaim)
        g.volume = asked.name
        snapshots.remove(asked)
        return answer({"removed": asked.snapshot})
