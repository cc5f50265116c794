"""All backends of a daemon, and what chooses one of them for a volume."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.nfs.backend import NfsBackend
from backends.readonly.backend import ReadonlyBackend
from backends.readonly.sources import NoSources, Sources
from backends.registry import Registry
from backends.rsync.backend import RsyncBackend
from plugin.errors import ConfigError
from plugin.volumes.options import OptionResolver

if TYPE_CHECKING:
    from plugin.config import Config


def profile_faults(config: Config) -> list[str]:
    """Return what is wrong with the profiles of *config*; nothing is touched."""
    rsync = RsyncBackend(config.pool, pool_id=None)
    nfs = NfsBackend(config.state_dir, node="")
    return _resolver(config, rsync, nfs, NoSources()).faults()


def build_resolver(
    config: Config, rsync: RsyncBackend, nfs: NfsBackend, sources: Sources
) -> OptionResolver:
    """
    Return what chooses a backend for a volume; the shares of profiles are watched.

    Raises:
        ConfigError: a profile says what no volume may have.

    """
    resolver = _resolver(config, rsync, nfs, sources)
    if faults := resolver.faults():
        raise ConfigError(faults, source="[profiles]")
    for options in resolver.profiles_of(nfs.kind):
        nfs.watch(options)
    return resolver


def _resolver(
    config: Config, rsync: RsyncBackend, nfs: NfsBackend, sources: Sources
) -> OptionResolver:
    """Register all; what the first is asked for by is no other one's."""
    readonly = ReadonlyBackend(rsync, nfs, sources, config.mount_dir)
    return OptionResolver(Registry([readonly, rsync, nfs]), config.profiles)
