"""
Rolls a commit that has been marked forward into the volume, through any crash.

`applying.py` brings it into place. Then the manifest says the new commit, and the
marker goes. A manifest that is damaged meanwhile is made anew and describes nothing:
the commit is applied without it, and the copy is compared with another one afterwards.

What root in a container has made immutable here, when this node was the owner, is made
changeable: on the owner it may long be otherwise, and no commit carries such flags.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

from backends.errors import BackendError
from backends.rsync.journal.applying import Applying
from backends.rsync.journal.delta import Delta
from backends.rsync.journal.entries import UNWRITTEN, Commit
from backends.rsync.journal.kept_files import KeptFiles
from backends.rsync.journal.manifest import Manifest
from backends.rsync.journal.redo_files import RedoFiles
from backends.rsync.journal.staging import LIVE_NAME, Marker, Staging, require_base
from backends.system import quota
from backends.system.beneath import Beneath, name_in
from backends.system.changeable import make_changeable


def apply(
    home: Path, manifest: Manifest, keep: Callable[[], object] = lambda: None
) -> Commit:
    """
    Return the marked commit of the volume in *home*, now that it is in live/.

    *keep* is called while it still is marked: nobody writes to live/ before that ends.

    Raises:
        BackendError: nothing is marked, or what is there does not become the commit.

    """
    staging = Staging(home)
    marker = staging.read_marker()
    if marker is None:
        raise BackendError(f"{home} has no commit to apply")
    try:
        if manifest.commit() != marker.commit:
            try:
                _roll_forward(home, manifest, staging, marker)
            except PermissionError:
                if not make_changeable(home / LIVE_NAME):
                    raise
                # It may say by now that what is to be deleted has gone.
                marker = staging.read_marker() or marker
                _roll_forward(home, manifest, staging, marker)
    except OSError as error:
        what = f"{error.strerror} {name_in(error)}".rstrip()
        raise BackendError(f"cannot apply a commit in {home}: {what}") from error
    keep()
    staging.unmark()
    staging.clear()
    return marker.commit


def _roll_forward(
    home: Path, manifest: Manifest, staging: Staging, marker: Marker
) -> None:
    """
    Bring the marked commit into live/; it may have come there in part.

    Raises:
        PermissionError: something in there is immutable, for instance (chattr +i).

    """
    with (
        staging.delta() as delta,
        Beneath(staging.tree()) as staged,
        Beneath(staging.redo) as redo,
        Beneath(staging.attributes) as attributes,
        Beneath(home / LIVE_NAME) as live,
    ):
        if delta.header.commit != marker.commit:
            raise BackendError(
                f"the delta is commit {delta.header.commit}, not the marked "
                f"{marker.commit}"
            )
        lost = _has_lost_base(delta, manifest)
        if not lost:
            require_base(delta, manifest)
        redo_files = RedoFiles(redo, live, delta.header)
        kept = KeptFiles(attributes, live)
        applying = Applying(
            *(home, manifest, delta, staged, redo_files, kept), lost=lost
        )
        applying.run(staging, marker, whole=_take_whole(staging, marker, delta))


def _has_lost_base(delta: Delta, manifest: Manifest) -> bool:
    """
    Return whether *manifest* was made anew since *delta*, which led on from it, came.

    The marker says that the bytes were at its base then, or are between it and the
    commit. So the commit can be applied. But what else is there is not known any more.
    """
    at = manifest.commit()
    return at == UNWRITTEN and delta.header.base not in (None, at)


def _take_whole(staging: Staging, marker: Marker, delta: Delta) -> bool:
    """
    Put what was sent in the place of an empty live/, in one step; return whether.

    What was sent earlier, and the commit does not have, is still in there, and is to be
    deleted afterwards. So it must not have been marked that all deletions are done.
    """
    live = staging.home / LIVE_NAME
    if delta.header.base is not None or marker.deleted or quota.is_limited(live):
        return False
    try:
        staging.tree().rename(live)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.EXDEV, errno.EBUSY):
            return False
        raise
    return True
