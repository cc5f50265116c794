"""What the daemon does of its own accord with the engine, put together."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from plugin.engine.engine_api import EngineApi
from plugin.engine.failed_starts import FailedStart
from plugin.engine.starter import ContainerStarter
from plugin.engine.watch import EngineWatch
from plugin.events.log import Events
from plugin.limits import ENGINE_LONG_TIMEOUT_S
from plugin.volumes.mounting import Mounting
from plugin.volumes.views import VolumeViews

if TYPE_CHECKING:
    from plugin.config import Config


def engine_watch(config: Config, mounting: Mounting, events: Events) -> EngineWatch:
    """Return what looks at the engine; it starts containers if that is configured."""
    views, socket, starter = mounting.views, config.swarm.engine_socket, None
    if config.start_containers:
        starter = ContainerStarter(
            # The engine answers when it has called us, and we have mounted.
            EngineApi(socket, timeout_s=2 * ENGINE_LONG_TIMEOUT_S),
            driver=config.plugin_socket.stem,
            is_there=views.is_there,
            was_silent=mounting.was_silent,
            note=partial(_note, views, events),
        )
    return EngineWatch(
        socket,
        partial(_names, views),
        starter,
        interval_s=config.tuning.reconcile_interval_s,
    )


def _names(views: VolumeViews) -> Iterator[str]:
    return (each.name for each in views.all())


def _note(views: VolumeViews, events: Events, started: FailedStart) -> None:
    """Keep the event with each of the container's volumes."""
    for name in started.volumes:
        record = views.existing(name).record
        events.add(record, "container-started", container=started.name)
