"""All settings: the only reader of the environment and of feedproxy.toml.

Each field is the variable FEEDPROXY_<NAME> in lower case. Durations are in seconds unless the name says
otherwise.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
import ssl
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from platformdirs import user_state_path
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

from proxy.address import SCHEMES, parse_address
from proxy.clients import IpNetwork
from proxy.errors import UsageError
from proxy.syntax import is_at_identifier, is_at_uri
from proxy.tenants import Tenants

PREFIX = "FEEDPROXY_"
SECRETS_FROM_FILES = ("ADMIN_TOKEN", "REDIS_URL")
# Kubernetes describes a service called "feedproxy" to every pod beside it under these names.
_KUBERNETES = re.compile(r"FEEDPROXY_(PORT_.*|SERVICE_.*)")

_HOST_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_ORIGIN = re.compile(
    rf"(?P<scheme>https?)://(?P<host>{_HOST_LABEL}(\.{_HOST_LABEL})*\.?|\[[0-9a-f:.]+\])(:(?P<port>\d{{1,5}}))?/?"
)


def _split(value: object) -> object:
    if not isinstance(value, str):
        return value
    items = tuple(item.strip() for item in value.split(",") if item.strip())
    if not items:
        raise ValueError("names nothing; leave it unset instead")
    return items


def origin(value: str) -> str:
    """An origin as browsers write it: lower case, no default port. Raises ValueError for what is none."""
    match = _ORIGIN.fullmatch(value.lower())
    if match is None:
        raise ValueError("must be an http:// or https:// origin alone, such as https://example.com")
    scheme, host, port = match["scheme"], match["host"], match["port"]
    if port is not None and not 1 <= int(port) <= 65535:
        raise ValueError("names a port that does not exist")
    if host.startswith("["):
        ipaddress.IPv6Address(host[1:-1])
    default = port is None or int(port) == {"http": 80, "https": 443}[scheme]
    return f"{scheme}://{host}" if default else f"{scheme}://{host}:{int(port or 0)}"


def _cors_origin(value: str) -> str:
    return value if value in ("*", "null") else origin(value)


def _redis_url(value: SecretStr) -> SecretStr:
    tls = parse_address(value.get_secret_value()).tls
    if tls is not None:
        _check_certificates({name.removeprefix("ssl_"): str(given) for name, given in tls.items()})
    return value


def _check_certificates(given: Mapping[str, str]) -> None:
    """What cannot be loaded would be found out at each connection, and look like a store that is away."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if given.keys() & {"ca_certs", "ca_path", "ca_data"}:
            context.load_verify_locations(given.get("ca_certs"), given.get("ca_path"), given.get("ca_data"))
        if "certfile" in given:
            context.load_cert_chain(given["certfile"], given.get("keyfile"), given.get("password", ""))
        if "ciphers" in given:
            context.set_ciphers(given["ciphers"])
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        raise ValueError(f"names certificates, a key or ciphers that cannot be used: {reason}") from None


def _admin_token(value: SecretStr) -> SecretStr:
    if len(value.get_secret_value()) < 32:
        raise ValueError("must have at least 32 characters")
    return value


def _contact(value: str) -> str:
    if not value.isascii() or not value.isprintable() or re.search(r"[()\\]", value):
        raise ValueError("must be plain ASCII without parentheses, as it goes into the User-Agent")
    return value


def _actor(value: str) -> str:
    if is_at_uri(value):
        return value
    if not is_at_identifier(value):
        raise ValueError("must be a handle, a DID or an at:// URI")
    return value if value.startswith("did:") else value.lower()


def _listen(value: str) -> str:
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+):(\d{1,5})", value)
    if match is None or int(match[2]) > 65535:
        raise ValueError("must be host:port, such as 127.0.0.1:9090 or [::1]:9090")
    return value


def _locale(value: str) -> str:
    """The name humanize has for the language; de finds de_DE."""
    known = sorted(path.name for path in files("humanize").joinpath("locale").iterdir() if path.is_dir())
    wanted = value.replace("-", "_")
    if wanted.split("_")[0].lower() == "en":
        return "en"
    for name in known:
        if name.lower() == wanted.lower() or name.lower().startswith(f"{wanted.lower()}_"):
            return name
    raise ValueError(f"is not a language humanize knows: en, {', '.join(known)}")


