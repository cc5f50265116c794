"""A copy of a volume whose process dies at any step, and what comes after it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from backends.rsync.journal.journal import EVERYTHING, Journal
from backends.rsync.journal.outbox import unpack_all
from backends.rsync.journal.packing import OUTBOX_NAME
from backends.rsync.journal.staging import Staging
from tests.support.fuse import NEVER, STEPS_MAX, live
from tests.support.journal_trees import VOLUME, carry, shape

Pair = tuple[Journal, Journal]
# Fewer would say that nothing was cut short.
_STEPS_MIN = 10


def packing_dies(pair: Pair, change: Callable[[Journal, int], None]) -> None:
    """
    Fail unless a death at any step of packing a *change* loses none.

    *change* is given the owner's journal and the number of the step.
    """
    owner, member = pair
    for step in range(1, STEPS_MAX):
        change(owner, step)
        commit, base = (1, owner.commit()[1] + 1), member.commit()
        owner.close()
        pack = partial(_pack_anew, home=owner.home, commit=commit, base=base)
        died = live(lambda: None, pack, fatal_step=step).died
        unpack_all(owner.home / OUTBOX_NAME)  # as a start does
        owner = Journal(owner.home, VOLUME)
        # The number that was used up is not used again.
        owner.record(owner.look(EVERYTHING), (1, commit[1] + 1))
        assert carry(owner.pack(base), member) == []
        owner.unpack()
        member.apply()
        assert shape(member.live) == shape(owner.live)
        if not died:
            assert step > _STEPS_MIN
            return
    pytest.fail(f"still dying at step {STEPS_MAX}")


def applying_dies(pair: Pair, send: Callable[[Journal, Journal, int], None]) -> None:
    """
    Fail unless a death at any step of applying what was sent changes nothing.

    *send* changes the owner's tree and sends that; it is given the number of the step.
    A start may die as well.
    """
    owner, member = pair
    for step in range(1, STEPS_MAX):
        send(owner, member, step)
        member.manifest.close()
        apply = partial(_apply_anew, home=member.home)
        died = live(lambda: None, apply, fatal_step=step).died
        if died and Staging(member.home).marked() is not None:
            live(lambda: None, apply, fatal_step=step // 2 + 1)
            assert not live(lambda: None, apply, fatal_step=NEVER).died
        member = Journal(member.home, VOLUME)
        assert member.staging.marked() is None
        assert member.commit() == owner.commit()
        assert shape(member.live) == shape(owner.live)
        if not died:
            assert step > _STEPS_MIN
            member.close()
            return
    pytest.fail(f"still dying at step {STEPS_MAX}")


def _apply_anew(_: None, home: Path) -> None:
    Journal(home, VOLUME).apply()


def _pack_anew(
    _: None, home: Path, commit: tuple[int, int], base: tuple[int, int]
) -> None:
    """Make what has changed *commit*, and pack it, in a process of its own."""
    journal = Journal(home, VOLUME)
    journal.record(journal.look(EVERYTHING), commit)
    journal.pack(base)
