"""The control API's routes on what was set apart; two of them answer piece by piece."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Final

import msgspec
from flask import Flask, Response, g, request
from waitress.channel import ClientDisconnected

from backends.errors import InvalidRequestError, RemoraError
from backends.rsync.quarantine import Change, shown
from plugin.api.admin.bodies import answer, read_body
from plugin.api.calls import Limit, caller_gone
from plugin.peers.lines import error_as_json
from plugin.volumes.quarantine import QuarantineService

log = logging.getLogger(__name__)
_SHOWN_MAX: Final = 1_000_000
_BASE: Final = "/v1/quarantine/<name>/<commit>"


class CloneRequest(msgspec.Struct, frozen=True):
    """`POST /v1/quarantine/<name>/<commit>/clone`."""

    name: str
    options: dict[str, str] = {}


def add_quarantine(app: Flask, long: Limit, quarantine: QuarantineService) -> None:
    """Add the routes below `/v1/quarantine` to *app*; one function a route."""

    @app.get("/v1/quarantine", endpoint="quarantine-ls")
    def list_all() -> Response:
        return answer(quarantine.all(request.args.get("volume", "")))

    @app.get(f"{_BASE}/diff", endpoint="quarantine-diff")
    def differences(name: str, commit: str) -> Response:
        g.volume = name
        limit = _limit(request.args.get("limit", ""))
        found = quarantine.differences(
            name,
            commit,
            contents=request.args.get("contents") == "1",
            caller_gone=caller_gone(),
        )
        return Response(_lines(found, limit), content_type="application/x-ndjson")

    @app.get(f"{_BASE}/export", endpoint="quarantine-export")
    def export(name: str, commit: str) -> Response:
        g.volume = name
        found = quarantine.archive(name, commit, caller_gone=caller_gone())
        return Response(_whole(found), content_type="application/x-tar")

    @app.post(f"{_BASE}/clone", endpoint="quarantine-clone")
    @long
    def clone(name: str, commit: str) -> Response:
        g.volume = name
        call = read_body(CloneRequest)
        quarantine.clone(
            name, commit, call.name, call.options, caller_gone=caller_gone()
        )
        return answer({"name": call.name})

    @app.delete(_BASE, endpoint="quarantine-discard")
    def discard(name: str, commit: str) -> Response:
        g.volume = name
        known = quarantine.discard(name, commit)
        return answer({"discarded": commit, "cluster_knows": known})


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= _SHOWN_MAX):
        raise InvalidRequestError(f"a limit is a number up to {_SHOWN_MAX}")
    return int(text)


def _lines(found: Iterator[Change | None], limit: int) -> Iterator[bytes]:
    """Yield a line for each of the first *limit* changes, and one with the counts."""
    counts = {"added": 0, "removed": 0, "changed": 0}
    told = 0
    try:
        for each in found:
            if each is None:
                continue
            counts[each.change] += 1
            if told < limit:
                told += 1
                yield _line(
                    {
                        "change": each.change,
                        "kind": each.kind,
                        "path": shown(each.path),
                        "what": each.what,
                    }
                )
        yield _line({"counts": counts, "shown": told})
    except RemoraError as error:
        log.warning("a comparison broke off: %s", error)
        yield _line({"error": error_as_json(error)})


def _whole(found: Iterator[bytes]) -> Iterator[bytes]:
    """Yield *found*; if it fails, break the connection, so that the client sees it."""
    try:
        yield from found
    except RemoraError as error:
        log.warning("an export broke off: %s", error)
        raise ClientDisconnected from error


def _line(value: object) -> bytes:
    return msgspec.json.encode(value) + b"\n"
