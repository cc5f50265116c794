"""
A root filesystem as an image in one file, for `ctr images import` and `docker load`.

The archive is an OCI image layout, with Docker's own list beside it for its older
versions. With the same root filesystem it is the same, byte by byte.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

_BLOBS: Final = "blobs/sha256"
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
_TYPE: Final = "application/vnd.oci.image"
# Names without a registry are Docker Hub's to containerd, as they are to a kubelet.
_REGISTRY: Final = "docker.io/library"


def write(
    target: Path,
    *,
    layer: Path,
    name: str,
    anonymous: Callable[[tarfile.TarInfo], tarfile.TarInfo],
    archive: Path,
) -> None:
    """
    Write the image *name* of the root filesystem *target* to *archive*.

    *layer* is a file for the time of the call; members of it pass *anonymous*.
    """
    with tarfile.open(layer, "w", format=tarfile.GNU_FORMAT) as packed:
        packed.add(target, arcname=".", recursive=True, filter=anonymous)
    with layer.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    size_bytes = layer.stat().st_size
    small = _small_files(name, digest, size_bytes)
    with tarfile.open(archive, "w", format=tarfile.GNU_FORMAT) as whole:
        for path, content in small.items():
            _add(whole, path, content)
        member = tarfile.TarInfo(f"{_BLOBS}/{digest}")
        member.size = size_bytes
        with layer.open("rb") as file:
            whole.addfile(member, file)


def _small_files(name: str, digest: str, size_bytes: int) -> dict[str, bytes]:
    """Return what tells of the image *name* with the layer of *digest*."""
    config = _encoded(
        {
            "architecture": _ARCHITECTURES[platform.machine()],
            "os": "linux",
            "config": {
                "Entrypoint": ["/usr/bin/remora"],
                "Env": ["PATH=/usr/sbin:/usr/bin"],
            },
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        }
    )
    layers = [_described("layer.v1.tar", digest, size_bytes)]
    manifest = _encoded(
        {
            "schemaVersion": 2,
            "mediaType": f"{_TYPE}.manifest.v1+json",
            "config": _described("config.v1+json", _digest(config), len(config)),
            "layers": layers,
        }
    )
    tag = name.rpartition(":")[2]
    index = {
        **_described("manifest.v1+json", _digest(manifest), len(manifest)),
        "annotations": {
            "io.containerd.image.name": f"{_REGISTRY}/{name}",
            "org.opencontainers.image.ref.name": tag,
        },
    }
    for_docker = {
        "Config": f"{_BLOBS}/{_digest(config)}",
        "RepoTags": [name],
        "Layers": [f"{_BLOBS}/{digest}"],
    }
    return {
        "oci-layout": _encoded({"imageLayoutVersion": "1.0.0"}),
        "index.json": _encoded({"schemaVersion": 2, "manifests": [index]}),
        "manifest.json": _encoded([for_docker]),
        **{f"{_BLOBS}/{_digest(each)}": each for each in (config, manifest)},
    }


def _described(kind: str, digest: str, size_bytes: int) -> dict[str, Any]:
    return {
        "mediaType": f"{_TYPE}.{kind}",
        "digest": f"sha256:{digest}",
        "size": size_bytes,
    }


def _encoded(what: object) -> bytes:
    return json.dumps(what, sort_keys=True).encode()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
