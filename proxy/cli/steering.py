"""`feedproxy pause`, `resume` and `purge`: what concerns everything at once."""

# ruff: noqa: PLC0415 - see proxy/cli/__init__.py

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from proxy.cli.jobs import AsJson
from proxy.cli.reach import at_desk, loaded_settings

app = typer.Typer()


@app.command()
def pause(*, as_json: AsJson = False) -> None:
    """Send nothing any more, on all hosts, until `resume`.

    Posts are taken in and wait.
    """
    from proxy.cli.output import show_done

    at_desk(lambda desk: desk.controls.pause_all())
    text = "everything is paused; what is being sent right now ends"
    show_done(text, {"paused": "everything"}, as_json=as_json)


@app.command()
def resume(*, as_json: AsJson = False) -> None:
    """Send what waits; accounts that are paused themselves stay so."""
    from proxy.cli.output import show_done

    at_desk(lambda desk: desk.controls.resume_all())
    show_done("everything is resumed", {"resumed": "everything"}, as_json=as_json)


@app.command()
def purge(
    *,
    actor: Annotated[str | None, typer.Option(help="What is stored of this handle or DID.")] = None,
    key: Annotated[str | None, typer.Option(help="The answers to this: /xrpc/…?…")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All answers.")] = False,
    as_json: AsJson = False,
) -> None:
    """Declare cached answers dead, in all processes of all hosts."""
    from proxy.cli.output import show_done
    from proxy.clock import SystemClock
    from proxy.errors import Rejected, UsageError
    from proxy.feeds.admin import key_of
    from proxy.operating.purging import known_as, purging
    from proxy.syntax import is_at_identifier

    if [actor is not None, key is not None, everything].count(True) != 1:
        raise UsageError("say one of --actor, --key and --all")
    if actor is not None and not is_at_identifier(actor.lower()):
        raise UsageError("--actor must be a handle or a DID")
    try:
        question = key_of(key) if key is not None else None
    except Rejected as error:
        raise UsageError(f"--key: {error.message}") from None
    settings = loaded_settings()

    async def run() -> None:
        clock = SystemClock()
        async with purging(settings, clock) as purges:
            if question is not None:
                await purges.purge_key(question)
            elif actor is not None:
                purges.learn(await known_as(settings, clock, actor))
                await purges.purge_actor(actor)
            else:
                await purges.purge_all()

    asyncio.run(run())
    show_done("purged", {"purged": actor or key or "all"}, as_json=as_json)
