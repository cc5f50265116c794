"""
What other nodes may ask: of each request its form, who may ask it, and the answer.

A node's key may be stolen, or its records be old. So no request reaches what answers it
before it has its form, in which ids are ids, and before the rule lets the node ask.
What changes who owns or keeps a volume is no question: it is a wish, in the store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from plugin.peers.lines import read_request

Request = TypeVar("Request", bound=msgspec.Struct)


class NoBody(msgspec.Struct, frozen=True):
    """A request that says nothing besides its name."""


@dataclass(frozen=True, slots=True)
class Question(Generic[Request]):
    """
    One request: *rule* raises PeerRefusedError for a node that may not ask it.

    Both are given the id of the node that asks, which sshd knows by its key.
    """

    form: type[Request]
    rule: Callable[[str, Request], None]
    answer: Callable[[str, Request], Mapping[str, Any]]

    def __call__(self, node_id: str, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """
        Return the answer to *message* of node *node_id*.

        Raises:
            InvalidRequestError: it has another form.
            RemoraError: the node may not ask, or there is no answer.

        """
        request = read_request(message, self.form)
        self.rule(node_id, request)
        return self.answer(node_id, request)


def anybody(node_id: str, request: object) -> None:
    """Let every node of the cluster ask what tells nothing of others' volumes."""
    del node_id, request
