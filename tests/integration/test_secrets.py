"""Passwords and tokens are nowhere in clear."""

from __future__ import annotations

import pickle
import traceback

import pytest
import structlog
from pydantic import SecretStr

from harness.pds import LOSE_ANSWER, LOSE_REQUEST
from harness.upstream import xrpc_error
from integration.publishing import (
    ALICE,
    BOB,
    PASSWORD,
    SOON,
    post_of,
    publish,
    secrets_of,
    session_key,
    session_of,
)
from proxy.bluesky.sealing import FORMAT, SealedByNewer, seal, unseal
from proxy.syndication.attempt import Credentials, Published, Wait


class TestSecrets:
    async def story(self, world):
        """Logins, refreshes, failures of every kind."""
        host = world.host()
        outcomes = [await publish(host, post_of(1))]
        for number, fault in enumerate((LOSE_ANSWER, LOSE_REQUEST, xrpc_error(500, "Oops"))):
            world.pds.expire(ALICE)
            world.pds.fail("putRecord", xrpc_error(400, "ExpiredToken"), fault)
            world.pds.fail("refreshSession", fault)
            outcomes.append(await publish(host, post_of(10 + number)))
        world.pds._faults.clear()
        outcomes.append(await publish(host, post_of(19)))
        world.pds.expire(ALICE, refresh=True)
        # A server that repeats what it was told.
        world.pds.fail("createSession", xrpc_error(401, "AuthenticationRequired", f"bad {PASSWORD}"))
        outcomes.append(await publish(host, post_of(20)))
        outcomes.append(await publish(world.host(), post_of(21)))
        assert [type(outcome) for outcome in outcomes[-3:]] == [Published, Credentials, Credentials]
        return host, outcomes

    async def test_they_are_in_no_key_value_log_outcome_or_repr(self, world, raw, capsys):
        with structlog.testing.capture_logs() as logs:
            host, outcomes = await self.story(world)
            held = host.sessions._held[ALICE]
        seen = [repr(logs), repr(outcomes), repr(held), str(held.session), repr(host.login())]
        for key in raw.scan_iter(f"{world.prefix}*"):
            seen += [repr(key), repr(raw.hgetall(key))]
        seen += list(capsys.readouterr())
        secrets = secrets_of(world)
        assert len(secrets) >= 3
        assert any(b"sealed" in text.encode() for text in seen)
        for secret in secrets:
            assert not any(secret in text for text in seen)

    async def test_errors_tell_nothing_with_their_whole_chain(self, world):
        host = world.host()
        await publish(host, post_of(1))
        world.pds.expire(ALICE)
        world.pds.fail("refreshSession", LOSE_ANSWER)
        stale = await session_of(world, host)
        try:
            await host.sessions.renewed(host.login(), stale, world.clock.steady() + SOON)
        except Exception as error:  # noqa: BLE001
            told = "".join(traceback.format_exception(error))
        assert "did not answer" in told
        assert not any(secret in told for secret in secrets_of(world))

    async def test_they_are_not_pickled_by_accident(self, world):
        host = world.host()
        await publish(host, post_of(1))
        with pytest.raises(TypeError):
            pickle.dumps(host.sessions)

    def test_what_is_sealed_opens_with_the_password_and_did_only(self):
        password = SecretStr("correct")
        sealed = seal(b"tokens", password=password, did=ALICE)
        assert b"tokens" not in sealed
        assert sealed[0] == FORMAT
        assert sealed != seal(b"tokens", password=password, did=ALICE)
        assert unseal(sealed, password=password, did=ALICE) == b"tokens"
        assert unseal(sealed, password=SecretStr("wrong"), did=ALICE) is None
        assert unseal(sealed, password=password, did=BOB) is None

    @pytest.mark.parametrize("damage", [b"", b"\x01", b"\x00" * 40, b"\x01" + b"x" * 40])
    def test_what_is_damaged_is_not_there(self, damage):
        assert unseal(damage, password=SecretStr("p"), did=ALICE) is None

    def test_what_a_later_version_sealed_is_not_replaced(self):
        with pytest.raises(SealedByNewer):
            unseal(bytes((FORMAT + 1,)) + b"x" * 40, password=SecretStr("p"), did=ALICE)

    async def test_a_session_of_a_later_version_is_left_to_it(self, world, raw):
        raw.hset(session_key(world), mapping={"version": "v9", "sealed": bytes((FORMAT + 1,)) + b"x" * 40})
        outcome = await publish(world.host(), post_of())
        assert isinstance(outcome, Wait)
        assert world.logins == 0
