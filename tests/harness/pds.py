"""A PDS and a directory of our own: small, in memory, as strict as the real one, and faulty on request.

What they answer follows the captures of the reference PDS (its error names and statuses included).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import libipld

from harness.crossing import AFTER, BEFORE, Crossing
from harness.upstream import Request, Response, Upstream, json_response, xrpc_error
from proxy.syndication.fitting import count_graphemes
from proxy.syndication.intent import cid_of

POST: Final = "app.bsky.feed.post"

# Faults: the answer is lost after the write, or the request before it.
LOSE_ANSWER: Final = "lose answer"
LOSE_REQUEST: Final = "lose request"
HANG_AFTER: Final = "hang after"

Fault = str | Response


@dataclass
class Call(Request):
    """A request with its body."""

    method: str = "GET"
    body: bytes = b""

    @property
    def nsid(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def name(self) -> str:
        """putRecord, getRecord, …"""
        return self.nsid.rpartition(".")[2]

    @property
    def token(self) -> str:
        return self.headers.get("authorization", "").removeprefix("Bearer ")

    def json(self) -> Any:
        return json.loads(self.body)

    def param(self, name: str, default: str = "") -> str:
        return self.params.get(name, [default])[0]


async def go_on(_name: str, _when: str) -> None:
    """Nothing happens at a crossing."""


class BodyServer(Upstream):
    """Reads bodies, which Upstream does not need to. `crossing` may hold or cut each exchange."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Call] = []
        self.crossing: Crossing = go_on

    async def _exchange(self, reader, writer) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        method, target, _ = head[0].split(" ")
        call = Call(target, headers, method=method, body=body)
        await self.crossing(call.name, BEFORE)
        self.requests.append(call)
        response = await self.respond(call)
        await self.crossing(call.name, AFTER)
        if response.hang:
            await asyncio.Event().wait()
        if response.delay_s:
            await asyncio.sleep(response.delay_s)
        return False if response.close else await self._send(writer, call, response)

    async def respond(self, call: Call) -> Response:
        return self.answer(call)


class Directory(BodyServer):
    """Resolves handles and DIDs, as AppView and PLC directory do."""

    def __init__(self) -> None:
        super().__init__()
        self.handles: dict[str, str] = {}
        self.homes: dict[str, str] = {}
        self.answer = self._answer

    def document(self, did: str) -> dict[str, Any]:
        service = {
            "id": "#atproto_pds",
            "type": "AtprotoPersonalDataServer",
            "serviceEndpoint": self.homes[did],
        }
        return {"@context": ["https://www.w3.org/ns/did/v1"], "id": did, "service": [service]}

    def reads(self, did: str) -> int:
        """How often the DID document was asked for."""
        return sum(call.path == f"/{did}" for call in self.requests)

    def _answer(self, call: Call) -> Response:
        if call.name == "com.atproto.identity.resolveHandle" or call.path.endswith("resolveHandle"):
            did = self.handles.get(call.param("handle"))
            if did is None:
                return xrpc_error(400, "HandleNotFound", "Unable to resolve handle")
            return json_response({"did": did})
        did = call.path.lstrip("/")
        if did not in self.homes:
            return json_response({"message": f"DID not registered: {did}"}, 404)
        return json_response(self.document(did))


@dataclass
class Account:
    """An account that a PDS hosts. `records`: by key, with their CIDs. `trouble`: AccountTakedown, …"""

    did: str
    handle: str
    password: str
    records: dict[str, tuple[dict[str, Any], str]] = field(default_factory=dict)
    trouble: str = ""
    access: str = ""
    refresh: str = ""
    old_refresh: str = ""
    blobs: dict[str, bytes] = field(default_factory=dict)


