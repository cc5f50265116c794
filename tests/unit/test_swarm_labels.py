"""Which labels a swarm's node has."""

from __future__ import annotations

from plugin.ownership.state import Head
from plugin.swarm.labels import labels_of, with_labels

DB = ("db", Head(epoch=3, owner="a", phase="owned", members=("a", "b")))
PAGES = ("pages", Head(epoch=9, owner="c", phase="idle", members=("c",)))


def test_each_node_of_the_cluster_has_a_label_for_each_volume() -> None:
    assert labels_of("a", [DB, PAGES]) == {
        "remora.volume.db": "owner",
        "remora.volume.pages": "none",
    }
    assert labels_of("b", [DB, PAGES])["remora.volume.db"] == "replica"
    # Whoever had it last: a service that is scaled to nothing comes back there.
    assert labels_of("c", [DB, PAGES]) == {
        "remora.volume.db": "none",
        "remora.volume.pages": "owner",
    }


def test_who_has_given_a_volume_up_without_bytes_is_not_its_owner() -> None:
    head = Head(epoch=10, owner="a", phase="idle", members=("c",))
    assert labels_of("a", [("pages", head)]) == {"remora.volume.pages": "none"}


def test_labels_of_others_stay() -> None:
    spec = {
        "Role": "worker",
        "Availability": "drain",
        "Labels": {"zone": "1", "remora.volume.gone": "owner", "remora.volumes": "x"},
    }
    assert with_labels(spec, {"remora.volume.db": "owner"}) == {
        "Role": "worker",
        "Availability": "drain",
        "Labels": {"zone": "1", "remora.volumes": "x", "remora.volume.db": "owner"},
    }
    assert with_labels({"Labels": None}, {}) == {"Labels": {}}
    assert with_labels({}, {}) == {"Labels": {}}
