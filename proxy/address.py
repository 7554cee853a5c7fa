"""Where a Redis is, and how to get in: what a REDIS_URL says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import parse_qsl, quote, unquote, urlsplit

Kind = Literal["server", "sentinel", "cluster"]

SCHEMES: Final[Mapping[str, tuple[Kind, bool]]] = {  # what is there, and whether it speaks TLS
    "redis": ("server", False),
    "rediss": ("server", True),
    "unix": ("server", False),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}
TLS_FILES: Final = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")
_TLS_OPTIONS: Final = (
    *TLS_FILES,
    "ssl_ca_data",
    "ssl_password",
    "ssl_cert_reqs",
    "ssl_check_hostname",
    "ssl_ciphers",
)
_LOGIN: Final = ("username", "password")
_SENTINEL_LOGIN: Final = ("sentinel_username", "sentinel_password")

_HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^:\[\],\s]+)(:(?P<port>\d{1,5}))?")
_PORTS: Final[Mapping[Kind, int]] = {"server": 6379, "sentinel": 26379, "cluster": 6379}
# Whatever is quoted may be a part of the password.
_UNUSABLE: Final = "cannot be used as an address; what is special in its password must be escaped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """One Redis: a server, the master that Sentinels name, or a cluster.

    `hosts` are pairs of name and port: the server, the Sentinels, or some nodes of the cluster. It is empty
    where `path` names a unix socket. `tls` are redis-py's options for TLS; None: without.
    """

    kind: Kind
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    db: int = 0
    service: str = ""
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)
    tls: Mapping[str, str | bool] | None = field(default=None, repr=False)

    @property
    def secrets(self) -> tuple[str, ...]:
        """The passwords in it."""
        key = str((self.tls or {}).get("ssl_password", ""))
        return tuple(filter(None, (self.password, self.sentinel_password, key)))

    @property
    def name(self) -> str:
        """The same URL however it was written, without login and options, to be shown and compared."""
        scheme = next(name for name, said in SCHEMES.items() if said == (self.kind, self.tls is not None))
        if self.path:
            return f"unix://{quote(self.path)}?db={self.db}"
        hosts = ",".join(
            sorted(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        )
        match self.kind:
            case "server":
                return f"{scheme}://{hosts}/{self.db}"
            case "sentinel":
                return f"{scheme}://{hosts}/{quote(self.service)}/{self.db}"
            case "cluster":
                return f"{scheme}://{hosts}"


def parse_address(url: str) -> Address:
    """What `url` says. Raises ValueError, which quotes nothing of it."""
    try:
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError:
        raise ValueError(_UNUSABLE) from None
    if parts.scheme not in SCHEMES:
        raise ValueError(f"must start with one of {', '.join(f'{scheme}://' for scheme in SCHEMES)}")
    kind, tls = SCHEMES[parts.scheme]
    if parts.fragment:
        raise ValueError(_UNUSABLE)
    _check_names(options, kind, tls=tls)
    userinfo, _, hosts = parts.netloc.rpartition("@")
    user, _, password = userinfo.partition(":")
    login: dict[str, Any] = {"username": unquote(user) or None, "password": unquote(password) or None}
    login.update({name: options[name] for name in (*_LOGIN, *_SENTINEL_LOGIN) if name in options})
    if parts.scheme == "unix":
        if hosts or not parts.path:
            raise ValueError("must name a socket, as in unix:///run/redis.sock")
        return Address(kind=kind, path=unquote(parts.path), db=_db(options.get("db", "")), **login)
    service, db = _service_and_db(kind, parts.path)
    return Address(
        kind=kind,
        hosts=tuple(_host(item, _PORTS[kind]) for item in _items(hosts, kind)),
        service=service,
        db=_db(options.get("db", db), kind),
        tls=_tls(options) if tls else None,
        **login,
    )


def _check_names(options: Mapping[str, str], kind: Kind, *, tls: bool) -> None:
    known = [*_LOGIN, *(_TLS_OPTIONS if tls else ())]
    known += {"server": ["db"], "sentinel": ["db", *_SENTINEL_LOGIN], "cluster": []}[kind]
    if not options.keys() <= set(known):
        raise ValueError(f"has a parameter that it cannot have; possible are {', '.join(known)}")


def _items(hosts: str, kind: Kind) -> list[str]:
    if not hosts:
        raise ValueError("must name a host")
    return [hosts] if kind == "server" else hosts.split(",")


def _host(item: str, default_port: int) -> tuple[str, int]:
    match = _HOST.fullmatch(item)
    if match is None:
        raise ValueError(_UNUSABLE)
    port = int(match["port"] or default_port)
    if not 1 <= port <= 65535:
        raise ValueError("names a port that does not exist")
    return match["host"].strip("[]"), port


def _service_and_db(kind: Kind, path: str) -> tuple[str, str]:
    path = unquote(path).strip("/")
    if kind != "sentinel":
        return "", path
    service, _, db = path.partition("/")
    if not service:
        raise ValueError("must name the master that the Sentinels watch, as in redis+sentinel://h1,h2/name")
    return service, db


def _db(text: str, kind: Kind = "server") -> int:
    if not text:
        return 0
    if kind == "cluster":
        raise ValueError("cannot choose a database: a cluster has one")
    if not (text.isascii() and text.isdigit() and len(text) < 6):
        raise ValueError("must name its database by a number")
    return int(text)


def _tls(options: Mapping[str, str]) -> Mapping[str, str | bool]:
    tls: dict[str, str | bool] = {name: value for name, value in options.items() if name in _TLS_OPTIONS}
    if tls.get("ssl_cert_reqs", "required") not in ("none", "optional", "required"):
        raise ValueError("ssl_cert_reqs must be none, optional or required")
    if "ssl_check_hostname" in tls:
        if str(tls["ssl_check_hostname"]).lower() not in ("true", "false", "yes", "no", "1", "0"):
            raise ValueError("ssl_check_hostname must be true or false")
        tls["ssl_check_hostname"] = str(tls["ssl_check_hostname"]).lower() in ("true", "yes", "1")
    return tls
