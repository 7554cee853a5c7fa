"""The processes of one host: embedded Valkey, web processes, and what happens when one of them dies."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import socket
import subprocess
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from proxy.clock import Clock, SystemClock
from proxy.control import Beginning, ChildLink
from proxy.hanging import HUNG_S, HangWatch
from proxy.listeners import bind, place_of, serves_anything_to_anyone
from proxy.settings import PREFIX, Settings
from proxy.spawning import CHILD_COMMAND, Spawned, spawn
from proxy.store.datadir import data_dir_lock
from proxy.store.embedded import EmbeddedValkey
from proxy.systemd import ServiceManager, inherited_listener
from proxy.tally import Pulses, new_memory
from proxy.telemetry import get_logger

RESTART_FIRST_S = 0.1
RESTART_MAX_S = 5.0
STEADY_AFTER_S = 60.0
# Together below the 10 s that a service manager's patience is counted in.
DRAIN_S = 8.0
STOP_S = 9.5
HURRY_S = 1.0
# A worker waits for so long for the first web process to be up.
WEB_FIRST_S = 5.0


class RestartDelay:
    """How long to wait before a dead process is started again: doubling, until one has lived for a while."""

    def __init__(self) -> None:
        self._next_s = RESTART_FIRST_S

    def after(self, lived_s: float) -> float:
        """Seconds to wait, now that a process has died after `lived_s` seconds."""
        if lived_s >= STEADY_AFTER_S:
            self._next_s = RESTART_FIRST_S
        delay_s = self._next_s
        self._next_s = min(delay_s * 2, RESTART_MAX_S)
        return delay_s


@dataclass(eq=False, kw_only=True)
class _Child:
    """A running child."""

    role: str  # web or worker
    slot: int  # from 0; stays with the process that replaces it
    process: subprocess.Popen[bytes]
    link: ChildLink
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    ready: bool = False  # it is up; a web process accepts connections
    to_reload: bool = False  # told to reload before it could listen to that

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)  # once it has ended, that does nothing

    def look(self) -> None:
        """Collect it if it has ended."""
        if self.process.poll() is not None:
            self.ended.set()


class Supervisor:
    """Keeps the processes of one host running until told to stop.

    `listener` is the bound socket that all web processes accept from, `ops_listener` one for operators alone;
    a stop closes both. `valkey` is None where the operator runs a Redis. `child_command` starts a child (see
    `spawn`); `ahead` is the first web process, started already. A child that is silent for `hung_s` is ended,
    and replaced like any that died. Signals: SIGTERM and SIGINT stop, a second one stops faster, SIGHUP goes
    on to the children.
    """

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str],
        *,
        listener: socket.socket,
        ops_listener: socket.socket | None = None,
        valkey: EmbeddedValkey | None,
        child_command: Sequence[str] = CHILD_COMMAND,
        ahead: Spawned | None = None,
        clock: Clock | None = None,
        hung_s: float = HUNG_S,
    ) -> None:
        self._settings = settings
        self._listener = listener
        self._ops_listener = ops_listener
        self._tally_fd = new_memory(places=settings.workers + 1)
        self._pulses = Pulses(self._tally_fd)
        self._hang_watch: HangWatch[_Child] = HangWatch(hung_s)
        self._valkey = valkey
        if valkey is not None:
            valkey.on_incident = self._tell_children
        self._child_command = tuple(child_command)
        self._ahead = ahead
        self._environ = environ
        self._decided = _decided(settings, listener, valkey)
        self._clock = clock or SystemClock()
        self._manager = ServiceManager(environ)
        self._log = get_logger()
        self._children: set[_Child] = set()
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._web_up = asyncio.Event()

    def __repr__(self) -> str:
        ready = self._ready_count()
        return f"<Supervisor of {self._settings.workers} web processes, {ready} ready>"

    async def run(self) -> None:
        """Start everything, keep it running, and return once all of it has stopped."""
        handlers = {
            signal.SIGTERM: self.stop,
            signal.SIGINT: self.stop,
            signal.SIGHUP: self._reload,
            signal.SIGCHLD: self._look_for_ended,
        }
        with _signals(handlers):
            self._tell_where()
            async with self._manager.watched(), asyncio.TaskGroup() as tasks:
                children = tasks.create_task(self._run_children(), name="children")
                if self._valkey is not None:
                    tasks.create_task(self._keep("valkey", self._valkey.run_once), name="valkey")
                tasks.create_task(self._end_the_hung(), name="hanging")
                tasks.create_task(self._shut_down_when_told(children), name="shutdown")
            self._log.info("stopped")

    def _tell_where(self) -> None:
        place = place_of(self._listener)
        self._log.info("listening", **place, workers=self._settings.workers, pid=os.getpid())
        if serves_anything_to_anyone(self._settings, str(place.get("host", ""))):
            self._log.warning(
                "every_feed_is_served",
                remedy=f"name yours in {PREFIX}ACTORS, or anybody may use this proxy for any feed",
            )
        if self._ops_listener is not None:
            self._log.info("operators_listening", **place_of(self._ops_listener))

    def stop(self) -> None:
        """Begin to stop; called again, stop without waiting for requests in flight."""
        if self._stopping.is_set():
            self._hurry.set()
        self._stopping.set()

    def _reload(self) -> None:
        self._log.info("reloading")
        self._manager.reloading()
        for child in self._children:
            if child.ready:
                child.signal(signal.SIGHUP)
            else:  # it would die of it
                child.to_reload = True
        self._tell_manager()

    def _look_for_ended(self) -> None:
        for child in self._children:
            child.look()

    def _signal_children(self, number: signal.Signals) -> None:
        for child in self._children:
            child.signal(number)

    async def _shut_down_when_told(self, children: asyncio.Task[None]) -> None:
        await self._stopping.wait()
        self._log.info("stopping")
        self._manager.stopping()
        stop_by = self._clock.steady() + STOP_S
        # While any process has it open, connections are accepted by the kernel, and answered by nobody.
        self._listener.close()
        if self._ops_listener is not None:
            self._ops_listener.close()
        self._signal_children(signal.SIGTERM)
        hurry = asyncio.create_task(self._hurry.wait())
        await asyncio.wait([children, hurry], timeout=DRAIN_S, return_when=asyncio.FIRST_COMPLETED)
        if not children.done():
            self._log.warning("drain_cut_short", pids=[child.process.pid for child in self._children])
            self._signal_children(signal.SIGKILL)
            await asyncio.wait([children])
        hurry.cancel()
        # Last, because requests in flight write to it until the end.
        if self._valkey is not None:
            left_s = HURRY_S if self._hurry.is_set() else stop_by - self._clock.steady()
            await self._valkey.stop(min(left_s, self._valkey.STOP_S))

    async def _keep(
        self, name: str, live: Callable[[], Awaitable[int | None]], first: Awaitable[None] | None = None
    ) -> None:
        """Run one life after the other of a process until told to stop; `first` comes before them."""
        if first is not None:
            await first
        delay = RestartDelay()
        while not self._stopping.is_set():
            born_at = self._clock.steady()
            exit_code = await live()
            if self._stopping.is_set():
                return
            wait_s = delay.after(self._clock.steady() - born_at)
            self._log.error("process_died", process=name, exit_code=exit_code, restart_in_s=wait_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), wait_s)

    async def _run_children(self) -> None:
        # Where the operator runs a Redis, the workers are the operator's as well: `feedproxy worker`.
        roles = ["web"] * self._settings.workers + ["worker"] * (self._valkey is not None)
        async with asyncio.TaskGroup() as tasks:
            for slot, role in enumerate(roles):
                live = functools.partial(self._live_child, role, slot)
                tasks.create_task(self._keep(f"{role}-{slot}", live, first=self._may_start(role)))

    async def _may_start(self, role: str) -> None:
        """Posts can wait for a second; pages cannot, and starting takes all the cores there are."""
        if role == "worker":
            awaited = [asyncio.create_task(event.wait()) for event in (self._web_up, self._stopping)]
            await asyncio.wait(awaited, timeout=WEB_FIRST_S, return_when=asyncio.FIRST_COMPLETED)
            for waiting in awaited:
                waiting.cancel()

    async def _live_child(self, role: str, slot: int) -> int | None:
        """One life of a child; its exit code, None when it could not be started."""
        try:
            spawned = self._spawn(role)
        except OSError as error:
            self._log.error("child_not_started", child=role, slot=slot, error=str(error))
            return None
        child = _Child(role=role, slot=slot, process=spawned.process, link=ChildLink(spawned.control))
        child.link.send_beginning(Beginning(place=slot, environ=self._decided, fds=self._handed(role)))
        self._children.add(child)
        child.look()  # what had been started ahead may have ended before we listened to that
        self._log.info(f"{role}_started", slot=slot, pid=child.process.pid)
        try:
            async with asyncio.TaskGroup() as tasks:
                listening = tasks.create_task(self._listen(child))
                await child.ended.wait()
                listening.cancel()
            return child.process.returncode
        finally:
            child.signal(signal.SIGKILL)  # still running only if we are being cancelled
            await child.ended.wait()
            self._children.discard(child)
            await child.link.close()
            self._tell_children()

    def _spawn(self, role: str) -> Spawned:
        if role == "web" and self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            return ahead
        return spawn(self._child_command, role, self._environ)

    def _handed(self, role: str) -> dict[str, int]:
        """Descriptors for a child, by name."""
        handed = {"tally": self._tally_fd}
        if role == "web":
            handed["listen"] = self._listener.fileno()
            if self._ops_listener is not None:
                handed["ops"] = self._ops_listener.fileno()
        return handed

    async def _listen(self, child: _Child) -> None:
        async for event in child.link.events():
            if event == "ready" and not child.ready:
                child.ready = True
                if child.role == "web":
                    self._web_up.set()
                    self._tell_manager()
                self._log.info(f"{child.role}_ready", slot=child.slot, pid=child.process.pid)
                self._tell_children()
                if child.to_reload:
                    child.signal(signal.SIGHUP)

    async def _end_the_hung(self) -> None:
        while not self._stopping.is_set():
            beats = {child: self._pulses.last_ms(child.slot) for child in self._children if child.ready}
            for child in self._hang_watch.look(self._clock.steady(), beats):
                self._log.error("child_hung", child=child.role, slot=child.slot, pid=child.process.pid)
                child.signal(signal.SIGKILL)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self._hang_watch.look_s)

    def _ready_count(self) -> int:
        return sum(child.ready for child in self._children if child.role == "web")

    def _tell_manager(self) -> None:
        ready, all_of_them = self._ready_count(), self._settings.workers
        self._manager.status(f"{ready} of {all_of_them} web processes are up")
        if ready == all_of_them:
            self._manager.ready()

    def _tell_children(self) -> None:
        ready = self._ready_count()
        incidents = [] if self._valkey is None else [str(incident) for incident in self._valkey.incidents]
        for child in self._children:
            child.link.send_fleet(ready, self._settings.workers)
            if incidents:
                child.link.send_store(incidents)


def serve(
    settings: Settings,
    environ: Mapping[str, str],
    *,
    child_command: Sequence[str] = CHILD_COMMAND,
    ahead: Spawned | None = None,
) -> None:
    """Run feedproxy on this host until SIGTERM or SIGINT.

    A service manager that has handed over a listening socket has chosen the address. For `ahead` see
    Supervisor. Raises OperationalError when the address or the data directory cannot be had.
    """
    with contextlib.ExitStack() as held:
        valkey = None
        if settings.redis_url is None:
            data_dir = held.enter_context(data_dir_lock(settings.data_dir))
            valkey = EmbeddedValkey(data_dir, memory_mb=settings.embedded_memory_mb)
        listener = held.enter_context(inherited_listener(environ) or bind(settings.host, settings.port))
        ops_listener = None
        if settings.ops_listen is not None:
            host, _, port = settings.ops_listen.rpartition(":")
            ops_listener = held.enter_context(bind(host.strip("[]"), int(port)))

        async def supervise() -> None:
            await Supervisor(
                settings,
                environ,
                listener=listener,
                ops_listener=ops_listener,
                valkey=valkey,
                child_command=child_command,
                ahead=ahead,
            ).run()

        asyncio.run(supervise())


def _decided(settings: Settings, listener: socket.socket, valkey: EmbeddedValkey | None) -> dict[str, str]:
    """Variables of a child that the command line, the system and we have decided."""
    decided = {
        f"{PREFIX}HOST": settings.host,
        f"{PREFIX}PORT": str(place_of(listener).get("port", settings.port)),
        f"{PREFIX}WORKERS": str(settings.workers),
    }
    if valkey is not None:
        decided[f"{PREFIX}REDIS_URL"] = valkey.url
    return decided


@contextlib.contextmanager
def _signals(handlers: Mapping[signal.Signals, Callable[[], None]]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)
