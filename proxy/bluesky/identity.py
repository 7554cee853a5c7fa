"""Who an account is and where it lives: handle -> DID -> DID document -> PDS.

Handles change and accounts move; a DID stays (https://atproto.com/specs/did).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

from proxy.bluesky.wire import Answer, Wire
from proxy.clock import Clock
from proxy.errors import CredentialsRefused, PdsBusy, PdsError, PdsUnreachable
from proxy.syntax import is_did
from proxy.telemetry import get_logger

DOCUMENT_LIFETIME_S: Final = 3600.0

_PDS_SERVICE: Final = "#atproto_pds"
_PDS_TYPE: Final = "AtprotoPersonalDataServer"
# A host name with an optional port, the colon percent-encoded as did:web has it; no path.
_WEB_DID: Final = re.compile(r"did:web:([A-Za-z0-9.-]+(%3A\d{1,5})?)")
_DEFAULT_WAIT_S: Final = 60.0

_log = get_logger()


@dataclass(frozen=True, slots=True)
class _Known:
    pds: str
    until: float


class Identities:
    """Finds DIDs and PDSs.

    `plc_url` is the directory of did:plc, `resolver_url` an AppView that resolves handles (DNS is not asked).
    Raises PdsUnreachable and PdsBusy while it cannot find out, CredentialsRefused when there is nothing to
    find: a person must act.
    """

    def __init__(self, wire: Wire, clock: Clock, *, plc_url: str, resolver_url: str) -> None:
        self._wire = wire
        self._clock = clock
        self._plc_url = plc_url
        self._resolver_url = resolver_url
        self._known: dict[str, _Known] = {}

    async def did_of(self, identifier: str, *, service: str | None, deadline: float) -> str:
        """The DID of `identifier`, a handle or DID. `service` is asked first, if the operator named one."""
        if is_did(identifier):
            return identifier
        trouble: PdsError | None = None
        for server in dict.fromkeys(filter(None, (service, self._resolver_url))):
            try:
                return await self._resolved(server, identifier, deadline)
            except PdsError as error:
                # That nobody knows the handle is certain only when all were asked.
                if trouble is None or not isinstance(error, CredentialsRefused):
                    trouble = error
        raise trouble or CredentialsRefused("HandleNotFound", f"nobody can be asked for {identifier}")

    async def pds_of(
        self, did: str, *, service: str | None = None, deadline: float, fresh: bool = False
    ) -> str:
        """The origin of the PDS that hosts `did`. `fresh`: asked anew, as far as the directory answers."""
        known = self._known.get(did)
        if known is not None and not fresh and self._clock.steady() < known.until:
            return known.pds
        try:
            document = await self._document(did, deadline)
        except (PdsUnreachable, PdsBusy):
            if known is None:
                raise
            _log.warning("did_document_not_read", did=did)
            return known.pds
        pds = self.endpoint(did, document, service=service)
        self._known[did] = _Known(pds, self._clock.steady() + DOCUMENT_LIFETIME_S)
        return pds

    def endpoint(self, did: str, document: Mapping[str, Any], *, service: str | None = None) -> str:
        """The PDS that a DID document names. Raises CredentialsRefused when it names none that we may use.

        Passwords go there, so it must be https; except where the operator has named it as `service`, or runs
        the directory on http, as in a network of one's own.
        """
        if document.get("id") != did:
            raise CredentialsRefused("InvalidDidDocument", f"the DID document of {did} is another's")
        origin = _pds_origin(did, document)
        if origin is None:
            raise CredentialsRefused("NoPds", f"the DID document of {did} names no PDS")
        trusted = origin == service or self._plc_url.startswith("http://")
        if not (origin.startswith("https://") or trusted):
            raise CredentialsRefused("NoPds", f"the PDS of {did} is not on https")
        return origin

    async def _resolved(self, server: str, handle: str, deadline: float) -> str:
        answer = await self._wire.send(
            "GET",
            f"{server}/xrpc/com.atproto.identity.resolveHandle",
            deadline=deadline,
            params={"handle": handle},
        )
        did = answer.text("did")
        if answer.status == 200 and did is not None and is_did(did):
            return did
        if answer.status in (400, 404) and answer.error:
            raise CredentialsRefused("HandleNotFound", f"the handle {handle} leads nowhere")
        raise _trouble(answer, f"the server that resolves {handle}")

    async def _document(self, did: str, deadline: float) -> Mapping[str, Any]:
        answer = await self._wire.send("GET", self._document_url(did), deadline=deadline)
        if answer.status == 200 and answer.document is not None:
            return answer.document
        if answer.status in (404, 410):
            raise CredentialsRefused("DidNotFound", f"there is no account {did} (any more)")
        raise _trouble(answer, f"the directory of {did}")

    def _document_url(self, did: str) -> str:
        if did.startswith("did:plc:"):
            return f"{self._plc_url}/{quote(did, safe=':')}"
        match = _WEB_DID.fullmatch(did)
        if match is None:
            raise CredentialsRefused("DidNotFound", f"{did} is no DID that accounts have")
        host = unquote(match[1])
        # As atproto has it: http for localhost, which only a network of one's own uses.
        local = host.partition(":")[0] == "localhost" and self._plc_url.startswith("http://")
        return f"{'http' if local else 'https'}://{host}/.well-known/did.json"


def _trouble(answer: Answer, who: str) -> PdsError:
    if answer.status == 429:
        return PdsBusy(f"{who} asks us to wait", wait_s=answer.wait_s or _DEFAULT_WAIT_S)
    return PdsUnreachable(f"{who} answered {answer.status}", retry_after_s=answer.wait_s)


def _pds_origin(did: str, document: Mapping[str, Any]) -> str | None:
    services = document.get("service")
    for service in services if isinstance(services, list) else ():
        if not isinstance(service, Mapping) or service.get("type") != _PDS_TYPE:
            continue
        endpoint = service.get("serviceEndpoint")
        if service.get("id") in (_PDS_SERVICE, f"{did}{_PDS_SERVICE}") and isinstance(endpoint, str):
            return _origin(endpoint)
    return None


def _origin(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        return None
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        return None
    return f"{parts.scheme}://{parts.netloc.lower()}"
