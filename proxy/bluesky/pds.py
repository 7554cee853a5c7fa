"""A PDS as its accounts use it, in raw XRPC: sessions, records, failures sorted by what to do about them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from pydantic import SecretStr

from proxy.bluesky.wire import Answer, Wire
from proxy.clock import Clock
from proxy.errors import CredentialsRefused, PdsBusy, PdsError, PdsRejected, PdsUnreachable, TokenRefused
from proxy.resilience.pace import Pace, wait_for_turn

MAX_LISTED: Final = 100

# XRPC error names (https://atproto.com/specs/xrpc#error-responses), as the reference PDS uses them.
_TOKEN_FAULTS: Final = frozenset({"ExpiredToken", "InvalidToken", "AuthMissing"})
_FOR_A_PERSON: Final = frozenset(
    {
        "AccountDeactivated",
        "AccountSuspended",
        "AccountTakedown",
        "AuthFactorTokenRequired",
        "AuthenticationRequired",
        "RepoDeactivated",
        "RepoNotFound",
        "RepoSuspended",
        "RepoTakendown",
    }
)
# What the reference PDS says, as InvalidRequest, of an account that it does not host (any more).
_GONE: Final = "Could not find "
# CIDv1 in base32 (https://atproto.com/specs/data-model#link-and-cid-formats).
_CID: Final = re.compile(r"b[a-z2-7]{50,120}")
_TRY_AGAIN: Final = frozenset({408, 425})
_LOGIN: Final = "com.atproto.server.createSession"
_UPLOAD: Final = "com.atproto.repo.uploadBlob"
_BUDGETS_OF_THEIR_OWN: Final = frozenset({_LOGIN, _UPLOAD})
# For how long nobody asks when a 429 does not say.
_DEFAULT_WAIT_S: Final = 60.0

# Is told of each request: host, status (None: no answer came), the steady instant at which it was sent.
Observe = Callable[[str, int | None, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """A session as a PDS hands it out. `did_document` is the account's, if the PDS sent it along."""

    did: str
    access: SecretStr
    refresh: SecretStr
    did_document: Mapping[str, Any] | None = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What putRecord answered. `written` is False when this very record was there already."""

    uri: str
    cid: str
    written: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A record as it lies on the PDS, with its CID as it says."""

    uri: str
    cid: str
    value: Mapping[str, Any]


