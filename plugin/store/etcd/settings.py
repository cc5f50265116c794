"""Which cluster, who we are there, and how long we wait."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from plugin.errors import StoreError


@dataclass(frozen=True, slots=True)
class EtcdSettings:
    """
    How to reach an etcd cluster; all keys of ours begin with *prefix*.

    Give *ca_file* if a private CA has signed the members' certificates, and
    *certificate_file* and *key_file* if the members ask for ours. etcd's gateway
    refuses a client certificate with a common name as soon as users are switched on.
    """

    endpoints: tuple[str, ...]
    prefix: str = "/remora/"
    user: str = ""
    password: str = field(default="", repr=False)
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    # A call ends within this time, whatever the cluster does, a transaction one attempt
    # later: in less than the 5 s after which a Mount must say what is wrong.
    call_deadline_s: float = 3.5
    attempt_s: float = 1.25
    # A watch that got nothing for so long is opened anew: it may be broken.
    watch_idle_s: float = 5.0


def tls_context(settings: EtcdSettings) -> ssl.SSLContext:
    """
    Return how to check members, and what to show them.

    The environment does not count (REQUESTS_CA_BUNDLE, say), only *settings* do.

    Raises:
        StoreError: a file cannot be read or is no certificate or key.

    """
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if settings.certificate_file is not None:
            context.load_cert_chain(settings.certificate_file, settings.key_file)
    except OSError as error:  # ssl.SSLError is one
        files = (settings.ca_file, settings.certificate_file, settings.key_file)
        names = ", ".join(str(each) for each in files if each is not None)
        raise StoreError(
            f"cannot use the certificates for etcd ({names}): {error}",
            hint="they must be PEM files that the daemon can read, and fit together",
        ) from error
    return context
