"""Accounts and sites with their secrets: found, compared, rotated, and shown nowhere."""

from __future__ import annotations

import pickle

import pytest

from harness.clock import FakeClock
from proxy.errors import Rejected, UsageError
from proxy.resilience.failures import MAX_CLIENTS
from proxy.resilience.limiter import Rate
from proxy.syndication import accounts as module
from proxy.syndication.accounts import AccountBook, TokenCheck, load_accounts
from proxy.tenants import Tenants

ENVIRON = {
    "MAIN_PASSWORD": "main-password",
    "BLOG_TOKEN": "blog-token-blog-token-1",
    "BLOG_TOKEN_OLD": "blog-token-blog-token-0",
    "NEWS_TOKEN": "news-token-news-token-1",
}


def tenants(password_file="/nowhere"):
    return Tenants.model_validate(
        {
            "accounts": [
                {"name": "main", "identifier": "main.example", "password_env": "MAIN_PASSWORD"},
                {"name": "side", "identifier": "did:plc:side", "password_file": str(password_file)},
            ],
            "sites": [
                {"name": "blog", "token_env": ["BLOG_TOKEN", "BLOG_TOKEN_OLD"], "accounts": ["main"]},
                {"name": "news", "token_env": "NEWS_TOKEN", "accounts": ["side"]},
            ],
        }
    )


@pytest.fixture
def password_file(tmp_path):
    path = tmp_path / "password"
    path.write_text("side-password\n", encoding="utf-8")
    return path


def loaded(password_file="/nowhere", **environ):
    return load_accounts(tenants(password_file), {**ENVIRON, **environ})


def bearer(token):
    return f"Bearer {token}"


def refused(check, client, authorization):
    with pytest.raises(Rejected) as caught:
        check.site(client, authorization)
    return caught.value


def test_each_token_belongs_to_its_site(password_file):
    found = loaded(password_file)
    assert found.trouble == ()
    for name, site in (("BLOG_TOKEN", "blog"), ("BLOG_TOKEN_OLD", "blog"), ("NEWS_TOKEN", "news")):
        assert found.site_of(ENVIRON[name]).name == site
    for wrong in ("", "blog", ENVIRON["BLOG_TOKEN"].upper(), ENVIRON["BLOG_TOKEN"] + "x", "ä", "\udcff"):
        assert found.site_of(wrong) is None


def test_all_tokens_are_compared_to_the_end_whichever_fits(monkeypatch, password_file):
    found = loaded(password_file)
    compared = []

    def compare(one, other):
        compared.append((len(one), len(other)))
        return one == other

    monkeypatch.setattr(module.hmac, "compare_digest", compare)
    for token in (ENVIRON["BLOG_TOKEN"], ENVIRON["NEWS_TOKEN"], "x", "x" * 1000):
        compared.clear()
        found.site_of(token)
        assert compared == [(32, 32)] * 3


def test_passwords_come_from_the_environment_and_from_files(password_file):
    found = loaded(password_file)
    assert found.credential("main").password.get_secret_value() == "main-password"
    assert found.credential("side").password.get_secret_value() == "side-password"
    assert found.credential("nobody") is None
    assert found.usable() == {"main", "side"}


def test_a_missing_secret_is_told_and_the_rest_works(tmp_path):
    empty, foreign = tmp_path / "empty", tmp_path / "foreign"
    empty.write_text("\n", encoding="utf-8")
    foreign.write_bytes(b"\xff\xfe")
    for path, reason in ((tmp_path / "none", "cannot read"), (empty, "is empty"), (foreign, "not UTF-8")):
        found = loaded(path, MAIN_PASSWORD="", NEWS_TOKEN=" ")
        main, side, news = found.trouble
        assert main == "account 'main': MAIN_PASSWORD is not set"
        assert side.startswith("account 'side': ")
        assert reason in side
        assert news == "site 'news': NEWS_TOKEN is not set"
        assert found.usable() == frozenset()
        assert found.site_of(" ") is None
        assert found.site_of(ENVIRON["BLOG_TOKEN"]).name == "blog"


@pytest.mark.parametrize("token", ["short-token-19-char", "ä" * 30, "a b" * 10, "a\tb" * 10])
def test_a_token_that_is_too_short_or_cannot_be_sent_is_refused_and_not_shown(token):
    with pytest.raises(UsageError, match="NEWS_TOKEN: a token must") as caught:
        loaded(NEWS_TOKEN=token)
    assert token not in str(caught.value)
    loaded(NEWS_TOKEN="short-token-20-chars")


def test_two_sites_cannot_have_the_same_token():
    with pytest.raises(UsageError, match="NEWS_TOKEN: sites 'blog' and 'news' have the same token") as caught:
        loaded(NEWS_TOKEN=ENVIRON["BLOG_TOKEN_OLD"])
    assert ENVIRON["BLOG_TOKEN_OLD"] not in str(caught.value)
    # One site may name its own twice.
    assert loaded(BLOG_TOKEN_OLD=ENVIRON["BLOG_TOKEN"]).site_of(ENVIRON["BLOG_TOKEN"]).name == "blog"


