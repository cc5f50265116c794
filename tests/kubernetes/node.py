"""A node of the cluster: containerd, kubelet, the daemon and its CSI driver."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.kubernetes.control import DIRECTORY, ETCD, KUBECONFIG, write_kubeconfig
from tests.support.daemon import PROGRAM, Daemon
from tests.support.host import PYTHON_ENVIRONMENT, Host, end_process, wait_until
from tests.support.images import BUSYBOX_IMAGE, busybox_image

if TYPE_CHECKING:
    from collections.abc import Sequence

IMAGE: Final = f"docker.io/library/{BUSYBOX_IMAGE}"
CONTAINERD: Final = "/run/containerd/containerd.sock"
KUBELET: Final = "/var/lib/kubelet"
DRIVER_SOCKET: Final = f"{KUBELET}/plugins/remora.io/csi.sock"
START_DEADLINE_S: Final = 60.0
END_DEADLINE_S: Final = 30.0
# On disk, as on a real machine: a kubelet measures what is left there.
ON_DISK: Final = (KUBELET, "/var/lib/containerd")
CONTAINERD_CONFIG: Final = f"""\
version = 2
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{IMAGE}"
restrict_oom_score_adj = true
disable_apparmor = true
disable_hugetlb_controller = true
"""
# Pods have their node's network; a node without any is not ready.
NETWORK: Final = {
    "cniVersion": "0.4.0",
    "name": "none",
    "plugins": [{"type": "loopback"}],
}
KUBELET_CONFIG: Final = {
    "apiVersion": "kubelet.config.k8s.io/v1beta1",
    "kind": "KubeletConfiguration",
    "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
    "authorization": {"mode": "AlwaysAllow"},
    "cgroupDriver": "cgroupfs",
    "cgroupsPerQOS": True,
    "enforceNodeAllocatable": [],
    "evictionHard": {"memory.available": "10Mi", "nodefs.available": "1%"},
    "failSwapOn": False,
    "nodeLeaseDurationSeconds": 20,
    "volumeStatsAggPeriod": "10s",
}
CLUSTER: Final = f"""\
[cluster]
etcd = ["{ETCD}"]
etcd_insecure = true
etcd_prefix = "/remora/"
"""


class Node:
    """A machine with the address *address*; nothing runs on it yet."""

    def __init__(self, name: str, address: str, programs: Path) -> None:
        self.name, self.address = name, address
        self.host = Host(name)
        self._programs = programs
        self._run: dict[str, subprocess.Popen[bytes]] = {}
        self.daemon = Daemon(self.host, reconcile_interval_s=1.0)
        for inside in ON_DISK:
            real = self.host.work / inside.rpartition("/")[2]
            real.mkdir()
            self.host.path(inside).mkdir()
            self.host.run(["mount", "--bind", str(real), inside])
        # The kubelet's links to containers' logs are not for the machine that tests.
        self.host.run(["mount", "-t", "tmpfs", "logs", "/var/log"])
        write_kubeconfig(self.host)
        self._write("/etc/containerd/config.toml", CONTAINERD_CONFIG)
        self._write("/etc/cni/net.d/10-none.conflist", json.dumps(NETWORK))
        root = Path("/sys/fs/cgroup")
        unified = (root / "cgroup.controllers").exists()
        for hierarchy in [root] if unified else root.iterdir():
            (hierarchy / self.host.cgroup_parent.lstrip("/")).mkdir()
        kubelet = {**KUBELET_CONFIG, "cgroupRoot": self.host.cgroup_parent}
        self._write(f"{DIRECTORY}/kubelet.json", json.dumps(kubelet))
        names = f'node_name = "{name}"\npeer_address = "{address}"\n'
        self._write("/etc/remora/remora.toml", CLUSTER + names)

    def _write(self, inside: str, text: str) -> None:
        path = self.host.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    # Life

    def start(self) -> None:
        """Start all of it; return when everything was started."""
        self._launch("containerd", "containerd")
        self._wait_containerd()
        image = self.host.work / "image.tar"
        image.write_bytes(busybox_image())
        self.ctr("images", "import", str(image))
        self.start_kubelet()
        self.daemon.start()
        self.start_driver()

    def start_kubelet(self) -> None:
        self._launch(
            "kubelet",
            *(str(self._programs / "kubelet"), f"--kubeconfig={KUBECONFIG}"),
            *(f"--config={DIRECTORY}/kubelet.json", f"--hostname-override={self.name}"),
            *("--container-runtime=remote", f"--node-ip={self.address}"),
            f"--container-runtime-endpoint=unix://{CONTAINERD}",
        )

    def start_driver(self) -> None:
        self._launch(
            "csi",
            *(sys.executable, "-c", PROGRAM, "csi"),
            *("--endpoint", f"unix://{DRIVER_SOCKET}"),
            *("--kubelet-registration", f"{KUBELET}/plugins_registry"),
        )

    def start_again(self) -> None:
        """Start what was killed."""
        if "kubelet" not in self._run:
            self.start_kubelet()
        if not self.daemon.running:
            self.daemon.start()
        if "csi" not in self._run:
            self.start_driver()

    def kill(self, name: str) -> None:
        """End the program *name* (`kubelet`, `csi`, `daemon`) with SIGKILL."""
        if name == "daemon":
            self.daemon.kill()
            return
        process = self._run.pop(name)
        end_process(process, signal_number=signal.SIGKILL, timeout_s=END_DEADLINE_S)
        self.host.forget(process)

    def _launch(self, name: str, *argv: str) -> None:
        assert name not in self._run, f"{name} runs already"
        self._run[name] = self.host.popen(
            argv, log=self.host.log_path(name), env=PYTHON_ENVIRONMENT
        )

    def _wait_containerd(self) -> None:
        wait_until(
            lambda: self.ctr("version", check=False).returncode == 0,
            timeout_s=START_DEADLINE_S,
            what="containerd answers",
            evidence=lambda: "\n".join(self.host.new_log_text().values()),
        )

    # Use

    def ctr(
        self, *arguments: str, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Return the outcome of containerd's own command."""
        command = ["ctr", "--namespace", "k8s.io", *arguments]
        return self.host.run(command, check=check)

    def containers(self, pod: str) -> list[int]:
        """Return the first process of each container of *pod*, as the host counts."""
        found = []
        for line in self.ctr("tasks", "ls").stdout.splitlines()[1:]:
            container, pid, status = line.split()[:3]
            shown = self.ctr("containers", "info", container).stdout
            labels = json.loads(shown)["Labels"]
            if status != "STOPPED" and labels.get("io.kubernetes.pod.name") == pod:
                found.append(int(pid))
        return sorted(found)

    def volume(self, name: str) -> Any:
        """Return what the daemon knows of the volume, or None if it knows none."""
        status, answer = self.daemon.control("GET", f"/v1/volumes/{name}")
        return answer if status == 200 else None

    def mounts(self) -> list[str]:
        """Return where the daemon's volumes are mounted, for itself and for pods."""
        found = self.host.mounts() + self.host.mounts(f"{KUBELET}/pods")
        return [
            each.mount_point
            for each in found
            if each.mount_point.startswith("/var/lib/remora/mounts/")
            or "kubernetes.io~csi" in each.mount_point
        ]

    def shell(self, argv: Sequence[str]) -> str:
        """Return what a command prints on the node."""
        return self.host.run(argv).stdout
