"""Who an account is and where it lives: it moves, its handle changes, and passwords go nowhere else."""

from __future__ import annotations

import pytest

from harness.upstream import json_response, xrpc_error
from integration.publishing import (
    ALICE,
    BOB,
    post_of,
    publish,
)
from proxy.bluesky.identity import Identities
from proxy.bluesky.sessions import SessionPolicy
from proxy.errors import CredentialsRefused
from proxy.syndication.attempt import Credentials, Published, Transient, Wait

SOON = 10.0


SOON = 10.0


def key_of(world, did=ALICE):
    return f"{world.prefix}sessions:{did}"


async def session_of(world, host):
    return await host.sessions.session(host.login(), world.clock.steady() + SOON)


class TestMoving:
    async def test_an_account_that_moved_goes_on_by_itself_on_each_host(self, world):
        hosts = [world.host(policy=SessionPolicy()) for _ in range(2)]
        for number, host in enumerate(hosts):
            await publish(host, post_of(number))
        world.pds.move(ALICE, world.other)
        for number, host in enumerate(hosts):
            outcome = await publish(host, post_of(10 + number))
            assert isinstance(outcome, Published)
        assert len(world.other.commits) == 2
        assert len(world.other.calls("createSession")) == 1
        assert isinstance(await publish(world.host(), post_of(20)), Published)
        assert world.logins == 2

    async def test_one_that_the_old_pds_has_forgotten_too(self, world):
        host = world.host(policy=SessionPolicy())
        await publish(host, post_of(1))
        world.pds.move(ALICE, world.other)
        del world.pds.accounts[ALICE]
        assert isinstance(await publish(host, post_of(2)), Published)
        assert len(world.other.commits) == 1

    async def test_its_records_are_found_where_it_lives_now(self, world):
        host = world.host()
        first = await publish(host, post_of(1, age_s=3600))
        world.pds.move(ALICE, world.other)
        world.store.delete_all()
        again = await publish(host, post_of(1, age_s=1800))
        assert (again.uri, again.found) == (first.uri, True)
        assert world.other.commits == []

    async def test_before_its_first_login_it_is_looked_up_afresh(self, world):
        host = world.host()
        deadline = world.clock.steady() + SOON
        await host.sessions._identities.pds_of(ALICE, deadline=deadline)
        world.pds.move(ALICE, world.other)
        assert isinstance(await publish(host, post_of()), Published)
        assert world.logins == 1

    async def test_a_directory_that_is_down_holds_up_nobody_who_has_a_session(self, world):
        host = world.host()
        await publish(host, post_of(1))
        await world.directory.stop()
        assert isinstance(await publish(host, post_of(2)), Published)
        assert isinstance(await publish(world.host(), post_of(3)), Published)

    async def test_before_the_first_login_it_is_trouble_on_the_way(self, world):
        host = world.host()
        await world.directory.stop()
        assert isinstance(await publish(host, post_of()), Transient)
        assert world.logins == 0


class TestWhoItIs:
    async def test_a_handle_that_changed_hands_means_who_it_meant(self, world):
        await publish(world.host(), post_of(1))
        world.directory.handles["alice.test"] = BOB
        host = world.host()
        assert await host.pins.known("alice.test") == ALICE
        assert isinstance(await publish(host, post_of(2)), Published)
        assert world.pds.accounts[BOB].records == {}

    async def test_a_handle_that_leads_nowhere_any_more_does_no_harm(self, world):
        await publish(world.host(), post_of(1))
        world.directory.handles.clear()
        assert isinstance(await publish(world.host(), post_of(2)), Published)

    async def test_before_the_first_login_it_waits_for_a_person(self, world):
        world.directory.handles.clear()
        outcome = await publish(world.host(), post_of())
        assert isinstance(outcome, Credentials)
        assert "alice.test" in outcome.reason

    async def test_nothing_is_pinned_before_the_first_login(self, world):
        host = world.host(accounts=world.accounts(password="wrong"))
        await publish(host, post_of())
        other = world.host()
        for each in (host, other):
            assert await each.pins.known("alice.test") == ALICE  # as far as anybody knows
        world.directory.handles["alice.test"] = BOB
        assert await host.pins.did_of(host.login(), world.clock.steady() + SOON) == BOB
        for each in (host, other):
            assert await each.pins.known("alice.test") == BOB

    async def test_a_service_that_logs_in_somebody_else_is_refused(self, world):
        world.directory.handles["alice.test"] = "did:plc:carol"
        world.directory.homes["did:plc:carol"] = world.pds.url
        answer = {"did": BOB, "accessJwt": "a", "refreshJwt": "r"}
        world.pds.fail("createSession", json_response(answer))
        assert isinstance(await publish(world.host(), post_of()), Credentials)

    async def test_a_service_may_be_an_entrance_to_the_pds(self, world):
        # bsky.social logs everybody in, and the records lie elsewhere.
        world.other.accounts[ALICE] = world.pds.accounts[ALICE]
        host = world.host(accounts=world.accounts(service=world.other.url))
        assert isinstance(await publish(host, post_of()), Published)
        assert len(world.other.calls("createSession")) == 1
        assert len(world.pds.commits) == 1

    async def test_a_did_in_place_of_the_handle_is_not_looked_up(self, world):
        host = world.host(accounts=world.accounts(identifier=ALICE))
        assert isinstance(await publish(host, post_of()), Published)
        assert not any("resolveHandle" in call.path for call in world.directory.requests)


