"""`remora node enroll`: make another machine a node of this node's cluster."""

from __future__ import annotations

import re
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from plugin.cli import output
from plugin.cli.context import Context, json_option, pass_context
from plugin.errors import EnrolmentError

if TYPE_CHECKING:
    from plugin.enrolment.enroll import Plan, Wish
    from plugin.enrolment.remote import RemoteMachine

_FINGERPRINT: Final = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")


@click.command()
@click.argument("host")
@click.option("--port", default=22, show_default=True, type=click.IntRange(1, 65535))
@click.option(
    "--user",
    default="root",
    show_default=True,
    help="Who logs in; whoever is not root needs sudo there, and is asked for its "
    "password if sudo wants one.",
)
@click.option(
    "--identity",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The private key to log in with  [default: the agent's, those in ~/.ssh, "
    "then a password that is asked for]",
)
@click.option(
    "--host-key-fingerprint",
    "fingerprint",
    default="",
    metavar="SHA256:...",
    callback=lambda _context, _parameter, text: _fingerprint(text),
    help="Accept this host key and no other; else one in ~/.ssh/known_hosts is "
    "accepted, and any other is asked about.",
)
@click.option("--name", default="", help="The node's name  [default: HOST's own]")
@click.option(
    "--address", default="", help="Where the other nodes reach it  [default: found out]"
)
@click.option("--force", is_flag=True, help="Overwrite what is configured there.")
@click.option(
    "--dry-run", is_flag=True, help="Show what would be done; change nothing."
)
@click.option("--yes", is_flag=True, help="Do what is planned without asking.")
@json_option
@pass_context
def enroll(  # noqa: PLR0913, PLR0917 - a parameter for each option
    context: Context,
    host: str,
    port: int,
    user: str,
    identity: Path | None,
    fingerprint: str,
    name: str,
    address: str,
    force: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """
    Make the Debian machine HOST a node of this node's cluster, over SSH.

    Installs Remora as it is here (HOST needs no network for it), writes the
    configuration, starts the daemon, and waits for the node to live in the cluster.
    What was done already is left alone: after a failure, call it again.
    """
    # paramiko takes a fifth of a second to import.
    from plugin.enrolment import enroll as enrolment  # noqa: PLC0415
    from plugin.enrolment import login  # noqa: PLC0415

    enrolment.require_cluster(context.config)
    # First of all: our daemon has to answer, because it will see the node live.
    context.client.call("GET", "/v1/nodes")
    who = login.Login(
        host=host, port=port, user=user, identity=identity, fingerprint=fingerprint
    )
    with closing(login.connect(who, _Terminal())) as machine:
        wish = enrolment.Wish(name=name, address=address, force=force)
        plan = _make_plan(context, machine, wish)
        if not as_json:
            _show(plan, machine)
        if dry_run:
            _show_dry_run(plan, as_json=as_json)
            return
        if not yes:
            _confirm(machine)
        plan.carry_out(lambda step, done: _report(step, done, quiet=as_json))
    output.print_answer(_facts(plan), plan.node_name, as_json=as_json)


def _make_plan(context: Context, machine: RemoteMachine, wish: Wish) -> Plan:
    """Return what is to be done; show what stands in the configuration's way."""
    from plugin.enrolment import bundle, enroll  # noqa: PLC0415

    try:
        return enroll.make_plan(
            machine,
            wish,
            config=context.config,
            bundle=bundle.make(),
            nodes=lambda: context.client.call("GET", "/v1/nodes"),
        )
    except enroll.ConfiguredError as error:
        click.echo(error.difference, err=True)
        raise


class _Terminal:
    """Asks the administrator, on standard error and at a terminal alone."""

    def confirm_host_key(self, machine: str, kind: str, fingerprint: str) -> bool:
        """Return whether the administrator says yes."""
        click.echo(f"The host key of {machine} is not known:", err=True)
        click.echo(f"  {kind} {fingerprint}", err=True)
        click.echo(
            "Its console shows it: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub",
            err=True,
        )
        return sys.stdin.isatty() and click.confirm("Is that right?", err=True)

    def secret(self, question: str) -> str:
        """Return the answer, which is not shown."""
        if not sys.stdin.isatty():
            raise EnrolmentError(
                f"there is no terminal to ask for the {question}",
                hint="--identity FILE with a key that needs none, or ssh-agent; for "
                "sudo, --user root or a NOPASSWD rule",
            )
        return str(click.prompt(question, hide_input=True, err=True))


def _fingerprint(text: str) -> str:
    if text and not _FINGERPRINT.fullmatch(text):
        raise click.BadParameter(
            "it is SHA256: and 43 letters, as ssh-keygen -l prints"
        )
    return text


def _confirm(machine: RemoteMachine) -> None:
    if not sys.stdin.isatty():
        raise EnrolmentError(
            f"nothing was done to {machine.name}: nobody can be asked",
            hint="--yes does what --dry-run shows",
        )
    click.confirm("Do this?", abort=True, err=True)


def _show(plan: Plan, machine: RemoteMachine) -> None:
    click.echo(
        f"{machine.name} ({plan.found.os_name}) as node '{plan.node_name}':", err=True
    )
    for step, pending in plan.steps:
        click.echo(f"  {step.name}: {pending or 'nothing to do'}", err=True)
    if plan.difference:
        click.echo(plan.difference, err=True)
    for warning in plan.warnings:
        click.echo(f"warning: {warning}", err=True)


def _show_dry_run(plan: Plan, *, as_json: bool) -> None:
    if as_json:
        output.print_json({**_facts(plan), "configuration": plan.configuration})
        return
    click.echo(plan.configuration, nl=False)


def _report(step: str, done: str, *, quiet: bool) -> None:
    if not quiet:
        click.echo(f"{step}: {'done' if done else 'nothing to do'}", err=True)


def _facts(plan: Plan) -> dict[str, object]:
    return {
        "name": plan.node_name,
        "warnings": plan.warnings,
        "steps": {step.name: pending for step, pending in plan.steps},
    }
