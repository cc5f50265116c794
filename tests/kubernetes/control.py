"""The control plane: etcd, the API's server, the controllers and the scheduler."""

from __future__ import annotations

import json
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.kubernetes.api import TOKEN, Api, ApiError
from tests.support.host import Host, wait_until

if TYPE_CHECKING:
    from pathlib import Path

ADDRESS: Final = "10.77.0.1"
PORT: Final = 6443
ETCD: Final = f"http://{ADDRESS}:2379"
# What a node may be silent for until it is NotReady.
GRACE_S: Final = 20
START_DEADLINE_S: Final = 120.0
DIRECTORY: Final = "/run/kubernetes"
KUBECONFIG: Final = f"{DIRECTORY}/kubeconfig"


class ControlPlane:
    """A machine at `ADDRESS` that runs it; etcd has the nodes' own records as well."""

    def __init__(self, programs: Path) -> None:
        self.host = Host("control")
        self.api = Api(self.host, ADDRESS, PORT)
        self.programs = programs
        self._run: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start all of it; the machine has its address."""
        host = self.host
        write_kubeconfig(host)
        for name, text in (
            ("tokens.csv", f"{TOKEN},admin,1,system:masters\n"),
            ("service-accounts.key", _key()),
        ):
            host.path(f"{DIRECTORY}/{name}").write_text(text)
        self._launch(
            "etcd",
            *("etcd", "--data-dir", "/run/etcd", "--unsafe-no-fsync"),
            *("--listen-client-urls", ETCD, "--advertise-client-urls", ETCD),
        )
        key = f"{DIRECTORY}/service-accounts.key"
        self._launch(
            "kube-apiserver",
            str(self.programs / "kube-apiserver"),
            *(f"--etcd-servers={ETCD}", "--etcd-prefix=/kubernetes"),
            *(f"--secure-port={PORT}", f"--cert-dir={DIRECTORY}"),
            *(f"--bind-address={ADDRESS}", f"--advertise-address={ADDRESS}"),
            "--service-cluster-ip-range=10.78.0.0/24",
            "--service-account-issuer=https://kubernetes",
            f"--service-account-signing-key-file={key}",
            f"--service-account-key-file={key}",
            f"--token-auth-file={DIRECTORY}/tokens.csv",
            *("--authorization-mode=AlwaysAllow", "--allow-privileged=true"),
            "--disable-admission-plugins=ServiceAccount",
        )
        wait_until(
            self._is_ready,
            timeout_s=START_DEADLINE_S,
            interval_s=0.2,
            what="the API answers",
            evidence=lambda: "\n".join(host.new_log_text().values()),
        )
        self._launch(
            "kube-controller-manager",
            str(self.programs / "kube-controller-manager"),
            *(f"--kubeconfig={KUBECONFIG}", "--leader-elect=false"),
            f"--service-account-private-key-file={key}",
            *(f"--node-monitor-grace-period={GRACE_S}s", "--node-monitor-period=2s"),
        )
        self._launch(
            "kube-scheduler",
            str(self.programs / "kube-scheduler"),
            *(f"--kubeconfig={KUBECONFIG}", "--leader-elect=false"),
        )

    def _is_ready(self) -> bool:
        assert self._run["kube-apiserver"].poll() is None, "it has ended"
        with suppress(OSError, ApiError):
            return self.api.call("GET", "/readyz") == "ok"
        return False

    def _launch(self, name: str, *argv: str) -> None:
        self._run[name] = self.host.popen(argv, log=self.host.log_path(name))


def write_kubeconfig(host: Host) -> None:
    """Let programs of *host* know where the API is, and who they are."""
    host.path(DIRECTORY).mkdir(exist_ok=True)
    cluster = {"server": f"https://{ADDRESS}:{PORT}", "insecure-skip-tls-verify": True}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "tests", "cluster": cluster}],
        "users": [{"name": "admin", "user": {"token": TOKEN}}],
        "contexts": [{"name": "it", "context": {"cluster": "tests", "user": "admin"}}],
        "current-context": "it",
    }
    host.path(KUBECONFIG).write_text(json.dumps(config))


def _key() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    form = serialization.PrivateFormat.TraditionalOpenSSL
    return key.private_bytes(
        serialization.Encoding.PEM, form, serialization.NoEncryption()
    ).decode()
