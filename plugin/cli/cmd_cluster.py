"""
`remora cluster`: joining a cluster, its health, its records as a file.

What one verb alone needs it imports itself, so that every other command starts quickly.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from backends.errors import InvalidRequestError
from plugin.cli import output
from plugin.cli.context import Context, json_option, pairs_of, pass_context
from plugin.config import DEFAULT_PATH, Config, load
from plugin.errors import DaemonUnreachableError, StoreError

if TYPE_CHECKING:
    from plugin.daemon.node import Node
    from plugin.joining.plan import JoinedVolume
    from plugin.store.base import Store

_STOP: Final = "systemctl stop remora.socket remora.service"
_START: Final = "systemctl start remora.socket remora.service"
_EMPTY_FILE: Final = Path("/dev/null")
_STATES: Final = {
    "moves": "moves",
    "there": "is there already",
    "removed": "was removed there meanwhile: its copy here goes to the trash",
}


@click.group()
def cluster() -> None:
    """The cluster and its records: join, status, dump, load."""


@cluster.command()
@click.option("--etcd", metavar="URL[,URL...]", help="etcd's members.")
@click.option("--insecure", flag_value="true", help="Even http:// over a network.")
@click.option("--prefix", help="Begin of all keys  [default: /remora/]")
@click.option("--user", help="User of etcd.")
@click.option("--password-file", type=click.Path(), help="File with its password.")
@click.option("--ca-file", type=click.Path(), help="Authority of the members.")
@click.option("--cert-file", type=click.Path(), help="This node's certificate.")
@click.option("--key-file", type=click.Path(), help="The key that belongs to it.")
@click.option("--node-name", help="Name of this node  [default: the machine's]")
@click.option("--rename", multiple=True, metavar="OLD=NEW", help="Another name there.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@json_option
@pass_context
def join(
    context: Context,
    /,
    rename: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
    **options: str | None,
) -> None:
    """
    Take this node's volumes into a cluster's records; no data is copied.

    The daemon must be stopped; containers may run on. What is not given is taken from
    [cluster] of the configuration, and what is missing there is written into it at the
    end. A join that was broken off is finished by repeating it.
    """
    path = context.config_path or DEFAULT_PATH
    config = _with_options(path, options)
    moves = _join(config, path, pairs_of(rename, "OLD=NEW"), dry_run=dry_run)
    if as_json:
        output.print_json(msgspec.to_builtins({"dry_run": dry_run, "volumes": moves}))
        return
    for each in moves:
        new = f" as {each.new_name}" if each.new_name != each.name else ""
        click.echo(f"{each.name}{new}: {_STATES[each.state]}")
    if not dry_run:
        click.echo(f"joined; now: {_START}", err=True)


@cluster.command()
@click.option(
    "-o", "--output", "path", type=click.Path(path_type=Path), help="Write there."
)
@pass_context
def dump(context: Context, path: Path | None) -> None:
    """
    Print all records, or write them to a file that only root can read.

    The store itself is read, whether or not the daemon runs.
    """
    from backends.system import files  # noqa: PLC0415
    from plugin.joining import dumping  # noqa: PLC0415

    with _store(context.config, create=False) as (store, identity):
        content = dumping.dump(store, cluster=identity)
    if path is None:
        click.echo(content, nl=False)
        return
    try:
        files.write_durably(path.absolute(), content)
    except OSError as error:
        raise InvalidRequestError(f"cannot write {path}: {error.strerror}") from error


@cluster.command("load")
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--replace", is_flag=True, help="Delete the records that are there.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Even while nodes are alive.")
@json_option
@pass_context
def load_dump(
    context: Context, path: Path, replace: bool, yes: bool, force: bool, as_json: bool
) -> None:
    """
    Make the records those of FILE, which `remora cluster dump` has written.

    Stop all daemons first. One that was broken off is finished by repeating it; until
    then no daemon works with the records.
    """
    from plugin.joining import dumping  # noqa: PLC0415
    from plugin.joining.joined import note_left  # noqa: PLC0415

    config = context.config
    try:
        found = dumping.read(path.read_bytes())
    except OSError as error:
        raise InvalidRequestError(f"cannot read {path}: {error.strerror}") from error
    with _stopped(config, "load") as node, _store(config) as (store, _):
        loading = dumping.Loading(store, found, replace=replace, force=force)
        goes = loading.check()
        if replace and not yes:
            question = f"Replace records by the dump of {found.header.taken_at}"
            click.confirm(f"{question} ({goes} go or change)?", abort=True, err=True)
        embedded = not config.cluster.etcd
        count = loading.run(
            before_end=lambda: note_left(node) if embedded else None,
        )
    taken_at = found.header.taken_at
    answer = {"records": count, "taken_at": taken_at}
    output.print_answer(answer, f"{count} records of {taken_at}", as_json=as_json)


@cluster.command()
@json_option
@pass_context
def status(context: Context, as_json: bool) -> None:
    """Show etcd's members, the nodes and what is wrong; exit code 1 without etcd."""
    try:
        found: dict[str, Any] = context.client.call("GET", "/v1/cluster")
    except DaemonUnreachableError as error:
        found = _status_without_daemon(context.config, str(error))
    if as_json:
        output.print_json(found)
    elif found["alone"]:
        click.echo("this node is alone: [cluster] names no etcd")
    else:
        _show(found)
    if not found["answers"]:
        raise SystemExit(1)


