"""The control API's route on the cluster as a whole; also `remora cluster status`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flask import Flask, Response

from plugin.api.admin.bodies import answer
from plugin.membership.directory import NodeDirectory
from plugin.membership.endpoints import look
from plugin.membership.membership import Membership
from plugin.replication.node import ReplicationNode
from plugin.store.etcd.settings import EtcdSettings
from plugin.store.mirror import MirrorStore
from plugin.volumes.members import VolumeMembers


@dataclass(frozen=True, slots=True)
class ClusterView:
    """
    What the control API shows of the cluster and this node's part in it.

    A node that is alone has no *settings*, *mirror* and *replication*; *faults* returns
    those of its own services for other nodes.
    """

    nodes: NodeDirectory
    membership: Membership
    settings: EtcdSettings | None
    mirror: MirrorStore | None
    faults: Callable[[], list[str]]
    members: VolumeMembers
    replication: ReplicationNode | None = None

    def all_faults(self) -> list[str]:
        """Return what is wrong, one line each."""
        found = [
            self.mirror.fault() if self.mirror is not None else None,
            self.membership.fault(),
            *self.faults(),
        ]
        return [each for each in found if each] + self.nodes.clock_warnings()


def add_cluster(app: Flask, view: ClusterView) -> None:
    """Add `/v1/cluster` to *app*."""
    membership, settings, mirror = view.membership, view.settings, view.mirror

    @app.get("/v1/cluster", endpoint="cluster-status")
    def status() -> Response:
        health = look(settings) if settings is not None else None
        found = {
            "alone": health is None,
            "etcd": health.endpoints if health else [],
            "answers": health.answers if health else True,
            "revision": health.revision if health else 0,
            "cluster": health.cluster if health else "",
            "prefix": settings.prefix if settings else "",
            # None while the mirror is in step with etcd.
            "mirror_age_s": mirror.synchronised_age_s() if mirror else None,
            "this_node": membership.own.name,
            "nodes": [
                {"name": each.record.name, "id": each.record.id, "state": each.state}
                for each in view.nodes.all()
            ],
            "faults": view.all_faults(),
        }
        return answer(found)
