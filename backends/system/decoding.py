"""
Decoding into types of ours, from as many threads as there are.

msgspec looks into a type when it is first decoded into, and lets other threads use what
it has found before it is done: two that meet there end the process with SIGSEGV
(`tests/unit/test_decoding.py`). So nothing is decoded into a type but here, where a
lock is held until msgspec knows the type.
"""

from __future__ import annotations

import threading
from typing import Any, Final, TypeVar

import msgspec

Kind = TypeVar("Kind")

# What decoders raise: text may be none, or nested too deep.
NOT_DECODED: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_learning: Final = threading.Lock()
_json_decoders: Final[dict[Any, msgspec.json.Decoder[Any]]] = {}
_msgpack_decoders: Final[dict[Any, msgspec.msgpack.Decoder[Any]]] = {}


def from_json(content: bytes | str, kind: type[Kind]) -> Kind:
    """
    Return *content* as *kind*.

    Raises:
        msgspec.DecodeError: it is something else.

    """
    decoder = _json_decoders.get(kind) or json_decoder(kind)
    try:
        return decoder.decode(content)  # type: ignore[no-any-return]
    except (UnicodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from error


def from_objects(value: object, kind: type[Kind], *, strict: bool = True) -> Kind:
    """
    Return *value*, of dicts, lists, texts and numbers, as *kind*.

    What is not *strict* takes texts for numbers and truth values.

    Raises:
        msgspec.ValidationError: it is something else.

    """
    json_decoder(kind)
    try:
        return msgspec.convert(value, kind, strict=strict)
    except (UnicodeEncodeError, RecursionError) as error:
        raise msgspec.ValidationError(str(error)) from error


def json_decoder(kind: type[Kind]) -> msgspec.json.Decoder[Kind]:
    """Return what decodes JSON into *kind*."""
    with _learning:
        if kind not in _json_decoders:
            _json_decoders[kind] = msgspec.json.Decoder(kind)
        return _json_decoders[kind]


def msgpack_decoder(kind: type[Kind]) -> msgspec.msgpack.Decoder[Kind]:
    """Return what decodes MessagePack into *kind*."""
    with _learning:
        if kind not in _msgpack_decoders:
            _msgpack_decoders[kind] = msgspec.msgpack.Decoder(kind)
        return _msgpack_decoders[kind]
