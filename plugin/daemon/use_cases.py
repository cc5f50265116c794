"""The use cases of volumes, put together from their parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from backends.rsync.quarantine import Quarantine
from plugin.errors import NotKnownYetError, StoreError
from plugin.events.log import Events
from plugin.limits import GETS_WAITING_MAX
from plugin.ownership.acquisition import Acquisition
from plugin.ownership.holders import Holders
from plugin.ownership.keeper import Keeper
from plugin.ownership.parts import Asking
from plugin.ownership.release import Release
from plugin.ownership.view import OwnershipView
from plugin.replication.node import ReplicationNode
from plugin.volumes.adoption import Adoption
from plugin.volumes.catalogue import Catalogue
from plugin.volumes.copying_under_way import CopyingUnderWay
from plugin.volumes.creation import Creation
from plugin.volumes.discovery import Discovery
from plugin.volumes.history import VolumeHistory
from plugin.volumes.mounting import Mounting
from plugin.volumes.newest import NewestBytes
from plugin.volumes.operations import Operations
from plugin.volumes.options import OptionResolver
from plugin.volumes.own_snapshots import OwnSnapshots
from plugin.volumes.patience import Patience
from plugin.volumes.propagation import Propagation
from plugin.volumes.publishing import Percent
from plugin.volumes.quarantine import QuarantineService
from plugin.volumes.reconciler import Reconciler
from plugin.volumes.references import References
from plugin.volumes.removal import Removal
from plugin.volumes.scheduled import Scheduled
from plugin.volumes.sizes import Fit, Sizes
from plugin.volumes.snapshots import SnapshotService
from plugin.volumes.unmounting import Unmounting
from plugin.volumes.use_cases import UseCases
from plugin.volumes.views import VolumeViews


@dataclass(frozen=True, slots=True)
class Owning:
    """How this node owns volumes; alone it has no *keeper* and no *replication*."""

    view: OwnershipView
    acquisition: Acquisition
    release: Release
    keeper: Keeper | None = None
    replication: ReplicationNode | None = None
    asking: Asking | None = None


@dataclass(frozen=True, slots=True)
class Times:
    """The times of the use cases, in seconds."""

    mount_deadline_s: float
    disuse_grace_s: float
    reconcile_interval_s: float
    # So long after the machine's start a Mount waits for what does not answer yet.
    boot_wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Given:
    """What the use cases of one node are made of."""

    catalogue: Catalogue
    resolver: OptionResolver
    references: References
    owning: Owning
    propagation: Propagation
    quarantine: Quarantine
    events: Events
    mount_dir: Path
    times: Times
    # Holds this node's copy of a volume to its size.
    fit: Fit
    # Why the records may lack volumes, "" if they do not.
    unread: Callable[[], str] = str


def build_use_cases(given: Given) -> UseCases:
    """Return all that can be done with volumes; nothing runs yet."""
    owning, ownership = given.owning, given.owning.view
    catalogue, references = given.catalogue, given.references
    operations = Operations(partial(_storage_of, catalogue))
    copying = CopyingUnderWay()
    discovery = Discovery(
        *(catalogue, ownership.registry, references, operations.locks), given.unread
    )
    views = VolumeViews(
        catalogue,
        references,
        discovery,
        ownership,
        owning.replication.copies_of if owning.replication else lambda _: None,
        given.mount_dir,
        # Each call has its own deadline.
        Patience(error=NotKnownYetError, waiting_max=GETS_WAITING_MAX, attempt_min_s=0),
    )
    unmounting = Unmounting(
        views,
        catalogue,
        references,
        operations,
        ownership,
        owning.release,
        owning.keeper,
        given.times.mount_deadline_s,
        given.times.disuse_grace_s,
    )
    replication = owning.acquisition.replication
    removal = Removal(catalogue, operations, ownership, unmounting, replication)
    creation = Creation(
        views,
        catalogue,
        given.resolver,
        operations,
        copying,
        ownership,
        removal,
        NewestBytes(ownership, replication),
    )
    return _with_the_rest(given, discovery, creation, copying)


def _with_the_rest(
    given: Given, discovery: Discovery, creation: Creation, copying: CopyingUnderWay
) -> UseCases:
    """Return all use cases, built from *creation* and its parts."""
    owning, ownership, catalogue = given.owning, given.owning.view, given.catalogue
    views, operations, removal = creation.views, creation.operations, creation.removal
    unmounting, acquisition = removal.unmounting, owning.acquisition
    quarantine = QuarantineService(
        *(catalogue, given.resolver, operations, copying, creation, ownership),
        given.quarantine,
    )
    own_snapshots = OwnSnapshots(ownership)
    holders = Holders(ownership, owning.asking)
    mounting = _mounting(given, unmounting)
    snapshots = SnapshotService(
        *(views, operations, copying, ownership, acquisition, unmounting),
        *(creation.newest, own_snapshots),
    )
    scheduled = Scheduled.of(
        *(mounting, creation, snapshots),
        asking=owning.asking,
        percent=_percent_of(owning.replication),
        fit=given.fit,
    )
    return UseCases(
        views=views,
        creation=creation,
        mounting=mounting,
        unmounting=unmounting,
        removal=removal,
        snapshots=snapshots,
        scheduled=scheduled,
        adoption=Adoption(views, catalogue, operations, ownership, removal),
        quarantine=quarantine,
        history=VolumeHistory(views, ownership, given.events, owning.asking),
        reconciler=_reconciler(
            given,
            discovery,
            removal,
            scheduled.sizes,
            {
                "the record of what is set apart": quarantine.mend,
                "the record of snapshots": own_snapshots.mend,
                "the record of what is held": holders.mend,
            },
        ),
        operations=operations,
    )


def _reconciler(
    given: Given,
    discovery: Discovery,
    removal: Removal,
    sizes: Sizes,
    also: Mapping[str, Callable[[], None]],
) -> Reconciler:
    replication = given.owning.replication
    return Reconciler(
        given.catalogue,
        discovery,
        removal.unmounting.views,
        removal.unmounting,
        removal,
        replication.departing if replication else None,
        sizes,
        interval_s=given.times.reconcile_interval_s,
        also=also,
    )


def _mounting(given: Given, unmounting: Unmounting) -> Mounting:
    return Mounting(
        unmounting.views,
        given.references,
        unmounting.operations,
        given.owning.view,
        given.owning.acquisition,
        given.owning.keeper,
        given.propagation,
        unmounting,
        Patience(until_s=given.times.boot_wait_s),
        given.times.mount_deadline_s,
    )


def _percent_of(replication: ReplicationNode | None) -> Percent:
    if replication is None:
        return lambda _: None
    return replication.progress.receiving_percent


def _storage_of(catalogue: Catalogue, name: str) -> str:
    """Return the kind of backend that has the volume, "" if nobody knows."""
    with suppress(StoreError):
        stored = catalogue.find(name)
        return stored.record.backend if stored else ""
    return ""
