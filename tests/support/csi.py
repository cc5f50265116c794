"""`remora csi` beside a node's daemon, and a scheduler's side of it."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import grpc

from plugin.api.csi.messages import Package, packages
from tests.protocol.node import STOP_DEADLINE_S, Node, wait_until

CALL_S = 30.0
START_S = 60.0
AT_LAST_S, AGAIN_S = 60.0, 0.2
_AGAIN = {
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.FAILED_PRECONDITION,
}
WRITER, ANY_WRITER, ONE_WRITER, MANY_WRITERS = 1, 5, 6, 7


@cache
def package() -> Package:
    """Return the messages of CSI."""
    return packages()["csi.v1"]


def mount(mode: int = WRITER, *flags: str) -> dict[str, Any]:
    """Return a volume's capability: a directory, in an access mode."""
    return {"mount": {"mount_flags": flags}, "access_mode": {"mode": mode}}


def channel_to(path: Path) -> grpc.Channel:
    """Return a channel to the socket *path*, which may not be there yet."""
    names = ("max", "min", "initial")
    quick = [(f"grpc.{each}_reconnect_backoff_ms", 50) for each in names]
    return grpc.insecure_channel(f"unix:{path}", options=quick)


class Driver:
    """The driver of *node*, whose scheduler has the directory *root*."""

    def __init__(
        self, node: Node, *, root: Path | None = None, command: Sequence[str] = ()
    ) -> None:
        self.node = node
        self.root = root or node.directory / "kubelet"
        self.socket = self.root / "plugins/remora.io/csi.sock"
        self.targets = self.root / "pods"
        node.path(self.targets).mkdir(parents=True, exist_ok=True)
        endpoint = ("--endpoint", f"unix://{self.socket}")
        self.command = command or node.remora(
            "csi", *endpoint, "--target-root", str(self.root)
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: grpc.Channel | None = None

    # Life

    @property
    def pid(self) -> int:
        """The driver's process id."""
        return self._process.pid

    def start(self) -> None:
        """Start it; return when it answers."""
        assert self._process is None
        self._process = self.node.popen(self.command)
        self._channel = channel_to(self.node.path(self.socket))

        def answers() -> bool:
            assert self._process.poll() is None, self.node.log_tail()
            try:
                return bool(self.call("GetPluginInfo").name)
            except grpc.RpcError:
                return False

        wait_until(answers, "the driver answers", timeout_s=START_S)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Return the exit code after the signal *number*."""
        process, self._process = self._process, None
        self._channel.close()
        process.send_signal(number)
        return process.wait(timeout=STOP_DEADLINE_S)

    def kill(self) -> None:
        """End it as a crash does."""
        assert self.stop(signal.SIGKILL) == -signal.SIGKILL

    # Calls

    def begin(
        self, method: str, *, within_s: float = CALL_S, **fields: Any
    ) -> grpc.Future:
        """Return the call *method*, under way; its caller waits *within_s*."""
        service, known = next(
            (name, methods[method])
            for name, methods in package().services.items()
            if method in methods
        )
        call = self._channel.unary_unary(
            f"/csi.v1.{service}/{method}",
            request_serializer=known.ask.SerializeToString,
            response_deserializer=known.answer.FromString,
        )
        return call.future(known.ask(**fields), timeout=within_s)

    def call(self, method: str, **fields: Any) -> Any:
        """Return the answer of *method*."""
        return self.begin(method, **fields).result()

    def call_at_last(self, method: str, **fields: Any) -> Any:
        """Return the answer of *method*, made again as schedulers do."""
        end_s = time.monotonic() + AT_LAST_S
        while True:
            try:
                return self.call(method, **fields)
            except grpc.RpcError as error:
                told = f"{error.code().name}: {error.details()}"
                assert error.code() in _AGAIN, told
                assert time.monotonic() < end_s, told
                time.sleep(AGAIN_S)

    def code(self, method: str, **fields: Any) -> str:
        """Return the name of the code that the call ends with."""
        return str(self.begin(method, **fields).code().name)

    def refused(self, method: str, **fields: Any) -> tuple[str, str]:
        """Return code and text of a call that must be refused."""
        call = self.begin(method, **fields)
        assert call.code() is not grpc.StatusCode.OK, f"{method} {fields}"
        text = call.details()
        assert text.isprintable()
        return call.code().name, text

    # What tests do again and again

    def target(self, pod: str, volume: str = "data") -> Path:
        """Return where a kubelet would have the volume of *pod*; its parent exists."""
        parent = self.targets / pod / "volumes/kubernetes.io~csi" / volume
        self.inside(parent).mkdir(parents=True, exist_ok=True)
        return parent / "mount"

    def publish(
        self, volume: str, target: Path, mode: int = WRITER, **more: Any
    ) -> Any:
        """Publish the volume."""
        return self.call("NodePublishVolume", **published(volume, target, mode), **more)

    def unpublish(self, volume: str, target: Path) -> Any:
        """Take it back."""
        return self.call(
            "NodeUnpublishVolume", volume_id=volume, target_path=str(target)
        )

    def inside(self, target: Path) -> Path:
        """Return the name by which this process reaches *target* in the node."""
        return self.node.path(target)

    def is_bound(self, target: Path) -> bool:
        """Return whether the kernel shows a mount at *target*."""
        return str(target) in self.node.mount_points()


def published(volume: str, target: Path, mode: int = WRITER) -> dict[str, Any]:
    """Return the fields of a NodePublish."""
    return {
        "volume_id": volume,
        "target_path": str(target),
        "volume_capability": mount(mode),
    }