Actor = Annotated[str, AfterValidator(_actor)]
Origin = Annotated[str, AfterValidator(origin)]
RedisUrl = Annotated[SecretStr, AfterValidator(_redis_url)]
Networks = Annotated[tuple[IpNetwork, ...], BeforeValidator(_split)]
Days = Annotated[int, Field(ge=1, le=365)]
Seconds = Annotated[float, Field(gt=0, le=365 * 86400)]
SecondsOrNone = Annotated[float, Field(ge=0, le=365 * 86400)]


class Settings(BaseModel):
    """Every setting, checked. Build it with `load_settings`; it never changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", min_length=1)
    port: int = Field(8080, ge=0, le=65535)
    workers: int = Field(1, ge=1, le=256)
    upstream: Origin = "https://public.api.bsky.app"
    contact: Annotated[str, AfterValidator(_contact)] | None = None
    public_url: Origin | None = None
    redis_url: RedisUrl | None = None
    cache_redis_url: RedisUrl | None = None
    namespace: str = Field("feedproxy", pattern=r"^[A-Za-z0-9_.:-]{1,64}$")
    data_dir: Path
    embedded_memory_mb: int = Field(256, ge=16, le=1_048_576)
    memory_mb: int = Field(64, ge=1, le=1_048_576)
    config: Path | None = None
    cache_ttl: Seconds = 600
    negative_ttl: Seconds = 60
    stale_while_revalidate: SecondsOrNone = 86_400
    stale_if_error: SecondsOrNone = 604_800
    client_max_age: SecondsOrNone = 30
    actors: Annotated[tuple[Actor, ...], BeforeValidator(_split)] | None = None
    upstream_rps: float = Field(5, ge=0.001, le=10_000)
    upstream_burst: int = Field(6, ge=1, le=10_000)
    upstream_concurrency: int = Field(6, ge=1, le=1000)
    pds_rps: float = Field(5, ge=0.001, le=10_000)
    pds_burst: int = Field(6, ge=1, le=10_000)
    degraded_share: float = Field(0.25, gt=0, le=1)
    client_misses_per_min: int = Field(60, ge=1)
    client_exempt: Networks = ()
    trusted_proxies: Networks = ()
    upstream_timeout: Seconds = 10
    retry_max: int = Field(3, ge=1, le=20)
    retry_base_ms: int = Field(250, ge=1, le=600_000)
    retry_cap_ms: int = Field(5000, ge=1, le=600_000)
    breaker_threshold: int = Field(5, ge=1)
    breaker_cooldown: Seconds = 60
    account_breaker_threshold: int = Field(3, ge=1)
    account_breaker_cooldown: Seconds = 900
    syndication_retry_delays: Annotated[
        tuple[Annotated[float, Field(ge=0, le=7 * 86400)], ...], BeforeValidator(_split)
    ] = (60, 120, 300)
    worker_concurrency: int = Field(8, ge=1, le=1000)
    lease_s: Seconds = 10
    done_retention_days: Days = 7
    dead_retention_days: Days = 30
    max_post_age_days: Days = 7
    plc_url: Origin = "https://plc.directory"
    enrich_allow: Networks = ()
    admin_token: Annotated[SecretStr, AfterValidator(_admin_token)] | None = None
    ops_listen: Annotated[str, AfterValidator(_listen)] | None = None
    cors_origins: Annotated[
        tuple[Annotated[str, AfterValidator(_cors_origin)], ...], BeforeValidator(_split)
    ] = ("*",)
    feed_updated_lang: Annotated[str, AfterValidator(_locale)] = "en"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "text"] = "auto"
    access_log: bool = False
    # Not a variable: what feedproxy.toml says, read from `config`.
    tenants: Tenants = Tenants()

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if self.retry_cap_ms < self.retry_base_ms:
            raise ValueError(f"{PREFIX}RETRY_CAP_MS must not be below {PREFIX}RETRY_BASE_MS")
        return self

    @property
    def store_url(self) -> SecretStr | None:
        """The Redis of cache, limiter and leases; None where the embedded Valkey serves."""
        return self.cache_redis_url or self.redis_url

    def secrets(self) -> Iterator[str]:
        """What must be seen nowhere: the admin token, and what stands secret in addresses of stores."""
        if self.admin_token is not None:
            yield self.admin_token.get_secret_value()
        for url in (self.redis_url, self.cache_redis_url):
            if url is not None:
                yield from parse_address(url.get_secret_value()).secrets

    def effective(self) -> dict[str, str]:
        """Every variable with its value as text, secrets masked, in the order of the documentation."""
        return {PREFIX + name.upper(): _shown(getattr(self, name)) for name in variables()}


def variables() -> tuple[str, ...]:
    """Names of all settings that come from the environment, without prefix, in lower case."""
    return tuple(name for name in Settings.model_fields if name != "tenants")


def load_settings(environ: Mapping[str, str], **overrides: object) -> Settings:
    """Read and check all settings from `environ`; `overrides` (from the command line) win.

    Raises UsageError with one line that names the variable or the place in feedproxy.toml.
    """
    environ = {name: value for name, value in environ.items() if value != ""}
    values = _from_environ(environ)
    values.update({name: value for name, value in overrides.items() if value is not None})
    tenants = load_tenants(values.get("config"))
    _refuse_unknown_names(environ, tenants.referenced_env())
    values.setdefault("data_dir", environ.get("STATE_DIRECTORY") or user_state_path("feedproxy"))
    try:
        return Settings(**values, tenants=tenants)
    except ValidationError as error:
        raise UsageError(_first_fault(error, _variable)) from None


def _from_environ(environ: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name in variables():
        value = environ.get(PREFIX + name.upper())
        # What Kubernetes says of a service of our name is an address, not a port.
        if value is not None and not (name == "port" and value.startswith("tcp://")):
            values[name] = value
    for name in SECRETS_FROM_FILES:
        path = environ.get(f"{PREFIX}{name}_FILE")
        if path is None:
            continue
        if name.lower() in values:
            raise UsageError(f"{PREFIX}{name} and {PREFIX}{name}_FILE are both set; keep one")
        try:
            values[name.lower()] = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            # The path is not repeated: it may be the secret itself.
            raise UsageError(f"{PREFIX}{name}_FILE: cannot read that file: {_reason(error)}") from None
    return values


def load_tenants(path: Path | str | None) -> Tenants:
    """Read and check feedproxy.toml at `path`; nothing is in it where there is none.

    Raises UsageError with one line that names the place.
    """
    if path is None:
        return Tenants()
    try:
        document = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{PREFIX}CONFIG: cannot read {path}: {_reason(error)}") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: {error}") from None
    try:
        return Tenants.model_validate(document)
    except ValidationError as error:
        raise UsageError(f"{path}: {_first_fault(error, _toml_path)}") from None


def _refuse_unknown_names(environ: Iterable[str], referenced: frozenset[str]) -> None:
    known = {PREFIX + name.upper() for name in variables()}
    known.update(f"{PREFIX}{name}_FILE" for name in SECRETS_FROM_FILES)
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in known or name in referenced or _KUBERNETES.fullmatch(name):
            continue
        raise UsageError(f"{name} is not a setting; the nearest is {_nearest(name, known)}")


def _nearest(name: str, known: Iterable[str]) -> str:
    """The known name most like `name`: one that it begins with, else one of similar letters."""
    ratio = difflib.SequenceMatcher(a=name)

    def likeness(other: str) -> tuple[bool, float]:
        ratio.set_seq2(other)
        return name.startswith(f"{other}_"), ratio.ratio()

    return max(sorted(known), key=likeness)


def _first_fault(error: ValidationError, place: Any) -> str:
    """Where the first fault is and what is wrong; never what was given, which may be a stray secret."""
    fault = error.errors(include_url=False)[0]
    where = fault["loc"]
    message = fault["msg"].removeprefix("Value error, ")
    return f"{place(where)}: {message}" if where else message


def _variable(where: tuple[int | str, ...]) -> str:
    return PREFIX + _toml_path(where[:2]).upper()


def _toml_path(where: tuple[int | str, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).lstrip(".")


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "it is not UTF-8 text"


def _shown(value: object) -> str:
    match value:
        case None:
            return ""
        case SecretStr():
            return _masked_url(value.get_secret_value())
        case bool():
            return "on" if value else "off"
        case float():
            return f"{value:g}"
        case tuple():
            return ",".join(_shown(item) for item in value)
        case _:
            return str(value)


def _masked_url(secret: str) -> str:
    """A URL without its password, anything else as asterisks."""
    parts = urlsplit(secret)
    if parts.scheme not in SCHEMES:
        return "********"
    userinfo, at, hosts = parts.netloc.rpartition("@")
    user = userinfo.partition(":")[0]
    return parts._replace(netloc=f"{user}:********@{hosts}" if at else hosts, query="").geturl()
