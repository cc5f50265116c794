"""The bodies of requests and answers on the control socket: JSON."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from flask import Response, request

from backends.errors import InvalidRequestError
from backends.system.decoding import from_json

Body = TypeVar("Body")


def read_body(kind: type[Body]) -> Body:
    """
    Return the body of the request that is being answered.

    Raises:
        InvalidRequestError: it is no *kind*.

    """
    try:
        return from_json(request.get_data(), kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequestError(f"the request cannot be read: {error}") from None


def answer(value: object, status: int = 200) -> Response:
    """Return *value* as an answer."""
    return Response(msgspec.json.encode(value), status, content_type="application/json")