class Pds:
    """Any PDS; each call names its origin.

    Every method raises PdsUnreachable (may be repeated), PdsBusy (later, nothing was done), PdsRejected
    (never), CredentialsRefused (a person must act), and those with a token TokenRefused. Deadlines are steady
    instants. Nothing may cancel a call.
    """

    def __init__(self, wire: Wire, pace: Pace, clock: Clock, *, observers: Sequence[Observe] = ()) -> None:
        self._wire = wire
        self._pace = pace
        self._clock = clock
        self._observers = observers

    async def create_session(self, pds: str, *, did: str, password: SecretStr, deadline: float) -> Tokens:
        """Log in. Each one counts against a small budget of the account, successes too."""
        content = _json({"identifier": did, "password": password.get_secret_value()})
        answer = await self._send("POST", pds, _LOGIN, did, deadline, content=content)
        try:
            return _tokens(_checked(answer, pds, quote=False), pds)
        except (PdsRejected, TokenRefused) as error:
            # It is the login that is at fault, never the post it was for.
            raise CredentialsRefused(answer.error, str(error)) from None

    async def refresh_session(self, pds: str, *, did: str, refresh: SecretStr, deadline: float) -> Tokens:
        """The next tokens. The same ones again if the answer was lost and the old one is used within 2 h."""
        method = "com.atproto.server.refreshSession"
        answer = await self._send("POST", pds, method, did, deadline, token=refresh)
        try:
            return _tokens(_checked(answer, pds, quote=False), pds)
        except PdsRejected as error:
            raise TokenRefused(str(error)) from None

    async def check_session(self, pds: str, *, did: str, access: SecretStr, deadline: float) -> None:
        """See whether the PDS takes the token."""
        method = "com.atproto.server.getSession"
        _checked(await self._send("GET", pds, method, did, deadline, token=access), pds, quote=False)

    async def put_record(
        self,
        pds: str,
        *,
        access: SecretStr,
        did: str,
        collection: str,
        rkey: str,
        record: bytes,
        deadline: float,
    ) -> Stored:
        """Create the record, of which `record` is the JSON, where there is none.

        The same bytes make the same request. Raises PdsRejected "InvalidSwap" when another record is there.
        """
        target = _json({"repo": did, "collection": collection, "rkey": rkey})
        # `swapRecord: null`, said explicitly: there must be nothing yet, or this very record.
        content = target[:-1] + b',"record":' + record + b',"swapRecord":null}'
        method = "com.atproto.repo.putRecord"
        answer = await self._send("POST", pds, method, did, deadline, token=access, content=content)
        document = _checked(answer, pds)
        uri, cid = answer.text("uri"), answer.text("cid")
        if uri is None or cid is None:
            raise _not_xrpc(pds)
        return Stored(uri=uri, cid=cid, written=isinstance(document.get("commit"), Mapping))

    async def create_records(
        self,
        pds: str,
        *,
        access: SecretStr,
        did: str,
        collection: str,
        records: Sequence[tuple[str, bytes]],
        deadline: float,
    ) -> None:
        """Create `records`, keys and JSON, in one commit: all of them or none.

        Where there is one already it fails like a server in trouble: the reference PDS answers 500.
        """
        writes = b",".join(
            _json({"$type": "com.atproto.repo.applyWrites#create", "collection": collection, "rkey": rkey})[
                :-1
            ]
            + b',"value":'
            + record
            + b"}"
            for rkey, record in records
        )
        content = _json({"repo": did})[:-1] + b',"writes":[' + writes + b"]}"
        method = "com.atproto.repo.applyWrites"
        _checked(await self._send("POST", pds, method, did, deadline, token=access, content=content), pds)

    async def delete_record(
        self,
        pds: str,
        *,
        access: SecretStr,
        did: str,
        collection: str,
        rkey: str,
        cid: str,
        deadline: float,
    ) -> None:
        """Delete the record, if it is still the one with `cid`; one that is gone is no error.

        Raises PdsRejected "InvalidSwap" when another record is there.
        """
        content = _json(
            {"repo": did, "collection": collection, "rkey": rkey, **({"swapRecord": cid} if cid else {})}
        )
        method = "com.atproto.repo.deleteRecord"
        _checked(await self._send("POST", pds, method, did, deadline, token=access, content=content), pds)

    async def upload_blob(
        self, pds: str, *, access: SecretStr, did: str, content: bytes, mime_type: str, deadline: float
    ) -> Mapping[str, Any]:
        """Upload `content` and return the reference by which records name it; the same for the same bytes.

        A PDS forgets what no record has named for an hour or so.
        """
        answer = await self._send(
            "POST", pds, _UPLOAD, did, deadline, token=access, content=content, content_type=mime_type
        )
        blob = _checked(answer, pds).get("blob")
        cid = _blob_cid(blob)
        if cid is None:
            raise _not_xrpc(pds)
        return {"$type": "blob", "ref": {"$link": cid}, "mimeType": mime_type, "size": len(content)}

    async def get_record(
        self, pds: str, *, did: str, collection: str, rkey: str, deadline: float
    ) -> Record | None:
        """The record, None if there is none."""
        params = {"repo": did, "collection": collection, "rkey": rkey}
        answer = await self._send("GET", pds, "com.atproto.repo.getRecord", did, deadline, params=params)
        # Some say 404 instead of the 400 of the reference, under names of their own.
        nothing = answer.status == 404 and answer.error not in ("", *_FOR_A_PERSON)
        if nothing or (answer.status == 400 and answer.error == "RecordNotFound"):
            return None
        record = _record(_read(answer, pds))
        if record is None:
            raise _not_xrpc(pds)
        return record

    async def list_records(
        self, pds: str, *, did: str, collection: str, deadline: float, before: str = ""
    ) -> list[Record]:
        """The account's last 100 records of a collection by their keys, the newest first.

        `before`: of those with lesser keys, as far as the server's cursors are keys, which nobody promises.
        """
        params = {"repo": did, "collection": collection, "limit": str(MAX_LISTED)}
        if before:
            params["cursor"] = before
        answer = await self._send("GET", pds, "com.atproto.repo.listRecords", did, deadline, params=params)
        listed = _read(answer, pds).get("records")
        if not isinstance(listed, list):
            raise _not_xrpc(pds)
        return [record for record in map(_record, listed) if record is not None]

    async def _send(
        self,
        http_method: str,
        pds: str,
        nsid: str,
        did: str,
        deadline: float,
        *,
        token: SecretStr | None = None,
        content: bytes | None = None,
        content_type: str = "application/json",
        params: Mapping[str, str] | None = None,
    ) -> Answer:
        await wait_for_turn(self._pace, host_of(pds), did, clock=self._clock, deadline=deadline)
        sent_at = self._clock.steady()
        try:
            answer = await self._wire.send(
                http_method,
                f"{pds}/xrpc/{nsid}",
                deadline=deadline,
                params=params,
                token=None if token is None else token.get_secret_value(),
                content=content,
                content_type=content_type,
            )
        except PdsUnreachable as error:
            if error.sent:
                self._tell(pds, None, sent_at)
            raise
        # These budgets are small and apart from the others: they hold up nothing else.
        apart = nsid in _BUDGETS_OF_THEIR_OWN
        if answer.status != 429 or not apart:
            self._tell(pds, answer.status, sent_at)
        if answer.wait_s and not apart:
            await self._pace.pause(did, answer.wait_s)
        return answer

    def _tell(self, pds: str, status: int | None, sent_at: float) -> None:
        for observe in self._observers:
            observe(host_of(pds), status, sent_at)


