"""Whoever has one of a site's secrets can check its notifications with the reference library."""

from __future__ import annotations

import time

import pytest
from pydantic import SecretStr
from standardwebhooks import Webhook, WebhookVerificationError

from proxy.errors import UsageError
from proxy.syndication.signing import callback_secrets, derived_secret, signed_headers
from proxy.tenants import Site

OLD = "whsec_" + "b2xk" * 10
NEW = "whsec_" + "bmV3" * 10
TOKENS = {"TOKEN": "a-token-of-the-blog-1", "TOKEN_OLD": "a-token-of-the-blog-0"}


def site(**fields):
    return Site.model_validate(
        {"name": "blog", "token_env": ["TOKEN", "TOKEN_OLD"], "accounts": ["main"], **fields}
    )


def plain(secrets):
    return [secret.get_secret_value() for secret in secrets]


def signed(secrets, body="{}", now=None):
    return signed_headers(
        [SecretStr(secret) for secret in secrets],
        message_id="msg_1_1",
        body=body,
        now=time.time() if now is None else now,
    )


@pytest.mark.parametrize("secret", [OLD, NEW])
def test_each_secret_of_a_rotation_verifies(secret):
    Webhook(secret).verify('{"ü": 1}', signed([NEW, OLD], '{"ü": 1}'))


def test_another_secret_body_or_instant_does_not():
    headers = signed([NEW])
    for secret, body, given in (
        (OLD, "{}", headers),
        (NEW, "[]", headers),
        (NEW, "{}", signed([NEW], now=time.time() - 3600)),
    ):
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(body, given)


def test_the_secrets_are_the_sites_own_newest_first():
    named = site(callback_secrets_env=["HOOK_NEW", "HOOK_OLD"])
    assert plain(callback_secrets(named, {"HOOK_NEW": NEW, "HOOK_OLD": OLD})) == [NEW, OLD]
    assert plain(callback_secrets(named, {"HOOK_OLD": OLD})) == [OLD]


def test_without_its_own_they_follow_from_its_tokens():
    found = plain(callback_secrets(site(), TOKENS))
    assert found == [derived_secret(token, "blog") for token in TOKENS.values()]
    assert len({*found, derived_secret(TOKENS["TOKEN"], "news")}) == 3


@pytest.mark.parametrize("text", ["whsec_", "whsec_c2hvcnQ=", "no base64 at all, is it?", "QUFB" * 30])
def test_what_is_no_secret_stops_the_start_and_is_not_shown(text):
    with pytest.raises(UsageError, match="HOOK") as caught:
        callback_secrets(site(callback_secrets_env=["HOOK"]), {"HOOK": text})
    assert text == "whsec_" or text not in str(caught.value)
