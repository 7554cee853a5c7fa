"""One session for each account, shared by all workers and hosts for weeks.

The tokens lie in the store, sealed; a process keeps those it uses in memory and works on from there while the
store is away. Nobody refreshes ahead of time: the PDS says when a token has expired, whatever our clock says;
then one process renews it for all, and the others wait and take over what it got.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any, Final

from pydantic import SecretStr

from proxy.bluesky.identity import Identities
from proxy.bluesky.pds import Pds, Tokens
from proxy.bluesky.pins import Identified, Login, Pins
from proxy.bluesky.sealing import SealedByNewer, seal, unseal
from proxy.clock import Clock
from proxy.errors import (
    CredentialsRefused,
    PdsBusy,
    PdsError,
    PdsUnreachable,
    StoreError,
    StoreUnavailable,
    TokenRefused,
)
from proxy.store.runner import Runner
from proxy.store.scripts import script
from proxy.telemetry import get_logger

_LOAD, _BEGIN, _SAVE, _END = (script(f"session_{name}") for name in ("load", "begin", "save", "end"))
_FORGIVE = script("session_forgive")

# How often to look whether whoever renews the session is done.
_LOOK_S: Final = 0.1
# When a later version of feedproxy has the session: it does the work meanwhile.
_NEWER_WAIT_S: Final = 60.0

_log = get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Tokens that open `did` at the origin `pds`. Each renewal has another `version`."""

    did: str
    pds: str
    access: SecretStr
    refresh: SecretStr
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionPolicy:
    """How logins are spared: a pause after each, doubling while they fail.

    The reference PDS grants 30 in 5 min and 300 a day; lock-outs at 10 a day have been reported.
    """

    login_pause_s: float = 120.0
    longest_login_pause_s: float = 3600.0
    # How often a person may do without that pause.
    forgiven_an_hour: int = 5
    # For how long one process may be renewing before another may.
    hold_s: float = 15.0


@dataclass(frozen=True, slots=True)
class _Held:
    """A session in memory. `unsaved_over`: the version that it replaces, once the store is back."""

    session: Session
    password: SecretStr
    unsaved_over: str | None = None


@dataclass(slots=True)
class _Renewal:
    """A renewal under way. `server` is where to log in; empty: the session is to be refreshed."""

    login: Login
    did: str
    stale: Session | None
    deadline: float
    server: str = ""
    known_version: str = ""
    asker: str = field(default_factory=lambda: uuid.uuid4().hex)