async def test_a_reload_reads_files_again_and_keeps_what_works_when_it_fails(password_file):
    book = AccountBook(tenants(password_file), ENVIRON)
    before = book.current
    password_file.write_text("another-password", encoding="utf-8")
    await book.reload(tenants(password_file), ENVIRON)
    assert before.credential("side").password.get_secret_value() == "side-password"
    assert book.current.credential("side").password.get_secret_value() == "another-password"
    kept = book.current
    with pytest.raises(UsageError):
        await book.reload(tenants(password_file), {**ENVIRON, "NEWS_TOKEN": "short"})
    assert book.current is kept


def test_a_fingerprint_tells_that_the_password_changed_and_nothing_else(password_file):
    fingerprint = loaded().credential("main").fingerprint
    assert len(bytes.fromhex(fingerprint)) == 16
    assert loaded().credential("main").fingerprint == fingerprint
    assert loaded(MAIN_PASSWORD="main-passwore").credential("main").fingerprint != fingerprint
    # Equal passwords of two accounts do not show.
    password_file.write_text("main-password", encoding="utf-8")
    assert loaded(password_file).credential("side").fingerprint != fingerprint


def test_a_fingerprint_is_the_same_in_every_version():
    # Workers of several versions park and unpark the same accounts by it.
    assert loaded().credential("main").fingerprint == "891f47d702c8d7193ff21d0b5cae5d47"


def test_no_repr_and_no_copy_shows_a_secret(password_file):
    book = AccountBook(tenants(password_file), ENVIRON)
    check = TokenCheck(book, FakeClock())
    check.site("a", bearer(ENVIRON["BLOG_TOKEN"]))
    refused(check, "a", bearer("wrong-token-wrong-token"))
    shown = "".join(
        [
            *map(repr, (book, book.current, book.current.credential("main"), check, vars(check))),
            repr(book.current.credential("main").__dict__),
            str(refused(check, "a", bearer("wrong-token-wrong-token"))),
            pickle.dumps((check._failures, check._welcome, book.current._tokens)).decode("latin-1"),
        ]
    )
    for secret in (*ENVIRON.values(), "side-password", "wrong-token-wrong-token"):
        assert secret not in shown


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic YTpi", "blog-token-blog-token-1"])
def test_without_a_bearer_token_it_is_401_and_no_guess(header):
    check = TokenCheck(AccountBook(tenants(), ENVIRON), FakeClock(), failures=Rate(per_s=1, burst=1))
    for _ in range(5):
        error = refused(check, "a", header)
        assert (error.status, error.code) == (401, "unauthorized")
        assert dict(error.headers)["WWW-Authenticate"].startswith("Bearer")


def test_the_scheme_is_read_in_any_case():
    check = TokenCheck(AccountBook(tenants(), ENVIRON), FakeClock())
    assert check.site("a", f"bEARER  {ENVIRON['BLOG_TOKEN']} ").name == "blog"


def test_wrong_tokens_are_limited_for_each_client():
    clock = FakeClock()
    check = TokenCheck(AccountBook(tenants(), ENVIRON), clock, failures=Rate(per_s=0.5, burst=3))
    check.site("a", bearer(ENVIRON["BLOG_TOKEN"]))
    for _ in range(3):
        assert refused(check, "a", bearer("x" * 30)).status == 401
    # A right guess shows no more than a wrong one, and who was welcome before still is.
    for token in ("x" * 30, ENVIRON["NEWS_TOKEN"]):
        error = refused(check, "a", bearer(token))
        assert (error.status, error.code, error.headers) == (
            429,
            "too_many_failures",
            (("Retry-After", "2"),),
        )
    assert check.site("a", bearer(ENVIRON["BLOG_TOKEN_OLD"])).name == "blog"
    assert check.site("b", bearer(ENVIRON["NEWS_TOKEN"])).name == "news"
    clock.advance(2)
    assert refused(check, "a", bearer("x" * 30)).status == 401
    assert refused(check, "a", bearer("x" * 30)).status == 429
    clock.advance(2)
    assert check.site("a", bearer(ENVIRON["NEWS_TOKEN"])).name == "news"


async def test_a_token_that_was_taken_away_is_welcome_no_more():
    book = AccountBook(tenants(), ENVIRON)
    check = TokenCheck(book, FakeClock())
    check.site("a", bearer(ENVIRON["BLOG_TOKEN_OLD"]))
    await book.reload(tenants(), {**ENVIRON, "BLOG_TOKEN_OLD": ""})
    assert refused(check, "a", bearer(ENVIRON["BLOG_TOKEN_OLD"])).status == 401


def test_what_is_remembered_of_clients_is_bounded():
    check = TokenCheck(AccountBook(tenants(), ENVIRON), FakeClock())
    for number in range(MAX_CLIENTS + 10):
        refused(check, f"client {number}", bearer("x" * 30))
        check.site(f"client {number}", bearer(ENVIRON["BLOG_TOKEN"]))
    assert (len(check._failures), len(check._welcome)) == (MAX_CLIENTS, MAX_CLIENTS)
