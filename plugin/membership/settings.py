"""How the configured etcd is reached."""

from __future__ import annotations

from backends.system import files
from plugin.config import ClusterConfig
from plugin.errors import ConfigError
from plugin.store.etcd.settings import EtcdSettings


def etcd_settings(cluster: ClusterConfig) -> EtcdSettings:
    """
    Return how to reach the etcd of *cluster*.

    Raises:
        ConfigError: a file with a secret cannot be read, or can be by others.

    """
    if faults := secret_faults(cluster):
        raise ConfigError(faults, source="[cluster]")
    password = ""
    if cluster.etcd_password_file is not None:
        try:
            password = cluster.etcd_password_file.read_text("utf-8").strip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                [f"etcd_password_file cannot be read: {error}"], source="[cluster]"
            ) from error
    return EtcdSettings(
        cluster.etcd,
        prefix=cluster.etcd_prefix,
        user=cluster.etcd_user,
        password=password,
        ca_file=cluster.etcd_ca_file,
        certificate_file=cluster.etcd_certificate_file,
        key_file=cluster.etcd_key_file,
    )


def secret_faults(cluster: ClusterConfig) -> list[str]:
    """Return what is wrong with the files of secrets that are used, one line each."""
    if not cluster.etcd:
        return []
    named = {
        "etcd_password_file": cluster.etcd_password_file,
        "etcd_key_file": cluster.etcd_key_file,
    }
    found = {key: files.secret_fault(path) for key, path in named.items() if path}
    return [f"{key}: {fault}" for key, fault in found.items() if fault]