class Sessions:
    """Finds, makes and renews sessions.

    Raises StoreError when the store is needed and away (never is there a login then), CredentialsRefused when
    a person must act, PdsBusy when it is too early to log in again, PdsUnreachable.
    """

    def __init__(
        self,
        store: Runner,
        pds: Pds,
        identities: Identities,
        pins: Pins,
        clock: Clock,
        *,
        prefix: str,
        policy: SessionPolicy | None = None,
    ) -> None:
        self._store = store
        self._pds = pds
        self._identities = identities
        self._clock = clock
        self._prefix = prefix
        self._policy = policy or SessionPolicy()
        self._held: dict[str, _Held] = {}
        self._pins = pins
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def session(self, login: Login, deadline: float) -> Session:
        """The account's session, from memory, from the store, or from a login."""
        did = await self._pins.did_of(login, deadline)
        if (held := self._in_memory(did, login)) is None:
            async with self._turns[did]:
                held = self._in_memory(did, login)
                if held is None:
                    return await self._shared(login, did, deadline)
        if held.unsaved_over is not None:
            await self._save_late(held, did)
        return held.session

    async def renewed(self, login: Login, stale: Session, deadline: float) -> Session:
        """Another session in place of `stale`, whose token the PDS does not take."""
        async with self._turns[stale.did]:
            held = self._in_memory(stale.did, login)
            if held is not None and held.session.version != stale.version:
                return held.session
            renewal = _Renewal(login, stale.did, stale, deadline, known_version=stale.version)
            return await self._renew(renewal)

    async def moved(self, login: Login, session: Session, deadline: float) -> Session | None:
        """A session where the account lives now, its DID document read afresh; None if it has not moved."""
        did = session.did
        pds = await self._identities.pds_of(did, service=login.service, deadline=deadline, fresh=True)
        if pds == session.pds:
            return None
        async with self._turns[did]:
            held = self._in_memory(did, login)
            if held is not None and held.session.pds == pds:
                return held.session
            _log.info("account_moved", did=did, pds=pds)
            renewal = _Renewal(login, did, session, deadline, server=pds, known_version=session.version)
            return await self._renew(renewal)

    async def remembered(self, login: Login) -> bool:
        """Whether `session` has the account's session in memory, and will ask nobody for it."""
        try:
            return self._in_memory(await self._pins.known(login.identifier), login) is not None
        except StoreError:
            return False

    async def recall(self, login: Login) -> None:
        """Hold in memory what the fleet has of the account's session, for when the store is away.

        Asks the store alone; where there is no session, none is made.
        """
        if not (did := await self._pins.known(login.identifier)):
            return
        async with self._turns[did]:
            held = self._in_memory(did, login)
            if held is not None and held.unsaved_over is not None:
                return  # the store's is the older one
            version, sealed = await self._run(_LOAD, did)
            if held is None or held.session.version != _text(version):
                session = self._opened(login, did, sealed, _text(version))
                if session is not None:
                    self._hold(login, session)

    async def forgive(self, who: Identified, deadline: float) -> None:
        """A person wants the login tried again: a refusal of the password is forgotten, and so are pauses.

        The latter a few times an hour only, and never those that the server asked for.
        """
        did = await self._pins.did_of(who, deadline)
        await self._run(_FORGIVE, did, self._policy.forgiven_an_hour)

    def _in_memory(self, did: str, login: Login) -> _Held | None:
        held = self._held.get(did)
        return held if held is not None and held.password == login.password else None

    def _hold(self, login: Login, session: Session, unsaved_over: str | None = None) -> Session:
        self._held[session.did] = _Held(session, login.password, unsaved_over)
        return session

    async def _shared(self, login: Login, did: str, deadline: float) -> Session:
        version, sealed = await self._run(_LOAD, did)
        session = self._opened(login, did, sealed, _text(version))
        if session is not None:
            await self._pins.keep(login.identifier, did)
            return self._hold(login, session)
        # A login is rare, and a refused one matters: it goes where the account lives now.
        server = login.service or await self._identities.pds_of(did, deadline=deadline, fresh=True)
        renewal = _Renewal(login, did, None, deadline, server=server, known_version=_text(version))
        return await self._renew(renewal)

    async def _renew(self, renewal: _Renewal) -> Session:
        """Renew the session for the whole fleet, or take over what another process made of it meanwhile."""
        while True:
            try:
                verdict, *details = await self._begin(renewal)
            except StoreError:
                if renewal.server or renewal.stale is None:
                    raise
                return await self._refresh_alone(renewal, renewal.stale)
            match verdict:
                case b"granted":
                    session = await self._new_session(renewal)
                case b"changed":
                    session = self._taken_over(renewal, _text(details[0]), details[1])
                case b"busy":
                    await self._look_later(renewal, int(details[0]) / 1000)
                    continue
                case b"wait":
                    raise PdsBusy("the last login was a short while ago", wait_s=int(details[0]) / 1000)
                case _:
                    raise CredentialsRefused("AuthenticationRequired", "the password was refused before")
            if session is not None:
                return session

    async def _begin(self, renewal: _Renewal) -> list[Any]:
        policy = self._policy
        answer: list[Any] = await self._run(
            _BEGIN,
            renewal.did,
            renewal.asker,
            renewal.known_version,
            _ms(policy.hold_s),
            "login" if renewal.server else "refresh",
            f"{renewal.login.fingerprint}@{renewal.server}" if renewal.server else "",
            _ms(policy.login_pause_s),
            _ms(policy.longest_login_pause_s),
        )
        return answer

    async def _look_later(self, renewal: _Renewal, left_s: float) -> None:
        if self._clock.steady() + _LOOK_S >= renewal.deadline:
            raise PdsBusy("another process is renewing the session", wait_s=max(left_s, 1.0))
        await asyncio.sleep(_LOOK_S)

    def _taken_over(self, renewal: _Renewal, version: str, sealed: bytes) -> Session | None:
        """The session that another process stored; None if it is no use to us, then ours may replace it."""
        session = self._opened(renewal.login, renewal.did, sealed, version)
        wanted = renewal.server if renewal.stale is not None else ""
        if session is not None and wanted in ("", session.pds):
            return self._hold(renewal.login, session)
        renewal.known_version = version
        return None

    async def _new_session(self, renewal: _Renewal) -> Session | None:
        """With the right to renew: refresh or log in, and store it. None: it takes a login, ask for that."""
        try:
            if renewal.server or renewal.stale is None:
                session = await self._logged_in(renewal)
            else:
                session = await self._refreshed(renewal.stale, renewal.deadline)
        except TokenRefused:
            renewal.server = await self._server_of(renewal)
            return None
        except PdsError as error:
            await self._end(renewal, error)
            raise
        return await self._save(renewal, session)

    async def _server_of(self, renewal: _Renewal) -> str:
        try:
            return renewal.login.service or await self._identities.pds_of(
                renewal.did, deadline=renewal.deadline, fresh=True
            )
        except PdsError as error:
            await self._end(renewal, error)
            raise

    async def _logged_in(self, renewal: _Renewal) -> Session:
        login, did, server = renewal.login, renewal.did, renewal.server
        _log.info("login", did=did, server=server)
        tokens = await self._pds.create_session(
            server, did=did, password=login.password, deadline=renewal.deadline
        )
        if tokens.did != did:
            raise CredentialsRefused("InvalidDid", f"the login at {server} is for another account than {did}")
        return _session(tokens, pds=self._home(login, tokens, server))

    def _home(self, login: Login, tokens: Tokens, server: str) -> str:
        """Where the account's records are written: a service may be an entrance to many PDSs."""
        if login.service != server or tokens.did_document is None:
            return server
        try:
            return self._identities.endpoint(tokens.did, tokens.did_document, service=server)
        except CredentialsRefused:
            return server

    async def _refreshed(self, stale: Session, deadline: float) -> Session:
        tokens = await self._pds.refresh_session(
            stale.pds, did=stale.did, refresh=stale.refresh, deadline=deadline
        )
        if tokens.did != stale.did:
            raise CredentialsRefused("InvalidDid", f"{stale.pds} refreshed another account than {stale.did}")
        _log.info("session_refreshed", did=stale.did)
        return _session(tokens, pds=stale.pds)

    async def _refresh_alone(self, renewal: _Renewal, stale: Session) -> Session:
        """Without the store: the PDS gives all who refresh the same session for 2 h."""
        try:
            session = await self._refreshed(stale, renewal.deadline)
        except TokenRefused:
            raise StoreUnavailable("the session has ended, and there is no login without the store") from None
        held = self._held.get(stale.did)
        over = held.unsaved_over if held is not None else None
        return self._hold(renewal.login, session, stale.version if over is None else over)

    async def _save(self, renewal: _Renewal, session: Session) -> Session:
        """Store the new session; if another came first, that one is everybody's."""
        login, did, over = renewal.login, renewal.did, renewal.known_version
        self._hold(login, session, over)
        try:
            answer = await self._run(
                _SAVE, did, renewal.asker, over, session.version, _sealed(session, login.password)
            )
            if answer[0] == b"changed":
                theirs = self._opened(login, did, answer[2], _text(answer[1]))
                return self._hold(login, theirs or session)
            self._hold(login, session)
            await self._pins.keep(login.identifier, did)
        except StoreError:
            _log.warning("session_not_stored", did=did)
        return session

    async def _save_late(self, held: _Held, did: str) -> None:
        """What was renewed without the store goes there now that it may be back."""
        sealed = _sealed(held.session, held.password)
        try:
            await self._run(_SAVE, did, "", held.unsaved_over, held.session.version, sealed)
        except StoreError:
            return
        if self._held.get(did) is held:
            self._held[did] = replace(held, unsaved_over=None)

    async def _end(self, renewal: _Renewal, error: PdsError) -> None:
        ended, wait_s = "failed", 0.0
        if isinstance(error, CredentialsRefused):
            ended = "refused"
        elif isinstance(error, PdsBusy):
            ended, wait_s = "unmade", error.wait_s
        elif isinstance(error, PdsUnreachable) and not error.sent:
            ended = "unmade"
        try:
            await self._run(_END, renewal.did, renewal.asker, ended, _ms(wait_s))
        except StoreError:
            _log.warning("session_renewal_not_ended", did=renewal.did)

    def _opened(self, login: Login, did: str, sealed: bytes, version: str) -> Session | None:
        if not sealed:
            return None
        try:
            plain = unseal(sealed, password=login.password, did=did)
        except SealedByNewer:
            message = "a later version of feedproxy has the account's session"
            raise PdsBusy(message, wait_s=_NEWER_WAIT_S) from None
        if plain is None:
            return None
        tokens = json.loads(plain)
        return Session(
            did=did,
            pds=tokens["pds"],
            access=SecretStr(tokens["access"]),
            refresh=SecretStr(tokens["refresh"]),
            version=version,
        )

    async def _run(self, which: Any, *args: Any) -> Any:
        return await self._store.run(which, self._prefix, args)


def _session(tokens: Tokens, *, pds: str) -> Session:
    return Session(
        did=tokens.did, pds=pds, access=tokens.access, refresh=tokens.refresh, version=uuid.uuid4().hex
    )


def _sealed(session: Session, password: SecretStr) -> bytes:
    tokens = {
        "pds": session.pds,
        "access": session.access.get_secret_value(),
        "refresh": session.refresh.get_secret_value(),
    }
    return seal(json.dumps(tokens).encode(), password=password, did=session.did)


def _text(value: bytes) -> str:
    return value.decode()


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
