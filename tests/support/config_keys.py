"""Every key of the configuration, with a value that is not its default."""

from __future__ import annotations

from plugin import config

# For each key what the environment says, and the same in the file.
DAEMON = {
    "plugin_socket": ("/a/p.sock", '"/a/p.sock"'),
    "control_socket": ("/a/c.sock", '"/a/c.sock"'),
    "state_dir": ("/a/s", '"/a/s"'),
    "pool": ("/a/pool", '"/a/pool"'),
    "mount_dir": ("/a/m", '"/a/m"'),
    "log_format": ("console", '"console"'),
    "metrics_address": ("127.0.0.1:9550", '"127.0.0.1:9550"'),
    "mount_deadline_s": ("12.5", "12.5"),
    "disuse_grace_s": ("0", "0"),
    "boot_wait_s": ("0", "0"),
    "start_containers": ("true", "true"),
    "allowed_options": ("profile, size", '["profile", "size"]'),
}
CLUSTER = {
    "etcd": ("http://a:1, http://b:2", '["http://a:1", "http://b:2"]'),
    "etcd_insecure": ("true", "true"),
    "etcd_prefix": ("/x/", '"/x/"'),
    "etcd_user": ("u", '"u"'),
    "etcd_password_file": ("/a/p", '"/a/p"'),
    "etcd_ca_file": ("/a/ca", '"/a/ca"'),
    "etcd_certificate_file": ("/a/cert", '"/a/cert"'),
    "etcd_key_file": ("/a/key", '"/a/key"'),
    "node_name": ("alpha", '"alpha"'),
    "peer_address": ("fd00::1", '"fd00::1"'),
    "peer_port": ("99", "99"),
    "lease_ttl_s": ("30", "30"),
    "freeze_max_s": ("5", "5"),
    "mount_wait_s": ("7", "7"),
    "failsafe": ("false", "false"),
    "replace_after": ("2h", '"2h"'),
}
REPLICATION = {"bandwidth_limit": ("20M", '"20MiB"'), "nice": ("5", "5")}
SWARM = {"labels": ("true", "true"), "engine_socket": ("/e.sock", '"/e.sock"')}
SECTIONS = {
    "daemon": DAEMON,
    "cluster": CLUSTER,
    "replication": REPLICATION,
    "swarm": SWARM,
}


def environment_names() -> list[str]:
    """Return the names of the environment variables that are read."""
    sections = {
        "daemon": config._DAEMON_TYPES,
        "cluster": config._CLUSTER_TYPES,
        "replication": config._REPLICATION_TYPES,
        "swarm": config._SWARM_TYPES,
    }
    return sorted(
        f"{config._PREFIXES[section]}{key.upper()}"
        for section, types in sections.items()
        for key in types
    )
