"""The driver's server by itself: how one follows another at the same socket."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import grpc

from plugin.api.csi.server import CsiServer, Handler
from tests.support.csi import package

WAIT_S = 20.0


def serving(path: Path, probe: Handler) -> CsiServer:
    made = CsiServer(path, package(), {"Identity": {"Probe": probe}})
    made.start()
    return made


def begin(channel: grpc.Channel) -> grpc.Future:
    known = package().services["Identity"]["Probe"]
    call = channel.unary_unary(
        "/csi.v1.Identity/Probe",
        request_serializer=known.ask.SerializeToString,
        response_deserializer=known.answer.FromString,
    )
    return call.future(known.ask(), timeout=WAIT_S)


def test_a_driver_that_ends_leaves_the_next_one_its_socket(tmp_path: Path) -> None:
    path = tmp_path / "csi.sock"
    began, go_on = threading.Event(), threading.Event()
    answer = package().services["Identity"]["Probe"].answer

    def slow(_request: Any, _left_s: float | None) -> Any:
        began.set()
        go_on.wait(WAIT_S)
        return answer()

    old = serving(path, slow)
    with grpc.insecure_channel(f"unix:{path}") as channel:
        call = begin(channel)
        assert began.wait(WAIT_S)
        ending = threading.Thread(target=old.stop, args=(WAIT_S,))
        ending.start()
        while path.exists():
            ending.join(0.01)
        new = serving(path, lambda _request, _left_s: answer())
        go_on.set()
        ending.join(WAIT_S)
        assert call.result() == answer()
    with grpc.insecure_channel(f"unix:{path}") as channel:
        assert begin(channel).result() == answer()
    new.stop(0)
    assert not path.exists()
