"""The control API's routes on the copies of a volume; also `remora replica`."""

from __future__ import annotations

import msgspec
from flask import Flask, Response, g

from plugin.api.admin.bodies import answer, read_body
from plugin.volumes.members import VolumeMembers


class AddRequest(msgspec.Struct, frozen=True):
    """`POST /v1/volumes/<name>/replicas`; *node* is a name or an id."""

    node: str


def add_replicas(app: Flask, replicas: VolumeMembers) -> None:
    """Add the routes below a volume's `replicas` to *app*."""

    @app.get("/v1/volumes/<name>/replicas", endpoint="replica-ls")
    def list_replicas(name: str) -> Response:
        g.volume = name
        return answer(replicas.all(name))

    @app.post("/v1/volumes/<name>/replicas", endpoint="replica-add")
    def add(name: str) -> Response:
        g.volume = name
        node = read_body(AddRequest).node
        replicas.add(name, node)
        return answer({"added": node})

    @app.delete("/v1/volumes/<name>/replicas/<node>", endpoint="replica-rm")
    def remove(name: str, node: str) -> Response:
        g.volume = name
        replicas.remove(name, node)
        return answer({"removed": node})
