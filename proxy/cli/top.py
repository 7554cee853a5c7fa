"""`feedproxy top`: what hosts are doing right now.

It asks each host for /metrics and /health, as Prometheus and load balancers do: these are true for all its
processes, whoever looks on from elsewhere may see them by the same rules, and what they cost is known (some
milliseconds; of the store nothing is asked more often than once a second, however many look on).
"""

# ruff: noqa: PLC0415 - see proxy/cli/__init__.py

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from proxy.cli.jobs import AsJson

if TYPE_CHECKING:
    import httpx

    from proxy.clock import Clock
    from proxy.ops.watch import Host
    from proxy.settings import Settings

app = typer.Typer()

REFRESH_S: Final = 0.5
# Of one snapshot: for so long its rates are looked at.
_SNAPSHOT_S: Final = 1.0
_PATIENCE_S: Final = 3.0
_TROUBLES: Final = {
    401: "FEEDPROXY_ADMIN_TOKEN is not the token there",
    404: "shows its numbers to private networks only, by its address: ask from there, at its "
    "FEEDPROXY_OPS_LISTEN, or over https with FEEDPROXY_ADMIN_TOKEN set here",
    429: "has been shown too many wrong tokens",
}

Watched = Sequence[tuple["Host", "httpx.AsyncClient"]]


@app.command()
def top(
    urls: Annotated[
        list[str] | None, typer.Argument(help="Hosts, such as http://10.0.0.2:8080; by default this one.")
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Show what hosts are doing right now.

    Without a terminal, and with --json, it is one snapshot.
    """
    from proxy.cli.output import console, show_json
    from proxy.cli.reach import loaded_settings
    from proxy.clock import SystemClock
    from proxy.errors import OperationalError

    settings, clock = loaded_settings(), SystemClock()
    wanted = _targets(settings, urls or [])
    screen = console()
    if screen.is_terminal and not as_json:
        asyncio.run(_live(wanted, clock))
        return
    picture = asyncio.run(_snapshot(wanted, clock))
    troubles = [f"{host['url']} {host['trouble']}" for host in picture["hosts"] if host["trouble"]]
    if len(troubles) == len(picture["hosts"]):
        raise OperationalError("; ".join(troubles))
    if as_json:
        show_json(picture)
    else:
        from proxy.cli.panel import panel

        screen.print(panel(picture, at=_time_of_day(clock)))
    if troubles:
        raise typer.Exit(1)


def _targets(settings: Settings, urls: Sequence[str]) -> dict[str, str]:
    """Where to ask, and the token to show there: to this host, else to nobody who could be overheard."""
    from proxy.errors import UsageError
    from proxy.ops.readiness import reachable
    from proxy.settings import origin

    token = settings.admin_token.get_secret_value() if settings.admin_token is not None else ""
    if not urls:
        host, _, port = (settings.ops_listen or f"{settings.host}:{settings.port}").rpartition(":")
        if port == "0":
            raise UsageError("the port of this host is not known: name its URL, as in http://127.0.0.1:8080")
        host = reachable(host.strip("[]"))
        return {f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}": token}
    targets = {}
    for url in urls:
        try:
            known = origin(url)
        except ValueError as error:
            raise UsageError(f"{url!r}: {error}") from None
        targets[known] = token if known.startswith("https:") else ""
    return targets


@contextlib.asynccontextmanager
async def _watching(targets: dict[str, str]) -> AsyncIterator[Watched]:
    import httpx

    from proxy.ops.watch import Host

    tls = httpx.create_ssl_context(trust_env=False)
    async with contextlib.AsyncExitStack() as stack:
        watched = []
        for url, token in targets.items():
            headers = {"authorization": f"Bearer {token}"} if token else {}
            client = httpx.AsyncClient(
                base_url=url, headers=headers, timeout=_PATIENCE_S, trust_env=False, verify=tls
            )
            watched.append((Host(url), await stack.enter_async_context(client)))
        yield watched


async def _snapshot(targets: dict[str, str], clock: Clock) -> dict[str, Any]:
    from proxy.ops.watch import picture

    async with _watching(targets) as watched:
        await asyncio.gather(*(_ask(host, client, clock) for host, client in watched))
        if any(host.samples for host, _ in watched):
            await asyncio.sleep(_SNAPSHOT_S)
            await asyncio.gather(*(_ask(host, client, clock) for host, client in watched))
        return picture([host for host, _ in watched])


async def _live(targets: dict[str, str], clock: Clock) -> None:
    """Draw until SIGINT or SIGTERM."""
    from rich.live import Live

    from proxy.cli.output import console
    from proxy.cli.panel import panel
    from proxy.ops.watch import picture

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with _watching(targets) as watched:
        asking = [asyncio.create_task(_keep_asking(host, client, clock)) for host, client in watched]
        hosts = [host for host, _ in watched]
        try:
            with Live(console=console(), screen=True, auto_refresh=False) as live:
                while not stop.is_set():
                    shown = panel(picture(hosts), at=_time_of_day(clock), lines=live.console.height)
                    live.update(shown, refresh=True)
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(stop.wait(), REFRESH_S)
                    for task in asking:
                        if task.done():  # they never are, unless something is wrong with us
                            task.result()
        finally:
            for task in asking:
                task.cancel()
            await asyncio.wait(asking)


async def _keep_asking(host: Host, client: httpx.AsyncClient, clock: Clock) -> None:
    while True:
        began_at = clock.steady()
        await _ask(host, client, clock)
        await asyncio.sleep(max(0.0, REFRESH_S - (clock.steady() - began_at)))


async def _ask(host: Host, client: httpx.AsyncClient, clock: Clock) -> None:
    """Have `host` know what it says now, or why it says nothing."""
    import httpx

    from proxy.ops.watch import Numbers, Sample

    try:
        metrics, at = await client.get("/metrics"), clock.steady()
        health = await client.get("/health")
        if metrics.status_code != httpx.codes.OK:
            told = _TROUBLES.get(metrics.status_code, f"answered {metrics.status_code}")
            host.failed(told)
        else:
            host.told(Sample(at, Numbers(metrics.text), health.json().get("checks", {})))
    except httpx.HTTPError as error:
        host.failed(f"does not answer ({type(error).__name__})")
    except (ValueError, AttributeError):
        host.failed("answers, but not as a feedproxy does")


def _time_of_day(clock: Clock) -> str:
    from datetime import datetime

    return datetime.fromtimestamp(clock.wall()).astimezone().strftime("%H:%M:%S")
