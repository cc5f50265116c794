"""How the configured etcd is reached."""

from __future__ import annotations

from plugin.config import ClusterConfig
from plugin.errors import ConfigError
from plugin.store.etcd.settings import EtcdSettings


def etcd_settings(cluster: ClusterConfig) -> EtcdSettings:
    """
    Return how to reach the etcd of *cluster*.

    Raises:
        ConfigError: the password's file cannot be read.

    """
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
