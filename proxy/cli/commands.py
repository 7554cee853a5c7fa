"""The commands.

Each imports what it needs when it runs, so that none waits for what the others need.
"""

# ruff: noqa: PLC0415 - that is what the imports inside functions are for

from __future__ import annotations

import os
import signal
import sys
from typing import Annotated

import typer

from proxy.cli import accounts, dead, doctor, jobs, steering, top

app = typer.Typer(
    name="feedproxy",
    help="A caching reverse proxy for Bluesky feed widgets, and the queue that posts back.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # Frames and colours take longer to import than all the rest of it.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


app.add_typer(top.app)
app.add_typer(doctor.app)
app.add_typer(steering.app)
app.add_typer(jobs.app, name="jobs")
app.add_typer(dead.app, name="dead")
app.add_typer(accounts.app, name="accounts")


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - typer calls it with the option's value
    if wanted:
        from proxy.version import VERSION

        typer.echo(f"feedproxy {VERSION}")
        raise typer.Exit


@app.callback()
def _root(
    *,
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command()
def serve(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [FEEDPROXY_HOST]")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one. [FEEDPROXY_PORT]")] = None,
    workers: Annotated[int | None, typer.Option(help="Web processes. [FEEDPROXY_WORKERS]")] = None,
) -> None:
    """Run the proxy on this host until told to stop."""
    sys.modules["rich"] = None  # type: ignore[assignment]  # as in proxy.child
    from proxy.settings import load_settings

    settings = load_settings(os.environ, host=host, port=port, workers=workers)

    from proxy import supervisor, telemetry
    from proxy.store.residence import Residence, place_of
    from proxy.syndication.accounts import load_accounts, secrets_of

    # What is wrong with a secret stops the start, not each process that is started, again and again.
    load_accounts(settings.tenants, os.environ)
    redactor = telemetry.configure_logging(settings, role="supervisor")
    redactor.learn(secrets_of(settings.tenants, os.environ))
    residence, here = Residence(settings.data_dir), place_of(settings).name
    if residence.known() not in (None, here):
        from proxy.ops.relocation import check_switch

        check_switch(settings)
    residence.note(here)
    supervisor.serve(settings, os.environ, ahead=context.obj)


@app.command()
def worker(
    port: Annotated[
        int | None, typer.Option(help="Serve probes and metrics there; 0 takes a free port.")
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address for --port to listen on. [FEEDPROXY_HOST]")
    ] = None,
) -> None:
    """Work off the queue of posts in FEEDPROXY_REDIS_URL.

    `serve` has a worker for the store of its own.
    """
    # It waits until the worker can heed it; until then it would be its end.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    from proxy.errors import OperationalError
    from proxy.settings import load_settings

    settings = load_settings(os.environ, host=host)
    if settings.redis_url is None:
        raise OperationalError(
            "there is no store to work for: set FEEDPROXY_REDIS_URL, or run `feedproxy serve`, which has a "
            "worker for its own store"
        )

    from proxy import runtime

    listen_fd = None
    if port is not None:
        from proxy.listeners import bind

        listen_fd = bind(settings.host, port).detach()
    sys.exit(runtime.run(runtime.Handed(role="worker", listen_fd=listen_fd)))


@app.command()
def probe(
    port: Annotated[int | None, typer.Option(help="Port. [FEEDPROXY_PORT]")] = None,
) -> None:
    """Ask the feedproxy of this host whether it is ready.

    This is for the health check of a container.
    """
    from proxy.ops.readiness import check_ready
    from proxy.settings import load_settings

    settings = load_settings(os.environ, port=port)
    check_ready(settings.host, settings.port)


@app.command()
def move(
    *,
    source: Annotated[
        str | None, typer.Option("--from", help="embedded, a URL, or file:PATH; default: where it was last.")
    ] = None,
    target: Annotated[
        str | None, typer.Option("--to", help="The same; default: the store of the settings.")
    ] = None,
    abandon: Annotated[
        bool, typer.Option("--abandon", help="Move nothing; leave behind what another store holds.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Carry all that is not cache to another store. Stop every serve and worker first."""
    from proxy import telemetry
    from proxy.ops import relocation
    from proxy.settings import load_settings

    settings = load_settings(os.environ)
    telemetry.configure_logging(settings, role="move")
    if abandon:
        relocation.abandon(settings)
    else:
        relocation.run(settings, source=source, target=target, as_json=as_json)


@app.command()
def config() -> None:
    """Print the settings in effect, secrets masked."""
    from proxy.settings import load_settings

    for name, value in load_settings(os.environ).effective().items():
        typer.echo(f"{name}={value}")
