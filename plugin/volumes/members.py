"""
The use cases of copies: which nodes keep one of a volume, one more, one less.

A change also sets an option of the volume in the same transaction: `replicas`, or
`members` if nodes were named. So later decisions without people keep to it. The options
that were asked for at the creation stay: the same Create still finds the volume.

While a node owns the volume, it alone changes the members, for it relies on all of them
(`ownership/failsafe.py`); another node writes into the store that it wishes it. After a
release any node may change them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from backends.errors import (
    InvalidRequestError,
    RemoraError,
    VolumeBusyError,
    one_line,
)
from backends.replication_options import REPLICAS_MAX, ReplicationOptions
from plugin.errors import (
    NodeConflictError,
    NodeNotFoundError,
    NotOwnerError,
    PeerRefusedError,
    PeerSilentError,
    PeerUnreachableError,
    StoreError,
    VolumeNotFoundError,
)
from plugin.membership.nodes import NodeView
from plugin.model import VolumeRecord, check_name
from plugin.ownership import rules
from plugin.ownership.heads import VolumeState, put_head
from plugin.ownership.holders import Holders
from plugin.ownership.parts import Asking
from plugin.ownership.refusals import explained
from plugin.ownership.state import EMPTY, Commit, Head, RefusedError
from plugin.ownership.view import OwnershipView
from plugin.ownership.wishes import Action, Wish
from plugin.store.contention import attempted
from plugin.volumes.catalogue import Catalogue, Stored

_REFRESH_DEADLINE_S: Final = 3.0
_FORWARD_DEADLINE_S: Final = 20.0
_STAND_DEADLINE_S: Final = 3.0
_NAMED_MAX: Final = 10

State = Literal["owner", "holder", "behind", "gone"]


class ReplicaView(msgspec.Struct, frozen=True, kw_only=True):
    """
    One copy; ``commit`` is "" if unknown; if ``gone``, its node has no record.

    ``lacks`` is what of its commit the node's filesystem cannot hold, "" if nothing.
    """

    node: str
    id: str
    state: State
    commit: str
    alive: bool
    lacks: str = ""


@dataclass(frozen=True, slots=True)
class VolumeMembers:
    """What can be done with copies of volumes; a node that is alone asks nobody."""

    catalogue: Catalogue
    ownership: OwnershipView
    asking: Asking | None = None
    # What this node's copy lacks.
    unfit: Callable[[VolumeRecord], str] = lambda _: ""

    def all(self, name: str) -> list[ReplicaView]:
        """
        Return the copies of volume *name*, that of the owner first.

        Raises:
            VolumeNotFoundError: there is no such volume.
            InvalidRequestError: it lies on a share and has no copies.

        """
        record = self._existing(name).record
        head = self._head(record)
        commits, lacks = self._copies(record, head)
        found = [
            msgspec.structs.replace(
                self._view(each, head, commits), lacks=lacks.get(each, "")
            )
            for each in head.members
        ]
        return sorted(found, key=lambda each: (each.state != "owner", each.node))

    def add(self, name: str, node: str) -> None:
        """
        Have *node* keep a copy, which is made in the background.

        Raises:
            NodeNotFoundError, NodeConflictError: there is no such node, or it is down
                or drained.
            RemoraError: as `remove`.

        """
        self._require_cluster()
        self._change(name, self._ready(node), "add", hand_on=True)

    def remove(self, name: str, node: str) -> None:
        """
        Have *node* keep no copy any more.

        Raises:
            VolumeNotFoundError, InvalidRequestError: there is no such copy.
            NotOwnerError: the rules forbid it, or another node has the volume.
            StoreError, PeerUnreachableError: the store or the owner does not answer.

        """
        self._require_cluster()
        try:
            node_id = self.ownership.nodes.find(node).record.id
        except NodeNotFoundError:
            # A node that was removed may still be a member.
            members = self._head(self._existing(name).record).members
            name_of = self.ownership.name_of
            found = [each for each in members if node in (each, name_of(each))]
            if not found:
                raise
            node_id = found[0]
        self._change(name, node_id, "remove", hand_on=True)

    def grant(self, wish: Wish) -> None:
        """
        Do what another node wishes, as the owner.

        Raises:
            PeerRefusedError: this node does not own the volume.
            RemoraError: as `add` and `remove`.

        """
        name = self.catalogue.names().get(wish.volume)
        if name is None:
            raise PeerRefusedError(f"volume {wish.volume} is not known here")
        if wish.action == "add":
            self._ready(wish.target)
        self._change(name, wish.target, wish.action, hand_on=False)

    def _ready(self, node: str) -> str:
        """Return the id of a node that takes copies, or raise."""
        view = self.ownership.nodes.find(node)
        name = view.record.name
        if view.state != "ready":
            hints = {"drained": f"remora node undrain {name}", "down": "start it"}
            raise NodeConflictError(
                f"node '{name}' is {view.state} and takes no copies",
                hint=hints[view.state],
            )
        return view.record.id

    def _change(
        self, name: str, node_id: str, action: Action, *, hand_on: bool
    ) -> None:
        """Write members and option; if another node has to, *hand_on* the request."""
        self.ownership.heads.refresh(_REFRESH_DEADLINE_S)
        attempted(
            lambda: self._try_change(name, node_id, action, hand_on=hand_on),
        )

    def _try_change(
        self, name: str, node_id: str, action: Action, *, hand_on: bool
    ) -> None:
        stored = self._existing(name)
        state = self._state(stored.record)
        head = state.head or self.ownership.initial_head(stored.record)
        if head.phase == "owned" and head.owner != self.ownership.node_id:
            if not hand_on:
                raise PeerRefusedError(f"'{name}' is not owned by this node")
            self._hand_on(stored.record, head.owner, node_id, action)
            return
        self._require_steady(stored.record, head)
        changed = self._changed(stored.record, head, node_id, action)
        options = self._options(stored.record, head, changed)
        record = msgspec.structs.replace(
            stored.record, options={**stored.record.options, **options}
        )
        also = state.change(put_head(record.id, changed))
        self.catalogue.replace(stored, record, also=also)

    def _changed(
        self, record: VolumeRecord, head: Head, node_id: str, action: Action
    ) -> Head:
        """Return the head with the node as a member, or without it."""
        own = self.ownership.node_id
        if action == "remove" and node_id not in head.members:
            raise InvalidRequestError(
                f"node '{self.ownership.name_of(node_id)}' keeps no copy of "
                f"'{record.name}'",
                hint=f"these do: {self._names(head.members)}",
            )
        try:
            if action == "add":
                return rules.join(head, node=own, epoch=head.epoch, members=(node_id,))
            return rules.leave(
                head,
                node=own,
                epoch=head.epoch,
                members=(node_id,),
                standing=Holders(self.ownership, self.asking).standing(record.id),
            )
        except RefusedError as error:
            if error.reason == "last-copy":
                raise NotOwnerError(
                    f"the newest commit of '{record.name}' ({head.committed}) is on "
                    f"{self._names(head.holders or head.members)} only",
                    hint="wait until another node has it, too: remora replica ls "
                    f"{record.name}",
                ) from None
            raise explained(record.name, error, self.ownership.name_of) from None

    def _options(
        self, record: VolumeRecord, before: Head, head: Head
    ) -> dict[str, str]:
        """Return the option by which the volume asks for the members of *head*."""
        wanted = ReplicationOptions.of(record.options)
        added = [each for each in head.members if each not in before.members]
        left = [each for each in before.members if each not in head.members]
        if wanted.members:
            names = wanted.members | {self.ownership.name_of(each) for each in added}
            names -= {self.ownership.name_of(each) for each in left}
            if not names:
                raise InvalidRequestError(
                    f"'{record.name}' names no other node for its copies",
                    hint=f"add one first: remora replica add {record.name} NODE",
                )
            return {"members": ",".join(sorted(names))}
        known = [each for each in head.members if self.ownership.is_member(each)]
        count = max(wanted.copies, len(known))
        if left:
            count = max(1, min(wanted.copies, len(known)))
        if count > REPLICAS_MAX:
            raise InvalidRequestError(
                f"'{record.name}' has {count - 1} copies; at most {REPLICAS_MAX} are "
                "kept"
            )
        return {"replicas": str(count)}

    def _hand_on(
        self, record: VolumeRecord, owner: str, node_id: str, action: Action
    ) -> None:
        """Let the owner do it."""
        if self.asking is None:
            raise StoreError("the records name another owner, and this node is alone")
        wish = Wish(
            volume=record.id,
            node=self.ownership.node_id,
            action=action,
            to=owner,
            target=node_id,
        )
        try:
            self.asking.fulfil(wish, _FORWARD_DEADLINE_S)
        except PeerSilentError:
            raise self.ownership.silent(owner) from None
        except PeerUnreachableError:
            name = self.ownership.name_of(owner)
            raise NotOwnerError(
                f"'{record.name}' was in use on node '{name}', which does not answer",
                hint=f"start '{name}', or a container with the volume elsewhere",
                transient=True,
            ) from None

    def _require_steady(self, record: VolumeRecord, head: Head) -> None:
        """Raise unless it is known which copies are the newest."""
        if record.phase != "ready" or head.phase == "removing":
            raise VolumeBusyError(f"'{record.name}' is being removed")
        if head.phase == "recovering":
            raise explained(
                record.name,
                RefusedError("not-owner", node=head.owner),
                self.ownership.name_of,
            )
        if head.phase == "owned" or head.released:
            return
        raise NotOwnerError(
            f"'{record.name}' was not let go orderly by its last owner, node "
            f"'{self.ownership.name_of(head.owner)}'",
            hint="start a container with it first, which settles who has the newest",
            transient=True,
        )

    def _require_cluster(self) -> None:
        if self.ownership.membership.alone:
            raise InvalidRequestError(
                "this node is alone: nobody else could keep a copy",
                hint="remora cluster join",
            )

    def _existing(self, name: str) -> Stored:
        """Return the record of a volume that has copies; raise if it has none."""
        stored = self.catalogue.find(check_name(name))
        if stored is None or stored.record.phase == "creating":
            raise VolumeNotFoundError(f"there is no volume '{name}'")
        if self.ownership.is_shared(stored.record):
            raise InvalidRequestError(
                f"'{name}' lies on a share, which all nodes see, or shows another "
                "volume: it has no copies"
            )
        return stored

    def _state(self, record: VolumeRecord) -> VolumeState:
        return self.ownership.heads.read(record.id)

    def _head(self, record: VolumeRecord) -> Head:
        return self._state(record).head or self.ownership.initial_head(record)

    def _names(self, node_ids: tuple[str, ...]) -> str:
        names = [self.ownership.name_of(each) for each in node_ids[:_NAMED_MAX]]
        return ", ".join(f"'{each}'" for each in names)

    def _copies(
        self, record: VolumeRecord, head: Head
    ) -> tuple[dict[str, Commit], dict[str, str]]:
        """Return the commit of each copy, and what it lacks, as its node says."""
        commits, lacks = dict.fromkeys(head.holders, head.committed), dict[str, str]()
        own_id, own = self.ownership.node_id, self.ownership.copy_state(record)
        if own is not None:
            commits[own_id], lacks[own_id] = own.commit, self.unfit(record)
        asked = [
            each.record.id
            for each in self.ownership.nodes.all()
            if each.alive and each.record.id in {*head.members} - {own_id}
        ]
        if asked and self.asking is not None:
            answers = self.asking.call_all(
                asked, "stand", {"volume": record.id}, deadline_s=_STAND_DEADLINE_S
            )
            for node_id, answer in answers.items():
                if not isinstance(answer, RemoraError):
                    commits.setdefault(node_id, Commit(*answer["commit"]))
                    lacks[node_id] = one_line(str(answer.get("unfit", "")))
        return commits, lacks

    def _view(
        self, node_id: str, head: Head, commits: Mapping[str, Commit]
    ) -> ReplicaView:
        nodes: dict[str, NodeView] = {
            each.record.id: each for each in self.ownership.nodes.all()
        }
        state: State = "holder" if node_id in head.holders else "behind"
        if node_id not in nodes:
            state = "gone"
        elif node_id == head.owner and head.phase in ("owned", "recovering"):
            state = "owner"
        commit = commits.get(node_id, EMPTY)
        return ReplicaView(
            node=self.ownership.name_of(node_id),
            id=node_id,
            state=state,
            commit="" if commit == EMPTY else str(commit),
            alive=node_id in nodes and nodes[node_id].alive,
        )