class PdsServer(BodyServer):
    """A PDS. `commits` counts writes as the repository saw them; `fail` has the next calls go wrong.

    `null_swap` is what it makes of `swapRecord: null`: the reference has "nothing there" of it; others, which
    take it for absent, overwrite what is there, or refuse it with a 500. `cursors_are_keys`: as those of the
    reference are; others ignore such a cursor.
    """

    def __init__(self, directory: Directory) -> None:
        super().__init__()
        self.directory = directory
        self.accounts: dict[str, Account] = {}
        self.commits: list[tuple[str, str, str]] = []
        self.headers: dict[str, str] = {}
        self.answer = self._answer
        self.chaos: Callable[[Call], Fault | None] = lambda _: None
        self.cursors_are_keys = True
        self.null_swap: Literal["checked", "overwrites", "refuses"] = "checked"
        self._faults: list[tuple[str, Fault]] = []
        self._serial = 0

    def host(self, did: str, handle: str, password: str, *, records: dict | None = None) -> Account:
        """Take an account in, and tell the directory."""
        self.accounts[did] = Account(did, handle, password, dict(records or {}))
        self.directory.handles[handle] = did
        self.directory.homes[did] = self.url
        return self.accounts[did]

    def move(self, did: str, other: PdsServer) -> None:
        """The account leaves for another PDS: it stays here deactivated, as the real thing does."""
        account = self.accounts[did]
        other.host(did, account.handle, account.password, records=account.records)
        account.trouble = "AccountDeactivated"

    def fail(self, name: str, *faults: Fault) -> None:
        """Have the next calls of the method `name` go wrong, one after the other."""
        self._faults += [(name, fault) for fault in faults]

    def calls(self, name: str) -> list[Call]:
        return [call for call in self.requests if call.name == name]

    def put(self, did: str, rkey: str, value: dict[str, Any]) -> str:
        """Write a record behind everybody's back; its CID."""
        cid = cid_of(value)
        self.accounts[did].records[rkey] = (value, cid)
        return cid

    def expire(self, did: str, *, refresh: bool = False) -> None:
        """The access token has expired, and the refresh token if said so."""
        account = self.accounts[did]
        account.access = ""
        if refresh:
            account.refresh = account.old_refresh = ""

    def posts(self, did: str) -> list[dict[str, Any]]:
        return [value for value, _ in self.accounts[did].records.values()]

    def _answer(self, call: Call) -> Response:
        fault = self._next_fault(call)
        if fault == LOSE_REQUEST:
            return Response(close=True)
        if isinstance(fault, Response):
            return fault
        response = getattr(self, f"_{call.name}", self._unknown)(call)
        response.headers = {**self.headers, **response.headers}
        response.close = fault == LOSE_ANSWER
        response.hang = fault == HANG_AFTER
        return response

    def _next_fault(self, call: Call) -> Fault | None:
        for index, (name, fault) in enumerate(self._faults):
            if name == call.name:
                del self._faults[index]
                return fault
        return self.chaos(call)

    def _unknown(self, call: Call) -> Response:
        return xrpc_error(501, "MethodNotImplemented", "Method Not Implemented")

    def _describeServer(self, call: Call) -> Response:  # noqa: N802
        return json_response({"did": "did:web:localhost", "availableUserDomains": [".test"]})

    def _createSession(self, call: Call) -> Response:  # noqa: N802
        given = call.json()
        names = (given["identifier"].lower(),)
        account = next((a for a in self.accounts.values() if {a.did, a.handle} & {*names}), None)
        if account is None or account.password != given["password"]:
            return xrpc_error(401, "AuthenticationRequired", "Invalid identifier or password")
        if account.trouble == "AccountTakedown":
            return xrpc_error(401, "AccountTakedown", "Account has been taken down")
        return self._hand_out(account)

    def _refreshSession(self, call: Call) -> Response:  # noqa: N802
        if call.body:
            return xrpc_error(400, "InvalidRequest", "A request body was provided when none was expected")
        if not call.token:
            return xrpc_error(401, "AuthMissing", "Authentication Required")
        for account in self.accounts.values():
            if call.token == account.refresh:
                return self._hand_out(account)
            if call.token == account.old_refresh:  # within the grace period: the same next one
                account.access = account.access or self._new_token("access", account)
                return self._tokens(account)
        known = any(call.token.startswith(f"refresh {did} ") for did in self.accounts)
        return xrpc_error(400, "ExpiredToken" if known else "InvalidToken", "Token could not be verified")

    def _getSession(self, call: Call) -> Response:  # noqa: N802
        account = next((a for a in self.accounts.values() if call.token and call.token == a.access), None)
        if account is None:
            return xrpc_error(400, "ExpiredToken", "Token has expired")
        return json_response({"did": account.did, "handle": account.handle, "active": True})

    def _hand_out(self, account: Account) -> Response:
        account.old_refresh = account.refresh
        account.access = self._new_token("access", account)
        account.refresh = self._new_token("refresh", account)
        return self._tokens(account)

    def _new_token(self, kind: str, account: Account) -> str:
        self._serial += 1
        return f"{kind} {account.did} {self._serial} {time.monotonic_ns()}"

    def _tokens(self, account: Account) -> Response:
        return json_response(
            {
                "did": account.did,
                "handle": account.handle,
                "accessJwt": account.access,
                "refreshJwt": account.refresh,
                "didDoc": self.directory.document(account.did),
                "active": not account.trouble,
            }
        )

    def _authenticated(self, call: Call, did: str) -> Account | Response:
        if not call.token:
            return xrpc_error(401, "AuthMissing", "Authentication Required")
        account = next((a for a in self.accounts.values() if a.access == call.token), None)
        if account is None:
            known = any(call.token.startswith(f"access {known} ") for known in self.accounts)
            return xrpc_error(400, "ExpiredToken" if known else "InvalidToken", "Token has expired")
        if account.trouble:
            return xrpc_error(401, account.trouble, "Account is not active")
        if account.did != did:
            return xrpc_error(401, "AuthenticationRequired", "Authentication Required")
        return account

    def _putRecord(self, call: Call) -> Response:  # noqa: N802
        given = call.json()
        account = self._authenticated(call, given["repo"])
        if isinstance(account, Response):
            return account
        record, rkey = given["record"], given["rkey"]
        if fault := _invalid(record):
            return xrpc_error(400, "InvalidRequest", f"Invalid {POST} record: {fault}")
        for blob in blobs_in(record):
            if blob["ref"]["$link"] not in account.blobs:
                return xrpc_error(400, "BlobNotFound", f"Could not find blob: {blob['ref']['$link']}")
        cid = cid_of(record)
        uri = f"at://{account.did}/{given['collection']}/{rkey}"
        there = account.records.get(rkey)
        if self.null_swap == "refuses" and there is not None:
            return xrpc_error(500, "InternalServerError", "Internal Server Error")
        if self.null_swap == "checked" and there is not None and there[1] == cid:
            return json_response({"uri": uri, "cid": cid, "validationStatus": "valid"})
        if given["swapRecord"] is None and self.null_swap == "overwrites":
            pass
        elif given["swapRecord"] != (there[1] if there else None):
            return xrpc_error(400, "InvalidSwap", f"Record was at {there[1] if there else 'null'}")
        account.records[rkey] = (record, cid)
        self.commits.append((account.did, rkey, cid))
        commit = {"cid": cid, "rev": rkey}
        return json_response({"uri": uri, "cid": cid, "commit": commit, "validationStatus": "valid"})

    def _applyWrites(self, call: Call) -> Response:  # noqa: N802
        given = call.json()
        account = self._authenticated(call, given["repo"])
        if isinstance(account, Response):
            return account
        creates = given["writes"]
        for create in creates:
            assert create["$type"] == "com.atproto.repo.applyWrites#create"
            if fault := _invalid(create["value"]):
                return xrpc_error(400, "InvalidRequest", f"Invalid {POST} record: {fault}")
        if any(create["rkey"] in account.records for create in creates):
            return xrpc_error(500, "InternalServerError", "Internal Server Error")
        for create in creates:
            cid = cid_of(create["value"])
            account.records[create["rkey"]] = (create["value"], cid)
            self.commits.append((account.did, create["rkey"], cid))
        return json_response({"commit": {"cid": "c", "rev": creates[0]["rkey"]}, "results": []})

    def _uploadBlob(self, call: Call) -> Response:  # noqa: N802
        account = next((a for a in self.accounts.values() if a.access == call.token), None)
        if account is None:
            return self._authenticated(call, "")
        cid = blob_cid(call.body)
        account.blobs[cid] = call.body
        mime_type = call.headers["content-type"]
        blob = {"$type": "blob", "ref": {"$link": cid}, "mimeType": mime_type, "size": len(call.body)}
        return json_response({"blob": blob})

    def _deleteRecord(self, call: Call) -> Response:  # noqa: N802
        given = call.json()
        account = self._authenticated(call, given["repo"])
        if isinstance(account, Response):
            return account
        there = account.records.get(given["rkey"])
        if there is None:
            return json_response({})
        if given.get("swapRecord", there[1]) != there[1]:
            return xrpc_error(400, "InvalidSwap", f"Record was at {there[1]}")
        del account.records[given["rkey"]]
        return json_response({"commit": {"cid": there[1], "rev": given["rkey"]}})

    def _hosted(self, call: Call) -> Account | Response:
        account = self.accounts.get(call.param("repo"))
        if account is None or account.trouble:
            return xrpc_error(400, "InvalidRequest", f"Could not find repo: {call.param('repo')}")
        return account

    def _getRecord(self, call: Call) -> Response:  # noqa: N802
        account = self._hosted(call)
        if isinstance(account, Response):
            return account
        rkey = call.param("rkey")
        uri = f"at://{account.did}/{POST}/{rkey}"
        if rkey not in account.records:
            return xrpc_error(400, "RecordNotFound", f"Could not locate record: {uri}")
        value, cid = account.records[rkey]
        return json_response({"uri": uri, "cid": cid, "value": value})

    def _listRecords(self, call: Call) -> Response:  # noqa: N802
        account = self._hosted(call)
        if isinstance(account, Response):
            return account
        # The newest come first, unless `reverse` is asked for.
        keys = sorted(account.records, reverse=call.param("reverse") != "true")
        if self.cursors_are_keys and call.param("cursor"):
            keys = [key for key in keys if key < call.param("cursor")]
        listed = [
            {"uri": f"at://{account.did}/{POST}/{key}", "cid": cid, "value": value}
            for key in keys[: int(call.param("limit", "50"))]
            for value, cid in (account.records[key],)
        ]
        return json_response({"records": listed})


def blob_cid(content: bytes) -> str:
    """CIDv1, raw, SHA-256."""
    return str(libipld.encode_cid(b"\x01\x55\x12\x20" + hashlib.sha256(content).digest()))


def blobs_in(value: Any) -> Iterator[dict[str, Any]]:
    """The blobs that a record names, in their order."""
    if isinstance(value, dict):
        if value.get("$type") == "blob":
            yield value
        for item in value.values():
            yield from blobs_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from blobs_in(item)


def _invalid(record: dict[str, Any]) -> str:
    text = record.get("text")
    if not isinstance(text, str):
        return 'Missing required key "text" at $.record'
    if count_graphemes(text) > 300:
        return "grapheme too big (maximum 300) at $.record.text"
    if len(text.encode()) > 3000:
        return "string too big (maximum 3000) at $.record.text"
    return "" if "createdAt" in record else 'Missing required key "createdAt" at $.record'
