"""The API of a Kubernetes whose server is in the network of a `Host`."""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import socket
import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.host import Host

TOKEN: Final = "token-of-the-tests"
CALL_DEADLINE_S: Final = 30.0
_CLONE_NEWNET: Final = 0x4000_0000
_CORE: Final = "/api/v1"
_RBAC: Final = "/apis/rbac.authorization.k8s.io/v1"
# Where objects of a kind are; those of the default namespace have one in between.
_PLURALS: Final = {
    "CSIDriver": ("/apis/storage.k8s.io/v1", "csidrivers", False),
    "ClusterRole": (_RBAC, "clusterroles", False),
    "ClusterRoleBinding": (_RBAC, "clusterrolebindings", False),
    "DaemonSet": ("/apis/apps/v1", "daemonsets", True),
    "Role": (_RBAC, "roles", True),
    "RoleBinding": (_RBAC, "rolebindings", True),
    "ServiceAccount": (_CORE, "serviceaccounts", True),
    "CSINode": ("/apis/storage.k8s.io/v1", "csinodes", False),
    "Deployment": ("/apis/apps/v1", "deployments", True),
    "Event": (_CORE, "events", True),
    "Node": (_CORE, "nodes", False),
    "PersistentVolume": (_CORE, "persistentvolumes", False),
    "PersistentVolumeClaim": (_CORE, "persistentvolumeclaims", True),
    "Pod": (_CORE, "pods", True),
    "StatefulSet": ("/apis/apps/v1", "statefulsets", True),
    "StorageClass": ("/apis/storage.k8s.io/v1", "storageclasses", False),
}
Object = dict[str, Any]


class ApiError(AssertionError):
    """The server refused; *status* is HTTP's."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status


class Api:
    """Calls to the server at *address* of *host*'s network."""

    def __init__(self, host: Host, address: str, port: int) -> None:
        self._host = host
        self._address, self._port = address, port
        # The server's certificate is of its own making, and new each time.
        self._tls = ssl._create_unverified_context()

    def call(
        self, method: str, path: str, body: Object | None = None, kind: str = "json"
    ) -> Any:
        """
        Return the decoded answer.

        Raises:
            ApiError: the server refused.
            OSError: it does not answer.
        """
        sent = None if body is None else json.dumps(body)
        headers = {
            "Authorization": f"Bearer {TOKEN}",
            "Content-Type": f"application/{kind}",
        }
        connection = http.client.HTTPSConnection(
            self._address, self._port, timeout=CALL_DEADLINE_S, context=self._tls
        )
        try:
            with _in_network_of(self._host.pid):
                connection.connect()
            connection.request(method, path, sent, headers)
            answer = connection.getresponse()
            text = answer.read().decode()
        except http.client.HTTPException as error:
            raise ConnectionError(str(error)) from error
        finally:
            connection.close()
        if answer.status >= 300:
            raise ApiError(answer.status, text)
        return json.loads(text) if text.startswith(("{", "[")) else text

    def create(self, manifest: Object) -> Any:
        return self.call("POST", _path(manifest["kind"]), manifest)

    def try_to_create(self, manifest: Object) -> None:
        """Fail unless the server would take *manifest* with all its fields."""
        namespace = manifest["metadata"].get("namespace", "")
        path = _path(manifest["kind"]).replace("/default/", f"/{namespace}/")
        answer = self.call("POST", f"{path}?dryRun=All", manifest)
        assert _unknown(manifest, answer) == [], "the server has dropped these"

    def get(self, kind: str, name: str) -> Any:
        return self.call("GET", _path(kind, name))

    def find(self, kind: str, name: str) -> Any:
        """Return the object, or None if there is none."""
        try:
            return self.get(kind, name)
        except ApiError as error:
            if error.status != 404:
                raise
            return None

    def items(self, kind: str, labels: str = "") -> list[Object]:
        """Return the objects of *kind*, those with *labels* (`app=NAME`)."""
        query = f"?labelSelector={labels}" if labels else ""
        return list(self.call("GET", _path(kind) + query)["items"])

    def patch(self, kind: str, name: str, change: Object) -> Any:
        return self.call("PATCH", _path(kind, name), change, "merge-patch+json")

    def delete(self, kind: str, name: str, *, at_once: bool = False) -> None:
        """Ask for the object's end; what is not there needs none."""
        body = {"gracePeriodSeconds": 0} if at_once else {}
        try:
            self.call("DELETE", _path(kind, name), body)
        except ApiError as error:
            if error.status != 404:
                raise

    def evict(self, pod: str) -> None:
        """Ask for the pod's end as `kubectl drain` does."""
        eviction = {
            "apiVersion": "policy/v1beta1",
            "kind": "Eviction",
            "metadata": {"name": pod, "namespace": "default"},
        }
        self.call("POST", _path("Pod", pod) + "/eviction", eviction)


def _path(kind: str, name: str = "") -> str:
    group, plural, in_namespace = _PLURALS[kind]
    space = "/namespaces/default" if in_namespace else ""
    return f"{group}{space}/{plural}" + (f"/{name}" if name else "")


def _unknown(sent: Any, taken: Any, at: str = "") -> list[str]:
    """Return the places in *sent* that *taken* has not: an old server drops them."""
    if isinstance(sent, dict) and isinstance(taken, dict):
        return [
            place
            for key, value in sent.items()
            for place in _unknown(value, taken.get(key), f"{at}.{key}")
        ]
    if isinstance(sent, list) and isinstance(taken, list) and len(sent) == len(taken):
        pairs = enumerate(zip(sent, taken, strict=True))
        return [place for n, pair in pairs for place in _unknown(*pair, f"{at}[{n}]")]
    return [] if sent == taken or sent in ({}, None) else [at]


@contextmanager
def _in_network_of(pid: int) -> Iterator[None]:
    """Let sockets that are made meanwhile be of that process' network; they stay so."""
    libc = ctypes.CDLL(None, use_errno=True)

    def enter(namespace: int) -> None:
        if libc.setns(namespace, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")

    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    other = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    try:
        enter(other)
        yield
    finally:
        enter(own)
        os.close(own)
        os.close(other)


def is_there(host: Host, address: str, port: int) -> bool:
    """Return whether somebody listens there."""
    try:
        with (
            _in_network_of(host.pid),
            socket.create_connection((address, port), timeout=CALL_DEADLINE_S),
        ):
            return True
    except OSError:
        return False
