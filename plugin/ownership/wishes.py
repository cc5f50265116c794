"""
Wishes: what a node wants of a volume in which others have a say, written in the store.

    wishes/<volume>/<node>/<number>    a Wish of that node, until it has its answer

A key opens the channel between nodes, and a thief may have one. Only who can write to
the store is a node for sure, so what changes who keeps a volume is wished there, and
carried out by the node that may. A node without a part in a volume that has a question
about it says so there, too: who is asked looks whether that stands.

A wish hangs on its node's lease. It is withdrawn when it was answered, or given up.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, ClassVar, Final, Literal

import msgspec

from backends.base import VOLUME_ID
from backends.system.clock import Deadline, pause
from plugin.errors import PeerSilentError, PeerUnreachableError, StoreError
from plugin.membership.membership import Membership
from plugin.model import NODE_ID, NodeId, NodeIdOrNone, VolumeId
from plugin.peers.lines import ErrorFields, as_error
from plugin.store.base import Compare, Delete, Put, Record, Store
from plugin.store.values import Values, readable

WISHES: Final = "wishes/"
# The answer comes with the mirror's watch.
_LOOK_EVERY_S: Final = 0.05
# Nodes that live connect to each other within so long.
_CONNECT_WITHIN_S: Final = 3.0
# Of what a process before us has left, as many as fit into a transaction.
_LEFT_MAX: Final = 100

# "ask" wants nothing done: it lets the node ask others about the volume.
Action = Literal[
    "ask", "move", "add", "remove", "yield", "create", "snapshot", "forget-snapshot"
]
_Request = Annotated[str, msgspec.Meta(max_length=128 * 1024)]


class Answer(msgspec.Struct, frozen=True):
    """What has come of a wish: it was carried out, or *error* says why not."""

    error: ErrorFields | None = None


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """
    What *node* wants of *volume*: that node *to* does *action* with node *target*.

    To "add" or "remove" a copy on it, or to "move" the volume there; or to "yield" it:
    to let it go if no process of that node uses it. What *request* asks for, in JSON,
    node *to* does as for its own people: to "create" a volume there, to take or to
    forget a "snapshot".
    """

    KEY: ClassVar[re.Pattern[str]] = re.compile(
        rf"{WISHES}(?P<volume>{VOLUME_ID.pattern})/(?P<node>{NODE_ID})"
        rf"/{VOLUME_ID.pattern}"
    )
    volume: VolumeId
    node: NodeId
    action: Action = "ask"
    to: NodeIdOrNone = ""
    target: NodeIdOrNone = ""
    request: _Request = ""
    answer: Answer | None = None


class Wishes:
    """What this node wishes, and what others wish of it."""

    def __init__(self, store: Store, membership: Membership) -> None:
        self._store = store
        self._membership = membership
        self._own_id = membership.own.id
        self._values = Values(store, Wish, prefix=WISHES)
        # The keys of those that this process has written.
        self._own: set[str] = set()

    @contextmanager
    def asking(self, volume_id: str) -> Iterator[None]:
        """
        Inside the block, let the store say that this node asks about the volume.

        If the store does not answer, only those nodes will that know of our part in it.
        """
        wish = Wish(volume=volume_id, node=self._own_id)
        key = ""
        with suppress(StoreError):
            key = self._put(wish)
        try:
            yield
        finally:
            self._withdraw(key)

    def fulfil(
        self, wish: Wish, deadline_s: float, *, is_reached: Callable[[], bool]
    ) -> None:
        """
        Return when node ``wish.to`` has carried *wish* out.

        Raises:
            PeerSilentError: it gave no answer; it may have done it.
            PeerUnreachableError: likewise, and *is_reached* says no.
            StoreError: the store does not answer, or our lease has ended.
            RemoraError: it said no, and why.

        """
        key = self._put(wish)
        try:
            answer = self._answered(key, Deadline(deadline_s), is_reached)
        finally:
            self._withdraw(key)
        if answer.error is not None:
            raise as_error(answer.error)

    def stands(self, volume_id: str, node_id: str) -> bool:
        """Return whether *node_id* has a wish of that volume."""
        return bool(self._store.prefix(f"{WISHES}{volume_id}/{node_id}/")[0])

    def changes(self) -> int:
        """Return a number that is another one after each change of a wish."""
        return self._store.version(WISHES)

    def due(self) -> list[tuple[Record, Wish]]:
        """Return the wishes that this node is to carry out, the oldest first."""
        found = []
        for name, wish in self._values.read(naming=self._own_id).values.items():
            record = self._store.get(WISHES + name)
            if wish.to == self._own_id and wish.answer is None and record is not None:
                found.append((record, wish))
        return sorted(found, key=lambda each: each[0].create_revision)

    def answer(self, record: Record, wish: Wish, error: ErrorFields | None) -> None:
        """Answer *wish*, read as *record*, if it has not been withdrawn meanwhile."""
        answered = msgspec.structs.replace(wish, answer=Answer(error))
        put = Put(record.key, msgspec.json.encode(answered), record.lease)
        self._store.transact([Compare(record.key, record.mod_revision)], [put])

    def withdraw_left(self) -> None:
        """Withdraw what an earlier process of this node has left."""
        own = re.compile(rf"{WISHES}[^/]+/{self._own_id}/")
        found = [each.key for each in self._store.prefix(WISHES)[0]]
        left = [each for each in found if own.match(each) and each not in self._own]
        keys = left[:_LEFT_MAX]
        if keys:
            self._store.transact([], [Delete(each) for each in keys])

    def _put(self, wish: Wish) -> str:
        lease = self._membership.lease
        if not lease:  # it would stand for ever
            raise StoreError("this node has no lease in the cluster", hint="retry")
        key = f"{WISHES}{wish.volume}/{wish.node}/{uuid.uuid4()}"
        put = Put(key, msgspec.json.encode(wish), lease)
        self._own.add(key)
        self._store.transact([Compare(key, 0)], [put])
        return key

    def _withdraw(self, key: str) -> None:
        self._own.discard(key)
        if key:
            with suppress(StoreError):  # it goes with our lease
                self._store.transact([], [Delete(key)])

    def _answered(
        self, key: str, deadline: Deadline, is_reached: Callable[[], bool]
    ) -> Answer:
        connecting = Deadline(_CONNECT_WITHIN_S)
        while not deadline.passed():
            record = self._store.get(key)
            if record is None:
                raise StoreError(
                    "this node's lease has ended meanwhile", hint="repeat it"
                )
            wish = readable(record, Wish)
            if wish is not None and wish.answer is not None:
                return wish.answer
            if connecting.passed() and not is_reached():
                raise PeerUnreachableError("no connection stands")
            pause(_LOOK_EVERY_S)
        raise PeerSilentError("the wish was not taken up in time")
