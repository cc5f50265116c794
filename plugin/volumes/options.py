"""
From the options of a request to those of a volume: profile, backend, defaults.

What was asked for wins over the profile's options, and those over the backend's
defaults. The profile `default` applies where none is named.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from backends.base import Backend
from backends.errors import InvalidRequestError, RemoraError, VolumeExistsError
from backends.options import ALL_OPTIONS, IGNORED, NOT_COPIED, differences
from backends.registry import DEFAULT_KIND, Registry
from plugin.limits import OPTION_KEY_LENGTH_MAX, OPTION_VALUE_LENGTH_MAX, OPTIONS_MAX
from plugin.model import VolumeRecord

DEFAULT_PROFILE = "default"


@dataclass(frozen=True, slots=True)
class Resolved:
    """
    What a request means; the dictionaries are canonical.

    ``chosen`` are the options that the request or its profile names: the others are
    defaults, or those of the volume that it copies. ``asked_bytes`` and ``claim`` are
    a scheduler's; see `VolumeRecord`. With ``takes_any`` a volume that exists may have
    other options.
    """

    backend: Backend
    requested: dict[str, str]
    options: dict[str, str]
    chosen: dict[str, str]
    asked_bytes: int = 0
    claim: str = ""
    takes_any: bool = False


@dataclass(frozen=True, slots=True)
class AllowedOptions:
    """The options that a caller of Docker's API may name, or `ALL_OPTIONS`."""

    names: Sequence[str]
    backends: Collection[Backend] = ()

    def checked(self, asked: Mapping[str, str]) -> Mapping[str, str]:
        """
        Return *asked*.

        Raises:
            InvalidRequestError: it has others.

        """
        allowed = {each.lower() for each in self.names}
        if ALL_OPTIONS in allowed:
            return asked
        refused = [key[:64] for key in sorted(asked) if key.lower() not in allowed]
        if not refused:
            meant = {key for each in self.backends for key in each.implied(asked)}
            refused = sorted(meant - allowed)
        if refused:
            raise InvalidRequestError(
                f"option '{refused[0]}' may not be given here: allowed_options in this "
                f"node's configuration has {', '.join(self.names) or 'none'}",
                hint="name a profile that has it, or root calls remora create",
            )
        return asked


