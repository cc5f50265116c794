"""
What another node has to do: it has the bytes, or a scheduler wants them there.

It is wished of that node in the store (ADR 24), and that node answers what came of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import msgspec

from backends.errors import DeadlineError, InvalidRequestError
from backends.system.decoding import from_json
from plugin.errors import PeerSilentError, StoreError
from plugin.model import VolumeRecord
from plugin.ownership.parts import Asking
from plugin.ownership.view import OwnershipView
from plugin.ownership.wishes import Wish

Request = TypeVar("Request")
Doing = Literal["create", "snapshot", "forget-snapshot"]


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Has other nodes do something; a node that is alone knows none."""

    ownership: OwnershipView
    asking: Asking | None

    def do(
        self,
        node_id: str,
        doing: Doing,
        about: str,
        request: Mapping[str, Any],
        *,
        wait_s: float,
    ) -> None:
        """
        Return when the node has done it to the volume whose id is *about*.

        Raises:
            DeadlineError: it gave no answer in *wait_s*, and may go on.
            PeerUnreachableError, StoreError: it cannot be asked.
            RemoraError: what that node says.

        """
        if self.asking is None:
            raise StoreError("the records name another node, and this one is alone")
        wish = Wish(
            volume=about,
            node=self.ownership.node_id,
            action=doing,
            to=node_id,
            request=msgspec.json.encode(request).decode(),
        )
        try:
            self.asking.fulfil(wish, wait_s)
        except PeerSilentError:
            raise DeadlineError(
                f"node '{self.ownership.name_of(node_id)}' has not answered in "
                f"{wait_s:.0f} s",
                hint="it goes on; the same call again finds it done",
            ) from None

    def node_with(self, record: VolumeRecord, snapshot: str = "") -> str:
        """Return the id of another node with the newest bytes, or *snapshot*; or ""."""
        own = self.ownership.node_id
        if snapshot:
            for node_id, known in self.ownership.nodes.snapshots.of(record.id).items():
                if node_id != own and any(each.name == snapshot for each in known):
                    return node_id
            return ""
        head = self.ownership.heads.read(record.id).head
        head = head or self.ownership.initial_head(record)
        nodes = head.holders or head.members
        if head.phase != "idle":
            nodes = (head.owner,)
        alive = [each for each in nodes if self.ownership.nodes.lease_of(each)]
        return "" if own in nodes else next(iter(alive), "")


def asked_in(wish: Wish, kind: type[Request]) -> Request:
    """Return what another node asks for; raise InvalidRequestError."""
    try:
        return from_json(wish.request, kind)
    except msgspec.DecodeError as error:
        raise InvalidRequestError(f"the wish cannot be read: {error}") from None
