"""Which members of a volume get a commit together, by the commits that they are at."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from backends.rsync.journal.journal import Journal
from plugin.ownership.state import EMPTY, Commit, Lineage
from plugin.replication.receiving import pair


@dataclass(frozen=True, slots=True)
class Group:
    """Members at one base; at None all is named, for what they have is not known."""

    base: Commit | None
    node_ids: Sequence[str]
    is_empty: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """
    Which members get a commit how.

    Those that are ``there`` come first: they may not keep it for long. Then all whose
    base the journal knows, ``together``: were each group brought a commit of its own,
    they would never be at one while containers write. A member that is at an unknown
    commit is a group of its own, and so is one that is far behind: whatever else were
    sent to it would end its filling. One without a copy comes last.
    """

    there: Sequence[str]
    together: Mapping[Commit, Sequence[str]]
    alone: Sequence[Group]


def planned(
    journal: Journal,
    lineage: Lineage,
    commits: Mapping[str, Commit],
    commit: Commit,
    *,
    apart: Collection[str],
) -> Plan:
    """
    Return the plan for members at *commits*, by their nodes.

    Those *apart* need a commit that names everything, whatever theirs is.
    """
    there: list[str] = []
    together: dict[Commit, list[str]] = {}
    unknown: list[str] = []
    empty: list[Group] = []
    for node_id, at in commits.items():
        known = _leads_on(journal, lineage, at, commit)
        if at == commit:
            there.append(node_id)
        elif at == EMPTY:
            empty.append(Group(at if known else None, (node_id,), is_empty=True))
        elif known and node_id not in apart:
            together.setdefault(at, []).append(node_id)
        else:
            unknown.append(node_id)
    groups = [Group(None, (each,)) for each in unknown]
    return Plan(there, together, [*groups, *empty])


def _leads_on(journal: Journal, lineage: Lineage, base: Commit, commit: Commit) -> bool:
    """Return whether the journal knows the changes since *base*, an ancestor."""
    known = journal.manifest.since(pair(base)) is not None
    return known and lineage.contains(base, at=commit.epoch)
