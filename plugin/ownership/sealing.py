"""
Commits of what this node has written: while containers write, and at the end.

What is sealed is flushed before: the commit's number is voted, pulled and built upon,
and after a power failure the bytes must be there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from typing import Final

from backends.errors import BackendError
from plugin.errors import NotOwnerError
from plugin.model import VolumeRecord
from plugin.ownership import copy_worth, rules
from plugin.ownership.copy_states import CopyStates
from plugin.ownership.heads import Heads
from plugin.ownership.state import Commit, CopyState
from plugin.ownership.view import OwnershipView

# Less than who asks for a promise waits for it.
_WAIT_S: Final = 3.0


def commit_running(
    ownership: OwnershipView, record: VolumeRecord, epoch: int
) -> Commit:
    """
    Return a new commit of the volume, to which containers go on writing.

    Raises:
        NotOwnerError: this node's containers do not write in *epoch* any more.

    """
    with ownership.copy_states.changing(record.id):
        copy = ownership.copy_state(record)
        if copy is None or copy.live_epoch != epoch:
            raise NotOwnerError(f"'{record.name}' is not owned in epoch {epoch}")
        committed = rules.commit_live(copy)
        ownership.copy_states.write(record.id, committed)
    return committed.commit


def seal(ownership: OwnershipView, record: VolumeRecord) -> Commit | None:
    """
    Return the copy's commit, made of all that was written.

    None without a copy, or if its disk has gone back: others have that number.
    """
    if ownership.is_shared(record):
        return None
    # Before others have to wait for the copy's state: the first one may take long.
    flush_live(ownership, record)
    with ownership.copy_states.changing(record.id):
        copy = ownership.copy_state(record)
        if copy is None or has_gone_back(ownership.heads, record.id, copy):
            return None
        if copy.live_epoch:
            flush_live(ownership, record)
            copy = rules.seal(copy)
            ownership.copy_states.write(record.id, copy)
        return copy.commit


def has_gone_back(heads: Heads, volume_id: str, copy: CopyState) -> bool:
    """Return whether *copy*, this node's, is an older one than it was."""
    head = heads.read(volume_id).head
    if head is None or not copy.live_epoch:
        return False
    return copy_worth.gone_back(copy, head, heads.lineage(volume_id))


def flush_live(ownership: OwnershipView, record: VolumeRecord) -> None:
    """Make what was written to this node's live copy durable; alone it need not be."""
    copy = ownership.copy_state(record)
    if copy is not None and copy.live_epoch and not ownership.membership.alone:
        ownership.copy_states.flush(record.id)


class Flushes:
    """
    Flushes copies whose writers have been stopped, each in a thread of its own.

    Nobody waits longer than `_WAIT_S`. A slow disk goes on meanwhile, and whoever asks
    again finds it further.
    """

    def __init__(self, copy_states: CopyStates) -> None:
        self._copy_states = copy_states
        self._lock = threading.Lock()
        self._flushes: dict[tuple[str, int], Future[None]] = {}

    def flush(self, record: VolumeRecord, live_epoch: int) -> None:
        """
        Return when all that was written in *live_epoch* is durable.

        Raises:
            BackendError: the disk is not done yet, or refuses.

        """
        key = record.id, live_epoch
        with self._lock:
            flush = self._flushes.get(key)
            if flush is None:
                work = partial(self._copy_states.flush, record.id)
                flush = self._flushes[key] = _begun(work)
        if not wait([flush], _WAIT_S).done:
            raise BackendError(
                f"what was written to '{record.name}' is still being flushed",
                hint="retry; it goes on meanwhile",
            )
        with self._lock:
            self._flushes.pop(key, None)
        error = flush.exception()
        if error is not None:
            cause = getattr(error, "cause", error)
            raise BackendError(f"'{record.name}' cannot be flushed: {cause}")


def _begun(work: Callable[[], None]) -> Future[None]:
    """Return the outcome of *work*, which has begun."""
    flush: Future[None] = Future()

    def run() -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - it is the outcome
            flush.set_exception(error)
        else:
            flush.set_result(None)

    threading.Thread(target=run, name="flush", daemon=True).start()
    return flush