def failure(answer: Answer, pds: str, *, quote: bool = True) -> PdsError:
    """The error that an answer which is none amounts to. `quote`: whether its message may be shown."""
    said = f": {answer.message}" if quote and answer.message else ""
    told = f"{host_of(pds)} answered {answer.status} {answer.error}".rstrip() + said
    if answer.status == 429:
        return PdsBusy(told, wait_s=_DEFAULT_WAIT_S if answer.wait_s is None else answer.wait_s)
    if answer.status >= 500 or answer.status in _TRY_AGAIN or answer.status < 400 or not answer.error:
        return PdsUnreachable(told, retry_after_s=answer.wait_s)
    if answer.error in _TOKEN_FAULTS:
        return TokenRefused(told)
    gone = answer.error == "InvalidRequest" and answer.message.startswith(_GONE)
    if answer.error in _FOR_A_PERSON or gone or answer.status in (401, 403):
        return CredentialsRefused(answer.error, told)
    return PdsRejected(answer.error, told)


def _checked(answer: Answer, pds: str, *, quote: bool = True) -> Mapping[str, Any]:
    if answer.status != 200 or answer.document is None:
        raise failure(answer, pds, quote=quote)
    return answer.document


def _read(answer: Answer, pds: str) -> Mapping[str, Any]:
    """As `_checked`. A read that is refused says nothing of what is there: it is no verdict on any post."""
    try:
        return _checked(answer, pds)
    except PdsRejected as error:
        raise PdsUnreachable(str(error)) from None


def _tokens(document: Mapping[str, Any], pds: str) -> Tokens:
    did, access, refresh = (document.get(name) for name in ("did", "accessJwt", "refreshJwt"))
    if not (isinstance(did, str) and isinstance(access, str) and isinstance(refresh, str)):
        raise _not_xrpc(pds)
    did_document = document.get("didDoc")
    return Tokens(
        did=did,
        access=SecretStr(access),
        refresh=SecretStr(refresh),
        did_document=did_document if isinstance(did_document, dict) else None,
    )


def _record(document: Any) -> Record | None:
    if not isinstance(document, Mapping):
        return None
    uri, cid, value = (document.get(name) for name in ("uri", "cid", "value"))
    if not (isinstance(uri, str) and isinstance(cid, str) and isinstance(value, dict)):
        return None
    return Record(uri=uri, cid=cid, value=value)


def _blob_cid(blob: Any) -> str | None:
    """The CID of a blob as a PDS describes it (https://atproto.com/specs/data-model#blob-type)."""
    ref = blob.get("ref") if isinstance(blob, Mapping) else None
    cid = ref.get("$link") if isinstance(ref, Mapping) else None
    return cid if isinstance(cid, str) and _CID.fullmatch(cid) else None


def _not_xrpc(pds: str) -> PdsUnreachable:
    return PdsUnreachable(f"{host_of(pds)} answered something that is no answer of a PDS")


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def host_of(pds: str) -> str:
    """The host, with its port if it has one, that limits on a PDS go by."""
    return urlsplit(pds).netloc
