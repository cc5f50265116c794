"""Carrying out what other nodes wish of this one; the store tells what came of it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Final

from backends.errors import RemoraError
from backends.system.aside import begun, log_fault
from plugin.errors import PeerRefusedError
from plugin.logs import fields
from plugin.ownership.wishes import Action, Wish, Wishes
from plugin.peers.lines import ErrorFields
from plugin.store.base import Record

log = logging.getLogger(__name__)
_LOOK_EVERY_S: Final = 0.2
# The others wait for their turn in the store.
_AT_ONCE_MAX: Final = 4
_STOP_WAIT_S: Final = 3.0

Grant = Callable[[Wish], None]


class Granting:
    """
    Looks for wishes while it runs; *grants* carry them out, by their action.

    A grant decides by the records whether this node may: a wish is no order.
    """

    def __init__(
        self,
        wishes: Wishes,
        grants: Mapping[Action, Grant],
        *,
        is_node: Callable[[str], bool],
    ) -> None:
        self._wishes = wishes
        self._grants = dict(grants)
        self._is_node = is_node
        self._lock = threading.Lock()
        self._under_way: set[str] = set()
        # What the wishes were when nothing of them was left to be begun.
        self._seen: int | None = None
        self._left_by_us = True
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="wishes", daemon=True)

    def start(self, also: Mapping[Action, Grant]) -> None:
        """Begin, with *also* what is carried out by parts that were built later."""
        self._grants |= also
        self._thread.start()

    def stop(self) -> None:
        """Carry out no more; what is under way ends with the process."""
        self._stopping.set()
        self._thread.join(_STOP_WAIT_S)

    def _run(self) -> None:
        while not self._stopping.wait(_LOOK_EVERY_S):
            try:
                self._look()
            except RemoraError as error:
                log.debug("wishes cannot be read: %s", error)
            except Exception:
                log.exception("wishes were not carried out")

    def _look(self) -> None:
        changes = self._wishes.changes()
        if changes == self._seen:
            return
        if self._left_by_us:
            self._wishes.withdraw_left()
            self._left_by_us = False
        for record, wish in self._wishes.due():
            with self._lock:
                if record.key in self._under_way:
                    continue
                if len(self._under_way) >= _AT_ONCE_MAX:
                    return
                self._under_way.add(record.key)
            granting = begun(partial(self._grant, record, wish), name="wish")
            granting.add_done_callback(partial(self._ended, record.key))
            if granting.done() and granting.exception():
                return  # it could not begin; it is due again
        self._seen = changes

    def _ended(self, key: str, granting: Future[None]) -> None:
        log_fault(granting)
        with self._lock:
            self._under_way.discard(key)

    def _grant(self, record: Record, wish: Wish) -> None:
        """Carry *wish* out, and answer it."""
        about = fields(node=wish.node, id=wish.volume, action=wish.action)
        error: RemoraError | None = None
        try:
            self._carry_out(wish)
            log.info("a wish was carried out", extra=about)
        except RemoraError as refused:
            error = refused
            log.info("a wish was refused: %s", refused, extra=about)
        except Exception:
            error = RemoraError("a fault in the daemon; see its log")
            log.exception("a fault of ours", extra=about)
        try:
            said = None if error is None else ErrorFields.of(error)
            self._wishes.answer(record, wish, said)
        except RemoraError as unsaid:
            log.warning("a wish was not answered: %s", unsaid, extra=about)

    def _carry_out(self, wish: Wish) -> None:
        if not self._is_node(wish.node):
            raise PeerRefusedError(f"node {wish.node} is no member of the cluster")
        grant = self._grants.get(wish.action)
        if grant is None:
            raise PeerRefusedError(f"this version does not know '{wish.action}'")
        grant(wish)
