"""The rules' refusals in words: what stands in the way, and what to do instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from backends.errors import BackendError, RemoraError
from plugin.errors import NotOwnerError
from plugin.membership.quarantine_records import KnownQuarantineRecord
from plugin.ownership.state import Commit, RefusedError


def explained(
    volume: str, error: RefusedError, name_of: Callable[[str], str]
) -> NotOwnerError:
    """Return the error that users see for *error*; *name_of* names a node."""
    node = name_of(error.node) if error.node else "another node"
    where = f"node '{node}'" if error.node else "this node"
    older = "if it runs, the records are older: docs/guides/cluster-records.md"
    causes = {
        "locked": (
            f"'{volume}' is in use on node '{node}'",
            f"stop its container there; if '{node}' is dead, retry in some seconds",
        ),
        "removing": (f"'{volume}' is being removed", "repeat: docker volume rm"),
        "not-owner": (f"node '{node}' has taken '{volume}' meanwhile", "retry"),
        "stale-epoch": (
            f"the records know less of '{volume}' than its copy on {where}",
            "were they restored from an old backup? See docs/guides/cluster-records.md",
        ),
        "writers-running": (f"'{volume}' is still written to on '{node}'", "retry"),
        "no-copy": (
            f"no node that answers has a copy of '{volume}' (commit {error.commit})",
            f"start the node that has it; {older}",
        ),
        "would-begin-empty": (
            f"'{volume}' would begin empty: what was written is on node '{node}'",
            f"start '{node}', or remove the volume if its bytes are not needed",
        ),
        "newer-elsewhere": (
            f"commit {error.commit} of '{volume}' is on '{node}', which is silent",
            f"start '{node}'; if it is gone for good: remora node rm {node} --force",
        ),
        "last-copy": (
            f"too few others have commit {error.commit} of '{volume}'; '{node}' has it",
            f"wait until another node has it, too: remora replica ls {volume}",
        ),
    }
    cause, hint = causes[error.reason]
    transient = error.reason in ("locked", "not-owner", "writers-running")
    unanswered = error.reason in ("no-copy", "newer-elsewhere")
    return NotOwnerError(cause, hint=hint, transient=transient, unanswered=unanswered)


def in_use(volume: str, error: RemoraError) -> NotOwnerError:
    """Return the error for a volume whose owner goes on, as *error* of a node says."""
    return NotOwnerError(
        f"'{volume}' may still be written to: {error.cause}",
        hint="retry",
        transient=True,
    )


def elsewhere(volume: str, commit: Commit, nodes: Sequence[str]) -> NotOwnerError:
    """Return the error for a volume whose newest bytes this node cannot get."""
    where = " and ".join(f"'{each}'" for each in nodes) or "another node"
    return NotOwnerError(
        f"the data of '{volume}' (commit {commit}) is on node {where}, not on this one",
        hint="retry; see the daemon's log there if it goes on",
        transient=True,
        unanswered=True,
    )


def unanswered(volume: str, nodes: Sequence[str], why: str) -> NotOwnerError:
    """Return the error for a volume of which a node that lives may have newer bytes."""
    where = " and ".join(f"'{each}'" for each in nodes)
    return NotOwnerError(
        f"'{volume}' may have newer data on node {where}, which lives and does not "
        f"vote: {why}",
        hint="retry; if it goes on, restart remora there; stopped, it counts as dead "
        "as soon as its lease has ended",
        transient=True,
        unanswered=True,
    )


def set_apart(
    volume: str, apart: KnownQuarantineRecord, name_of: Callable[[str], str]
) -> BackendError:
    """Return the error for a volume of which a node has bytes that no other has."""
    return BackendError(
        f"'{volume}' has bytes on node '{name_of(apart.node_id)}' that no other copy "
        f"has: commit {apart.commit}",
        hint=f"save them, then, on that node: remora quarantine discard {volume} "
        f"{apart.commit}",
    )


def has_snapshots(volume: str, snapshots: Sequence[str], node: str) -> BackendError:
    """Return the error for a volume of which *node* has snapshots."""
    return BackendError(
        f"'{volume}' has snapshots on node '{node}', which would be lost with it: "
        + ", ".join(snapshots[:5]),
        hint=f"on that node: remora snapshot rm {volume} {snapshots[0]}",
    )


def contended(volume: str) -> NotOwnerError:
    """Return the error for a volume that changes under each attempt."""
    return NotOwnerError(
        f"'{volume}' changes hands all the time", hint="retry", transient=True
    )
