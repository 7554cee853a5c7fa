"""Requests to addresses that strangers name: what a post links to, where its CMS wants to be called back.

A name is looked up once for each connection, what is found is checked, and the connection goes to the very
address that was checked; after a redirect all of it again. Each request has a connection of its own, so that
what one site is exempt from never serves another. All is bounded: time, size (decompressed too), type and
redirects. Environment proxies play no part.
"""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
import threading
import zlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import httpcore
import httpx

from proxy.bluesky.transport import DeadlineTransport, within
from proxy.clients import IpNetwork
from proxy.clock import Clock
from proxy.errors import OutsideFailed, OutsideRefused
from proxy.resilience.backoff import told_to_wait
from proxy.syndication.post import host_allowed
from proxy.syndication.routable import may_connect

MAX_REDIRECTS: Final = 5

_MAX_URL_CHARS: Final = 4096
# Addresses of a name that are tried; whoever names more gets no more of our time.
_MAX_ADDRESSES: Final = 4
# Look-ups at a time: a name server that does not answer holds a thread for as long as libc is patient.
_MAX_LOOKUPS: Final = 16
# Statuses of a server in trouble (RFC 9110 §15.6, RFC 6585 §4): another attempt may succeed.
_TROUBLE: Final = frozenset({408, 425, 429})
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_NEVER_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)

# Numeric addresses of a host's name. Raises OSError when it has none.
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a stranger's server answered.

    `url` is where the last redirect led. `headers` have lower-case names. The body is read of a 200 to a GET
    alone; `whole` is False when there was more of it than was asked for. `wait_s`: for how long it wants not
    to be asked, if it said so.
    """

    url: str
    status: int
    headers: Mapping[str, str]
    body: bytes
    whole: bool = True
    wait_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is asked for: `kinds` are beginnings of media types (empty: any), the body at most `most_bytes`.

    `cut`: of what is larger the beginning will do.
    """

    kinds: tuple[str, ...]
    most_bytes: int
    cut: bool = False


