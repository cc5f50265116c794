"""
Records and transactions in the words of etcd's JSON gateway.

Bytes are base64, 64-bit numbers are texts, and fields with a default are left out.
Source: etcd.io/docs/v3.4/dev-guide/api_grpc_gateway, and the API's protocol buffers.
"""

from __future__ import annotations

import logging
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from typing import Any, Final

from plugin.store.base import Compare, Event, Operation, Put, Record

Message = Mapping[str, Any]
_RECORDS: Final = "records/"
_SLOTS: Final = "slots/"
_IDENTITY: Final = "cluster"
_TOLD_MAX: Final = 100
log = logging.getLogger(__name__)


def encoded(data: bytes) -> str:
    """Return *data* as the gateway writes bytes."""
    return b64encode(data).decode("ascii")


def decoded(text: str) -> bytes:
    """Return the bytes that the gateway wrote as *text*."""
    return b64decode(text)


class Namespace:
    """Our keys in a cluster that others use too."""

    def __init__(self, prefix: str) -> None:
        self._records = prefix + _RECORDS
        self._slots = prefix + _SLOTS
        self.identity = encoded((prefix + _IDENTITY).encode())
        self._told: set[bytes] = set()

    def key(self, key: str) -> str:
        """Return etcd's key of the record *key*."""
        return encoded((self._records + key).encode())

    def slot(self, name: str) -> str:
        """Return etcd's key of the slot *name*, which no prefix of records covers."""
        return encoded((self._slots + name).encode())

    def below(self, prefix: str) -> dict[str, str]:
        """Return the range of all keys that begin with *prefix*."""
        first = (self._records + prefix).encode()
        # UTF-8 has no byte 0xff, so that the last byte can always be raised.
        after = first[:-1] + bytes([first[-1] + 1])
        return {"key": encoded(first), "range_end": encoded(after)}

    def between(self, first: str, after: str) -> dict[str, str]:
        """Return the range of keys from *first* to before *after*, "" for no end."""
        whole = self.below("")
        end = self.key(after) if after else whole["range_end"]
        return {"key": self.key(first), "range_end": end}

    def records(self, messages: Iterable[Message]) -> list[Record]:
        """Return the records that etcd's KeyValue *messages* are, if they are ours."""
        return [self.record(each) for each in messages if self._is_ours(each)]

    def events(self, messages: Iterable[Message]) -> list[Event]:
        """Return the changes that etcd's Event *messages* are, if they are of ours."""
        return [self._event(each) for each in messages if self._is_ours(each["kv"])]

    def record(self, message: Message) -> Record:
        """Return the record that etcd's KeyValue *message* is; its key is text."""
        return Record(
            key=self._name(message),
            value=decoded(message.get("value", "")),
            create_revision=int(message["create_revision"]),
            mod_revision=int(message["mod_revision"]),
            lease=int(message.get("lease", 0)),
        )

    def _event(self, message: Message) -> Event:
        pair = message["kv"]
        revision = int(pair["mod_revision"])
        if message.get("type") == "DELETE":
            return Event(self._name(pair), revision, None)
        return Event(self._name(pair), revision, self.record(pair))

    def comparison(self, condition: Compare) -> dict[str, Any]:
        """Return *condition* for a transaction."""
        return unchanged_since(self.key(condition.key), condition.mod_revision)

    def request(self, operation: Operation) -> dict[str, Any]:
        """Return *operation* for a transaction."""
        key = self.key(operation.key)
        if isinstance(operation, Put):
            put = {
                "key": key,
                "value": encoded(operation.value),
                "lease": str(operation.lease),
            }
            return {"request_put": put}
        return {"request_delete_range": {"key": key}}

    def _is_ours(self, message: Message) -> bool:
        """Return whether the key is text; one that is not is told, and passed over."""
        key = decoded(message["key"])
        try:
            key.decode()
        except UnicodeDecodeError:
            if key not in self._told and len(self._told) < _TOLD_MAX:
                self._told.add(key)
                log.warning("passed over: the key %r in etcd is none of ours", key)
            return False
        return True

    def _name(self, message: Message) -> str:
        return decoded(message["key"]).decode().removeprefix(self._records)


def key_after(key: str) -> str:
    """Return the key that comes next after etcd's *key*."""
    return encoded(decoded(key) + b"\0")


def unchanged_since(key: str, mod_revision: int) -> dict[str, Any]:
    """Return the condition that *key* was last changed at *mod_revision*."""
    return {
        "key": key,
        "target": "MOD",
        "result": "EQUAL",
        "mod_revision": str(mod_revision),
    }


def revision_of(answer: Message) -> int:
    """Return the store's revision that *answer* was given at."""
    return int(answer["header"]["revision"])