def _show(found: dict[str, Any]) -> None:
    """Print the status for people."""
    members = [
        (each["url"], "yes" if each["answers"] else "no", each["revision"] or "-")
        for each in found["etcd"]
    ]
    output.print_table(("ETCD", "ANSWERS", "REVISION"), members)
    nodes = [(each["name"], each["state"]) for each in found["nodes"]]
    if nodes:
        output.print_table(("NODE", "STATE"), nodes)
    click.echo(f"cluster: {found['cluster'] or 'unknown'} at {found['prefix']}")
    if "mirror_age_s" in found:
        age_s = found["mirror_age_s"]
        click.echo(f"mirror: {'in step' if age_s is None else f'{age_s:.0f} s old'}")
    faults = [each["fault"] for each in found["etcd"] if each["fault"]]
    for fault in (*faults, *found["faults"]):
        click.echo(f"fault: {fault}", err=True)


def _status_without_daemon(config: Config, fault: str) -> dict[str, Any]:
    """Return what can be seen without the daemon."""
    from plugin.membership.directory import NodeDirectory  # noqa: PLC0415
    from plugin.membership.endpoints import EtcdHealth, look  # noqa: PLC0415
    from plugin.membership.settings import etcd_settings  # noqa: PLC0415

    nodes: list[dict[str, str]] = []
    alone = not config.cluster.etcd
    health = EtcdHealth((), "")
    if not alone:
        health = look(etcd_settings(config.cluster))
    if health.answers:
        with _store(config) as (store, _):
            directory = NodeDirectory(store, data_only_on=lambda _: {})
            nodes = [
                {"name": each.record.name, "id": each.record.id, "state": each.state}
                for each in directory.all()
            ]
    return {
        "alone": alone,
        "etcd": msgspec.to_builtins(health.endpoints),
        "answers": alone or health.answers,
        "revision": health.revision,
        "cluster": health.cluster,
        "prefix": config.cluster.etcd_prefix,
        "nodes": nodes,
        "faults": [fault],
    }


def _join(
    config: Config, path: Path, renames: dict[str, str], *, dry_run: bool
) -> list[JoinedVolume]:
    """Return what becomes of the volumes, after it was done unless *dry_run*."""
    from plugin.joining import section  # noqa: PLC0415
    from plugin.joining.joining import Joining, joining_identity  # noqa: PLC0415
    from plugin.joining.plan import JoinRefusedError  # noqa: PLC0415
    from plugin.store.sqlite import SqliteStore  # noqa: PLC0415

    before = section.read_file(path)
    after = section.with_section(before, config.cluster, source=str(path))
    with (
        _stopped(config, "join") as node,
        closing(SqliteStore(config.state_dir / "store.db")) as local,
        _store(config) as (store, identity),
    ):
        joining = Joining(
            local=local,
            cluster=store,
            cluster_id=identity,
            own=joining_identity(node.id, config.cluster.node_name),
            facts=node,
            renames=renames,
            held=node.references.volumes(),
        )
        try:
            moves = joining.check() if dry_run else joining.run()
        except JoinRefusedError as error:
            for each in error.conflicts:
                click.echo(f"conflict: {each}", err=True)
            raise
        if not dry_run and after != before:
            section.write_file(path, after)
    return moves


@contextmanager
def _stopped(config: Config, verb: str) -> Iterator[Node]:
    """Yield this node's own file, locked so that no daemon can start."""
    from backends.system import files  # noqa: PLC0415
    from plugin.daemon.node import Node, lock_state  # noqa: PLC0415

    try:
        files.keep_private(config.state_dir)
        lock = lock_state(config.state_dir)
    except OSError as error:
        raise StoreError(f"cannot use {config.state_dir}: {error.strerror}") from error
    except StoreError as error:
        raise StoreError(
            f"the daemon runs, and a {verb} needs it stopped",
            hint=f"{_STOP}; then this command; then {_START}",
        ) from error
    try:
        node = Node(config.state_dir)
        try:
            yield node
        finally:
            node.close()
    finally:
        os.close(lock)


@contextmanager
def _store(config: Config, *, create: bool = True) -> Iterator[tuple[Store, str]]:
    """Yield the store that the daemon uses, and the identity of its cluster."""
    from plugin.membership.settings import etcd_settings  # noqa: PLC0415
    from plugin.store.etcd.store import EtcdStore  # noqa: PLC0415
    from plugin.store.sqlite import SqliteStore  # noqa: PLC0415

    if config.cluster.etcd:
        with closing(EtcdStore(etcd_settings(config.cluster))) as store:
            yield store, store.identity()
        return
    path = config.state_dir / "store.db"
    if not (create or path.exists()):
        raise StoreError(f"there are no records: {path} does not exist")
    with closing(SqliteStore(path)) as embedded:
        yield embedded, ""


def _with_options(path: Path, options: dict[str, str | None]) -> Config:
    """Return the configuration with *options* on top, checked as a whole."""
    keys = {
        "etcd": "etcd",
        "insecure": "etcd_insecure",
        "prefix": "etcd_prefix",
        "user": "etcd_user",
        "password_file": "etcd_password_file",
        "ca_file": "etcd_ca_file",
        "cert_file": "etcd_certificate_file",
        "key_file": "etcd_key_file",
        "node_name": "node_name",
    }
    given = {}
    for option, value in options.items():
        if value is not None:
            shown = str(Path(value).absolute()) if option.endswith("_file") else value
            given[f"REMORA_{keys[option].upper()}"] = shown
    # A file that does not exist yet is made by the join.
    source = path if path.exists() else _EMPTY_FILE
    config = load(source, {**os.environ, **given})
    if not config.cluster.etcd:
        raise click.UsageError("give --etcd, or etcd in [cluster] of the configuration")
    return config
