"""Which of etcd's members answer."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final

from plugin.errors import StoreError
from plugin.store.etcd.errors import FULL_HINT
from plugin.store.etcd.settings import EtcdSettings
from plugin.store.etcd.store import EtcdStore

_AT_ONCE_MAX: Final = 8


@dataclass(frozen=True, slots=True)
class Endpoint:
    """
    One member; *revision* is the one that it tells, 0 if it does not answer.

    One that answers may have a *fault*, too: it is out of space, for instance.
    """

    url: str
    answers: bool
    revision: int
    fault: str


@dataclass(frozen=True, slots=True)
class EtcdHealth:
    """All members, and the id of the cluster's records, "" if no member tells it."""

    endpoints: tuple[Endpoint, ...]
    cluster: str

    @property
    def answers(self) -> bool:
        """Whether at least one member answers, with a majority behind it."""
        return any(each.answers for each in self.endpoints)

    @property
    def revision(self) -> int:
        """The newest revision that a member told."""
        return max((each.revision for each in self.endpoints), default=0)


def look(settings: EtcdSettings) -> EtcdHealth:
    """Return which members answer; it ends within one call's deadline, or two."""
    with ThreadPoolExecutor(_AT_ONCE_MAX) as pool:
        endpoints = tuple(pool.map(lambda url: _ask(settings, url), settings.endpoints))
    cluster = ""
    if any(each.answers for each in endpoints):
        store = EtcdStore(settings)
        try:
            cluster = store.identity()
        except StoreError:
            pass  # it went away in between
        finally:
            store.close()
    return EtcdHealth(endpoints, cluster)


def _ask(settings: EtcdSettings, url: str) -> Endpoint:
    """Return how the member at *url* answers when it is asked alone."""
    try:
        store = EtcdStore(replace(settings, endpoints=(url,)))
        try:
            revision = store.revision(deadline_s=settings.call_deadline_s)
            fault = _alarm_of(store, settings)
        finally:
            store.close()
    except StoreError as error:
        return Endpoint(url, answers=False, revision=0, fault=str(error))
    return Endpoint(url, answers=True, revision=revision, fault=fault)


def _alarm_of(store: EtcdStore, settings: EtcdSettings) -> str:
    """Return why etcd refuses writes, "" if it does not, or does not say."""
    try:
        alarms = store.alarms(deadline_s=settings.call_deadline_s)
    except StoreError:  # a user of etcd may not be allowed to ask
        return ""
    if not alarms:
        return ""
    return f"etcd has raised the alarm {', '.join(alarms)}: {FULL_HINT}"