class TestEndpoints:
    """Where passwords go."""

    def identities(self, world, plc_url):
        return Identities(None, world.clock, plc_url=plc_url, resolver_url="https://appview.example")

    def document(self, endpoint, **more):
        service = {"id": "#atproto_pds", "type": "AtprotoPersonalDataServer", "serviceEndpoint": endpoint}
        return {"id": ALICE, "service": [None, {"id": "#other"}, {**service, **more}]}

    @pytest.mark.parametrize(
        "endpoint", ["https://pds.example", "https://pds.example/", "https://PDS.example:8443"]
    )
    def test_https_is_taken(self, world, endpoint):
        identities = self.identities(world, "https://plc.directory")
        assert identities.endpoint(ALICE, self.document(endpoint)).startswith("https://pds.example")

    @pytest.mark.parametrize(
        "endpoint",
        [
            "http://pds.example",
            "ftp://pds.example",
            "https://u:p@pds.example",
            "https://pds.example/path",
            "x",
            5,
        ],
    )
    def test_anything_else_is_not(self, world, endpoint):
        with pytest.raises(CredentialsRefused):
            self.identities(world, "https://plc.directory").endpoint(ALICE, self.document(endpoint))

    def test_http_is_where_the_operator_said_so(self, world):
        document = self.document("http://pds.internal")
        public = self.identities(world, "https://plc.directory")
        assert public.endpoint(ALICE, document, service="http://pds.internal") == "http://pds.internal"
        own = self.identities(world, "http://plc.internal")
        assert own.endpoint(ALICE, document) == "http://pds.internal"

    @pytest.mark.parametrize("more", [{"id": "#else"}, {"type": "Else"}, {"id": f"{BOB}#atproto_pds"}])
    def test_another_service_is_not_the_pds(self, world, more):
        with pytest.raises(CredentialsRefused):
            self.identities(world, "https://plc.directory").endpoint(
                ALICE, self.document("https://pds.example", **more)
            )

    def test_the_document_of_another_is_not_taken(self, world):
        document = self.document("https://pds.example") | {"id": BOB}
        with pytest.raises(CredentialsRefused):
            self.identities(world, "https://plc.directory").endpoint(ALICE, document)

    @pytest.mark.parametrize(
        ("did", "url"),
        [
            ("did:plc:abc", "https://plc.directory/did:plc:abc"),
            ("did:web:alice.example", "https://alice.example/.well-known/did.json"),
            ("did:web:localhost%3A8080", "https://localhost:8080/.well-known/did.json"),
        ],
    )
    def test_where_did_documents_are(self, world, did, url):
        assert self.identities(world, "https://plc.directory")._document_url(did) == url

    @pytest.mark.parametrize("did", ["did:web:alice.example:path", "did:web:10.0.0.1%2Fx", "did:key:abc"])
    def test_dids_that_accounts_do_not_have(self, world, did):
        with pytest.raises(CredentialsRefused):
            self.identities(world, "https://plc.directory")._document_url(did)

    async def test_an_account_that_is_gone_waits_for_a_person(self, world):
        del world.directory.homes[ALICE]
        assert isinstance(await publish(world.host(), post_of()), Credentials)

    async def test_a_busy_directory_is_waited_for(self, world):
        answer = world.directory.answer

        def busy(call):
            return (
                xrpc_error(429, "Busy", headers={"Retry-After": "7"}) if ALICE in call.path else answer(call)
            )

        world.directory.answer = busy
        outcome = await publish(world.host(), post_of())
        assert isinstance(outcome, Wait)
        assert outcome.for_s == 7