class OptionResolver:
    """Knows the profiles and the backends."""

    def __init__(
        self, registry: Registry, profiles: Mapping[str, Mapping[str, str]]
    ) -> None:
        self.registry = registry
        self._profiles = profiles

    def resolve(
        self,
        raw: Mapping[str, str],
        source: VolumeRecord | None = None,
        *,
        name: str = "",
    ) -> Resolved:
        """
        Return what *raw*, the options of one request for *name*, stands for; pure.

        A copy of *source* has its options wherever *raw* does not say otherwise, unless
        *raw* names another storage.

        Raises:
            InvalidRequestError: an option, profile or backend that is not valid.

        """
        _check_bounds(raw)
        asked = _fold_case(raw)
        if source is not None and self._stays_with(source, asked):
            return self._like(source, asked)
        profile_name = asked.pop("profile", None)
        profile = self._profile(profile_name)
        profile_kind = self._kind_of(profile) or DEFAULT_KIND
        kind = self._kind_of(asked) or profile_kind
        backend = self.registry.get(kind)
        if kind != profile_kind:
            if profile_name is not None:
                raise InvalidRequestError(
                    f"profile '{profile_name}' is for backend '{profile_kind}', "
                    f"the other options are for '{kind}'"
                )
            profile = {}  # the default profile is for another backend
        requested = backend.parse_options(asked)
        chosen = backend.merge_options(backend.parse_options(profile), requested)
        options = backend.merge_options(backend.default_options(name), chosen)
        return Resolved(backend, _compared(requested, kind), options, chosen)

    def _stays_with(self, source: VolumeRecord, asked: Mapping[str, str]) -> bool:
        """Return whether *asked* names no storage but that of *source*."""
        kind = self._kind_of(dict(asked)) or source.backend
        return kind == source.backend and not {"profile", "server", "share"} & {*asked}

    def _like(self, source: VolumeRecord, asked: dict[str, str]) -> Resolved:
        backend = self.registry.get(source.backend)
        asked.pop("backend", None)
        requested = backend.parse_options(asked)
        like = {k: v for k, v in source.options.items() if k not in NOT_COPIED}
        # What an anonymous source has by default, its named copy has not.
        plain = backend.default_options()
        for key, value in backend.default_options(source.name).items():
            if like.get(key) == value:
                like[key] = plain[key]
        options = backend.merge_options(like, requested)
        full = _compared(requested, source.backend)
        return Resolved(backend, full, options, requested)

    def profiles_of(self, kind: str) -> list[dict[str, str]]:
        """Return the canonical options of each profile for backend *kind*."""
        backend = self.registry.get(kind)
        found = []
        for name in self._profiles:
            profile = self._profile(name)
            if (self._kind_of(profile) or DEFAULT_KIND) == kind:
                found.append(backend.parse_options(profile))
        return found

    def faults(self) -> list[str]:
        """Return what is wrong with the profiles, one line for each."""
        faults = []
        for name in self._profiles:
            try:
                self.resolve({"profile": name})
            except RemoraError as error:
                faults.append(f"[profiles.{name}] {error.cause} ({error.hint})")
        return faults

    def _kind_of(self, options: dict[str, str]) -> str | None:
        """Take the backend out of *options*: the named one, or one that claims them."""
        named = options.pop("backend", None)
        if named is not None:
            return named
        for kind, backend in self.registry.all().items():
            if backend.claims(options):
                return kind
        return None

    def _profile(self, name: str | None) -> dict[str, str]:
        if name is None:
            return dict(self._profiles.get(DEFAULT_PROFILE, {}))
        if name not in self._profiles:
            known = ", ".join(sorted(self._profiles)) or "none is configured"
            raise InvalidRequestError(
                f"unknown profile '{name[:64]}'", hint=f"profiles: {known}"
            )
        return dict(self._profiles[name])


def require_same_options(resolved: Resolved, record: VolumeRecord) -> None:
    """Raise VolumeExistsError if *resolved* asks for another volume than *record*."""
    if resolved.takes_any:
        return
    difference = differences(resolved.requested, _as_now(resolved, record))
    if difference:
        raise VolumeExistsError(
            f"volume '{record.name}' exists with other options: {difference}",
            hint="use another name, or remove it first",
        )


def _as_now(resolved: Resolved, record: VolumeRecord) -> Mapping[str, str]:
    """Return what *record* asks for; an older version may have written it otherwise."""
    kind = record.requested.get("backend", record.backend)
    if kind != resolved.backend.kind:
        return record.requested
    asked = {key: each for key, each in record.requested.items() if key != "backend"}
    try:
        return _compared(resolved.backend.parse_options(asked), kind)
    except InvalidRequestError:
        return record.requested


def _compared(requested: Mapping[str, str], kind: str) -> dict[str, str]:
    """Return what decides whether two requests mean one volume."""
    meant = {key: value for key, value in requested.items() if key != IGNORED}
    return {**meant, "backend": kind}


def _fold_case(raw: Mapping[str, str]) -> dict[str, str]:
    """Return *raw* with its keys in lower case; one given twice is refused."""
    folded: dict[str, str] = {}
    for key, value in raw.items():
        if key.lower() in folded:
            raise InvalidRequestError(f"option '{key.lower()}' is given twice")
        folded[key.lower()] = value
    return folded


def _check_bounds(raw: Mapping[str, str]) -> None:
    if len(raw) > OPTIONS_MAX:
        raise InvalidRequestError(f"{len(raw)} options; at most {OPTIONS_MAX} are read")
    for key, value in raw.items():
        if len(key) > OPTION_KEY_LENGTH_MAX:
            raise InvalidRequestError(
                f"option '{key[:32]}…': its name has {len(key)} characters; "
                f"at most {OPTION_KEY_LENGTH_MAX} are read"
            )
        if len(value) > OPTION_VALUE_LENGTH_MAX:
            raise InvalidRequestError(
                f"option '{key}': its value has {len(value)} characters; "
                f"at most {OPTION_VALUE_LENGTH_MAX} are read"
            )