class Outside:
    """Strangers' servers. `allowed` are networks of the operator's that are exempt from the guard.

    Every method takes the `hosts` of the site that it asks for, which are exempt as well. Deadlines are
    steady instants. Raises OutsideRefused and OutsideFailed. Calls may be canceled.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        user_agent: str,
        allowed: Sequence[IpNetwork] = (),
        resolve: Resolve | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._clock = clock
        self._user_agent = user_agent
        self._allowed = tuple(allowed)
        self._resolve = resolve or SystemResolver()
        self._ssl_context = ssl_context

    async def get(self, url: str, wanted: Wanted, *, deadline: float, hosts: Sequence[str] = ()) -> Answer:
        """What is at `url` or where it redirects to: a 200 of the wanted kind and size."""
        headers = {"accept": ", ".join(f"{kind}*" if kind.endswith("/") else kind for kind in wanted.kinds)}
        target = _parsed(url)
        for _ in range(MAX_REDIRECTS + 1):
            answer = await self._exchange("GET", target, headers, None, wanted, deadline, hosts)
            if answer.status not in _REDIRECTS or "location" not in answer.headers:
                return _checked(answer, target.host)
            target = _redirected(target, answer.headers["location"])
        raise OutsideRefused(f"{_shown(target.host)} redirects too often")

    async def post(
        self,
        url: str,
        content: bytes,
        *,
        headers: Mapping[str, str],
        deadline: float,
        hosts: Sequence[str] = (),
    ) -> Answer:
        """Send `content` to `url` and return what is answered, whatever the status; its body is not read.

        Redirects are not followed. OutsideFailed says by `sent` whether the request may have arrived.
        """
        return await self._exchange("POST", _parsed(url), headers, content, None, deadline, hosts)

    async def _exchange(
        self,
        method: str,
        url: httpx.URL,
        headers: Mapping[str, str],
        content: bytes | None,
        wanted: Wanted | None,
        deadline: float,
        hosts: Sequence[str],
    ) -> Answer:
        """One request and its answer."""
        backend = _Guarded(self._resolve, self._allowed, exempt=bool(hosts) and host_allowed(str(url), hosts))
        # Loading the certificates of the world takes a while: not before there is something to ask.
        self._ssl_context = self._ssl_context or httpx.create_ssl_context(trust_env=False)
        transport = DeadlineTransport(
            self._clock, max_connections=1, ssl_context=self._ssl_context, backend=backend
        )
        sent = {"accept-encoding": "identity", **headers, "user-agent": self._user_agent}
        request = httpx.Request(method, url, headers=sent, content=content, extensions=within(deadline))
        try:
            response = await transport.handle_async_request(request)
            return await self._read(url, response, wanted)
        except httpx.TimeoutException as error:
            message = f"{_shown(url.host)} did not answer in time"
            raise OutsideFailed(message, sent=not isinstance(error, _NEVER_SENT)) from None
        except httpx.HTTPError as error:
            message = f"{_shown(url.host)} did not answer ({type(error).__name__})"
            raise OutsideFailed(message, sent=not isinstance(error, _NEVER_SENT)) from None
        finally:
            await transport.aclose()

    async def _read(self, url: httpx.URL, response: httpx.Response, wanted: Wanted | None) -> Answer:
        headers = {name.lower(): value for name, value in response.headers.items()}
        body = None
        if wanted is not None and response.status_code == 200:
            _check_head(url.host, headers, wanted)
            body = _Body(url.host, headers.get("content-encoding", ""), wanted.most_bytes)
            async for part in response.stream:  # type: ignore[union-attr]
                if not body.add(part):
                    break
            if not (body.whole or wanted.cut):
                raise OutsideRefused(f"{_shown(url.host)} sends more than {_megabytes(wanted.most_bytes)}")
        return Answer(
            url=str(url),
            status=response.status_code,
            headers=headers,
            body=bytes(body.taken) if body else b"",
            whole=body is None or body.whole,
            wait_s=told_to_wait(response.status_code, headers, wall_now=self._clock.wall()),
        )


class SystemResolver:
    """Names as the host resolves them, its own files included.

    In threads of their own: those of the loop are few, and shared with look-ups that must not wait for a
    stranger's name server. They are daemons, so that no process waits for one when it ends.
    """

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(_MAX_LOOKUPS)

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        """The addresses of `host`, in the order in which the host would try them."""
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        found: asyncio.Future[Sequence[str]] = loop.create_future()

        def told(addresses: Sequence[str], error: OSError | None) -> None:
            self._free.release()
            if found.done():
                return
            if error is None:
                found.set_result(addresses)
            else:
                found.set_exception(error)

        def look_up() -> None:
            addresses: list[str] = []
            error: OSError | None = None
            try:
                infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                addresses = [str(sockaddr[0]) for *_, sockaddr in infos]
            except (OSError, UnicodeError) as caught:
                error = caught if isinstance(caught, OSError) else OSError("no host name")
            try:
                loop.call_soon_threadsafe(told, addresses, error)
            except RuntimeError:  # the loop has ended meanwhile
                return

        threading.Thread(target=look_up, name="look-up", daemon=True).start()
        return await found


class _Guarded(httpcore.AsyncNetworkBackend):
    """Connects to addresses that were checked, each to the one that was. `exempt`: to whatever there is."""

    def __init__(self, resolve: Resolve, allowed: Sequence[IpNetwork], *, exempt: bool) -> None:
        self._resolve = resolve
        self._allowed = allowed
        self._exempt = exempt
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        loop = asyncio.get_running_loop()
        until = loop.time() + (math.inf if timeout is None else timeout)
        addresses = (await self._checked(host, port, timeout))[:_MAX_ADDRESSES]
        for tried, address in enumerate(addresses):
            # One that swallows what is sent to it leaves the others their share of the time.
            left_s = (until - loop.time()) / (len(addresses) - tried)
            try:
                return await self._backend.connect_tcp(address, port, left_s, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if tried + 1 == len(addresses):
                    raise
        raise httpcore.ConnectError("no address")

    async def sleep(self, seconds: float) -> None:
        await self._backend.sleep(seconds)

    async def _checked(self, host: str, port: int, timeout_s: float | None) -> list[str]:
        try:
            async with asyncio.timeout(timeout_s):
                found = await self._resolve(host, port)
        except TimeoutError:
            raise httpcore.ConnectTimeout("the name was not resolved in time") from None
        except socket.gaierror as error:
            if error.errno == socket.EAI_NONAME:
                raise OutsideRefused(f"there is no host {_shown(host)}") from None
            raise httpcore.ConnectError(f"the name was not resolved: {error}") from None
        except OSError as error:
            raise httpcore.ConnectError(f"the name was not resolved: {error}") from None
        addresses = list(dict.fromkeys(found))
        if self._exempt:
            return addresses
        checked = [address for address in addresses if may_connect(address, port, self._allowed)]
        if not checked and addresses:
            # Which address it is, is nobody's business: names of the inside would be asked for it.
            raise OutsideRefused(f"{_shown(host)} leads to no public address on port 80 or 443")
        return checked


class _Body:
    """What is taken of a body, decompressed: never more than `most_bytes`, however small it came."""

    def __init__(self, host: str, encoding: str, most_bytes: int) -> None:
        encoding = encoding.strip().lower()
        if encoding not in ("", "identity", "gzip", "x-gzip", "deflate"):
            raise OutsideRefused(f"{_shown(host)} sends an encoding that was not asked for")
        # Some servers compress whatever is asked for. The window bits tell gzip and zlib apart by themselves.
        self._inflate = zlib.decompressobj(wbits=47) if encoding not in ("", "identity") else None
        self._host = host
        self._most_bytes = most_bytes
        self.taken = bytearray()
        self.whole = True

    def add(self, part: bytes) -> bool:
        """Take `part`; False once there is more than fits."""
        room = self._most_bytes - len(self.taken)
        if self._inflate is not None:
            try:
                part = self._inflate.decompress(part, room + 1)
            except zlib.error:
                raise OutsideRefused(f"{_shown(self._host)} sends damaged data") from None
        self.taken += part[:room]
        self.whole = len(part) <= room
        return self.whole


def _parsed(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        raise OutsideRefused("the address is no URL") from None
    plain = parsed.scheme in ("http", "https") and parsed.host and not parsed.userinfo
    if not plain or not 0 < (parsed.port or 80) < 65536:
        raise OutsideRefused("the address is no plain http(s) URL")
    return parsed


def _redirected(url: httpx.URL, location: str) -> httpx.URL:
    if len(location) > _MAX_URL_CHARS:
        raise OutsideRefused(f"{_shown(url.host)} redirects to an address that is too long")
    try:
        target = url.join(location)
    except (httpx.InvalidURL, ValueError):
        raise OutsideRefused(f"{_shown(url.host)} redirects to an address that is no URL") from None
    return _parsed(str(target))


def _checked(answer: Answer, host: str) -> Answer:
    """`answer`, if it is a success."""
    if answer.status == 200:
        return answer
    message = f"{_shown(host)} answered {answer.status}"
    if answer.status >= 500 or answer.status in _TROUBLE:
        raise OutsideFailed(message, retry_after_s=answer.wait_s)
    raise OutsideRefused(message)


def _check_head(host: str, headers: Mapping[str, str], wanted: Wanted) -> None:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if wanted.kinds and kind and not kind.startswith(wanted.kinds):
        raise OutsideRefused(f"{_shown(host)} sends {_shown(kind)}")
    length = headers.get("content-length", "")
    if not wanted.cut and length.isdecimal() and int(length[:18]) > wanted.most_bytes:
        raise OutsideRefused(f"{_shown(host)} sends more than {_megabytes(wanted.most_bytes)}")


def _shown(text: str) -> str:
    """A stranger's word as it may be shown."""
    shown = "".join(char if char.isprintable() else " " for char in text)
    return shown if len(shown) <= 100 else f"{shown[:99]}…"


def _megabytes(count: int) -> str:
    return f"{count / 1024 / 1024:g} MiB"
