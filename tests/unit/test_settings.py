"""Every setting is read, checked and shown; what is wrong is named in one line, and no secret is."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path

import pytest

from proxy.errors import UsageError
from proxy.settings import Settings, load_settings, variables

TOKEN = "t" * 40


def load(**values):
    return load_settings({f"FEEDPROXY_{name}": str(value) for name, value in values.items()})


def test_defaults():
    settings = load_settings({})
    assert (settings.host, settings.port, settings.workers) == ("127.0.0.1", 8080, 1)
    assert settings.upstream == "https://public.api.bsky.app"
    assert (settings.cache_ttl, settings.negative_ttl) == (600, 60)
    assert (settings.stale_while_revalidate, settings.stale_if_error) == (86_400, 604_800)
    assert (settings.upstream_rps, settings.upstream_burst, settings.upstream_concurrency) == (5, 6, 6)
    assert settings.syndication_retry_delays == (60, 120, 300)
    assert settings.data_dir.name == "feedproxy"
    assert settings.store_url is None


def test_the_data_directory_of_a_systemd_unit():
    assert load_settings({"STATE_DIRECTORY": "/var/lib/feedproxy"}).data_dir == Path("/var/lib/feedproxy")
    both = {"STATE_DIRECTORY": "/var/lib/feedproxy", "FEEDPROXY_DATA_DIR": "/srv/data"}
    assert load_settings(both).data_dir == Path("/srv/data")


def test_lists_are_separated_by_commas():
    settings = load(
        SYNDICATION_RETRY_DELAYS="1, 2,3",
        CLIENT_EXEMPT="10.0.0.0/8,2001:db8::/32",
        ACTORS="Alice.test, did:plc:abc,at://did:plc:abc/app.bsky.feed.generator/x",
        CORS_ORIGINS="https://a.example, https://B.example:8443",
    )
    assert settings.syndication_retry_delays == (1, 2, 3)
    assert settings.client_exempt == (
        ipaddress.ip_network("10.0.0.0/8"),
        ipaddress.ip_network("2001:db8::/32"),
    )
    assert settings.actors == ("alice.test", "did:plc:abc", "at://did:plc:abc/app.bsky.feed.generator/x")
    assert settings.cors_origins == ("https://a.example", "https://b.example:8443")


def test_origins_are_written_as_browsers_write_them():
    settings = load(
        CORS_ORIGINS="https://A.example:443, http://b.example:80,http://b.example:8080/,http://[::1]:3000"
    )
    assert settings.cors_origins == (
        "https://a.example",
        "http://b.example",
        "http://b.example:8080",
        "http://[::1]:3000",
    )


def test_the_password_in_an_unusable_address_is_not_told():
    with pytest.raises(UsageError) as caught:
        load(REDIS_URL="redis://:open/sesame@h")
    assert "open" not in str(caught.value)
    assert "sesame" not in str(caught.value)


def test_empty_means_unset():
    assert load(CONTACT="", PORT="", ADMIN_TOKEN="") == load()


def test_the_command_line_wins():
    settings = load_settings({"FEEDPROXY_PORT": "1", "FEEDPROXY_HOST": "a"}, port=2, host=None)
    assert (settings.port, settings.host) == (2, "a")


def test_kubernetes_service_variables_are_no_settings():
    settings = load(
        PORT="tcp://10.0.0.1:8080",
        PORT_8080_TCP="tcp://10.0.0.1:8080",
        PORT_8080_TCP_ADDR="10.0.0.1",
        SERVICE_HOST="10.0.0.1",
        SERVICE_PORT="8080",
        SERVICE_PORT_HTTP="8080",
    )
    assert settings.port == 8080


WRONG = {
    "PORT": ["abc", "-1", "65536"],
    "WORKERS": ["0", "x"],
    "UPSTREAM": [
        "ftp://a.example",
        "public.api.bsky.app",
        "https://a.example/path",
        "https://u:p@a.example",
        "http://exa mple",
        "http://a..b",
        "http://h:0",
        "http://h:99999",
        "http://%61",
        "http://[::g]",
    ],
    "REDIS_URL": ["redis://h:port", "redis://h?db=x", "redis://", "unix://", "http://h"],
    "CONTACT": ["a (b)", "ü"],
    "PUBLIC_URL": ["x"],
    "NAMESPACE": ["a b", "{x}"],
    "EMBEDDED_MEMORY_MB": ["1", "9" * 30],
    "MEMORY_MB": ["0"],
    "CACHE_TTL": ["0", "-1", "nan", "ten"],
    "NEGATIVE_TTL": ["0"],
    "STALE_WHILE_REVALIDATE": ["-1"],
    "STALE_IF_ERROR": ["inf"],
    "CLIENT_MAX_AGE": ["-1"],
    "ACTORS": ["alice", ","],
    "UPSTREAM_RPS": ["0", "1e-300"],
    "UPSTREAM_BURST": ["0"],
    "UPSTREAM_CONCURRENCY": ["0"],
    "DEGRADED_SHARE": ["0", "1.1"],
    "CLIENT_EXEMPT": ["10.0.0.1/8", "x"],
    "TRUSTED_PROXIES": ["300.0.0.0/8"],
    "UPSTREAM_TIMEOUT": ["0"],
    "RETRY_MAX": ["0"],
    "RETRY_BASE_MS": ["0"],
    "RETRY_CAP_MS": ["1"],
    "SYNDICATION_RETRY_DELAYS": ["60;120", "-1"],
    "DONE_RETENTION_DAYS": ["0", "366"],
    "DEAD_RETENTION_DAYS": ["0", "366"],
    "PLC_URL": ["plc"],
    "OPS_LISTEN": ["9090", "host:99999"],
    "CORS_ORIGINS": ["a.example", "https://a.example/x", ",", "https://exa mple"],
    "FEED_UPDATED_LANG": ["xx"],
    "LOG_LEVEL": ["loud"],
    "LOG_FORMAT": ["xml"],
    "ACCESS_LOG": ["maybe"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, all_ in WRONG.items() for value in all_])
def test_wrong_values_are_one_line_that_names_them(name, value):
    with pytest.raises(UsageError) as caught:
        load(**{name: value})
    message = str(caught.value)
    assert f"FEEDPROXY_{name}" in message
    assert "\n" not in message


# Passwords and tokens that strayed into what is for something else, alone or in an address.
STRAYS = ("swordfish", "http://me:swordfish@h/x", "redis://me:swordfish@h:port", "1,swordfish", "(swordfish)")
# Anything is a name of a host or a directory; that of a file is what its complaint is about.
ANYTHING = {"HOST", "DATA_DIR", "CONFIG"}
REFUSING = {name.upper() for name in variables()} - ANYTHING | {"ADMIN_TOKEN_FILE", "REDIS_URL_FILE", "TOKN"}


def complaint(**values):
    """What is said of them, nothing if they will do."""
    try:
        load(**values)
    except UsageError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", sorted(REFUSING))
def test_what_is_wrong_is_not_repeated_as_it_may_be_a_secret(name):
    complaints = [complaint(**{name: stray}) for stray in STRAYS]
    assert any(complaints)
    assert "swordfish" not in "".join(complaints)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("PROT", "PORT"),
        ("CACHE_TTLS", "CACHE_TTL"),
        ("UPSTREAM_URL", "UPSTREAM"),
        ("ADMIN_TOKENS", "ADMIN_TOKEN"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(name, nearest):
    with pytest.raises(UsageError, match=f"FEEDPROXY_{name} is not a setting; .*FEEDPROXY_{nearest}$"):
        load(**{name: "1"})


def test_secrets_from_files(tmp_path):
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    settings = load(ADMIN_TOKEN_FILE=file)
    assert settings.admin_token.get_secret_value() == TOKEN
    with pytest.raises(UsageError, match="both set"):
        load(ADMIN_TOKEN_FILE=file, ADMIN_TOKEN=TOKEN)
    with pytest.raises(UsageError, match="ADMIN_TOKEN_FILE: cannot read"):
        load(ADMIN_TOKEN_FILE=tmp_path / "nothing")


def test_the_effective_settings_show_everything_but_secrets():
    shown = load(
        ADMIN_TOKEN=TOKEN, REDIS_URL="rediss://me:swordfish@redis.example:6380/1?ssl_password=swordfish"
    ).effective()
    assert list(shown) == [f"FEEDPROXY_{name.upper()}" for name in variables()]
    assert shown["FEEDPROXY_ADMIN_TOKEN"] == "********"
    assert shown["FEEDPROXY_REDIS_URL"] == "rediss://me:********@redis.example:6380/1"
    assert TOKEN not in str(shown)
    assert "swordfish" not in str(shown)


def test_what_is_shown_can_be_read_again():
    settings = load(CACHE_TTL="1.5", CORS_ORIGINS="https://a.example,https://b.example", ACCESS_LOG="on")
    again = load_settings({name: value for name, value in settings.effective().items() if value})
    assert again == settings


def test_no_representation_tells_a_secret():
    assert TOKEN not in repr(load(ADMIN_TOKEN=TOKEN))


TOML = """
[[accounts]]
name = "main"
identifier = "Alice.example.com"
password_env = "FEEDPROXY_MAIN_PASSWORD"

[[sites]]
name = "blog"
token_env = ["BLOG_TOKEN", "BLOG_TOKEN_OLD"]
accounts = ["main"]
callback_secrets_env = ["FEEDPROXY_HOOK"]

[[feeds]]
actor = "alice.example.com"
ttl_s = 120
"""


def test_feedproxy_toml(tmp_path):
    file = tmp_path / "feedproxy.toml"
    file.write_text(TOML)
    settings = load(CONFIG=file, MAIN_PASSWORD="x", HOOK="y")
    assert settings.tenants.accounts[0].identifier == "alice.example.com"
    assert settings.tenants.sites[0].token_envs == ("BLOG_TOKEN", "BLOG_TOKEN_OLD")
    assert settings.tenants.feeds[0].ttl_s == 120
    with pytest.raises(UsageError, match="FEEDPROXY_MAIN_PASWORD is not a setting"):
        load(CONFIG=file, MAIN_PASWORD="x")


BAD_TOML = {
    "not TOML": ("[[accounts", "array declaration"),
    "unknown table": ("[[account]]\nname = 'x'", "account"),
    "unknown key": (TOML + "\nttl = 3", "feeds[0].ttl"),
    "no password": ("[[accounts]]\nname='a'\nidentifier='a.test'", "accounts[0]"),
    "bad handle": ("[[accounts]]\nname='a'\nidentifier='a'\npassword_env='X'", "accounts[0].identifier"),
    "unknown account": ("[[sites]]\nname='s'\ntoken_env='T'\naccounts=['nobody']", "nobody"),
    "twice": (TOML + '\n[[sites]]\nname="blog"\ntoken_env="T"\naccounts=["main"]', "twice"),
    "a rule for nothing": ("[[feeds]]\nttl_s = 3", "feeds[0]"),
    "a rule without a TTL": ("[[feeds]]\nactor = 'a.test'", "feeds[0].ttl_s"),
}


@pytest.mark.parametrize(("text", "place"), BAD_TOML.values(), ids=BAD_TOML.keys())
def test_faults_in_feedproxy_toml_are_named_with_their_place(tmp_path, text, place):
    file = tmp_path / "feedproxy.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        load(CONFIG=file)
    assert str(file) in str(caught.value)
    assert place in str(caught.value)
    assert "\n" not in str(caught.value)


ACCOUNT = {"name": "main", "identifier": "a.test", "password_env": "PASSWORD"}
SITE = {"name": "blog", "token_env": "TOKEN", "accounts": ["main"]}
FEED = {"actor": "a.test", "ttl_s": 120}


@pytest.mark.parametrize(
    ("table", "key"),
    [
        *(("accounts", key) for key in (*ACCOUNT, "password", "service")),
        *(("sites", key) for key in (*SITE, "token", "hosts", "posts_per_hour", "callback_secrets_env")),
        *(("feeds", key) for key in (*FEED, "method")),
    ],
)
def test_what_is_wrong_in_feedproxy_toml_is_not_repeated_either(tmp_path, table, key):
    file = tmp_path / "feedproxy.toml"
    complaints = []
    for stray in ("swordfish-swordfish", "http://me:swordfish@h/x", ["swordfish/x"], 1.5):
        tables = {"accounts": ACCOUNT, "sites": SITE, "feeds": FEED}
        tables[table] = {**tables[table], key: stray}
        lines = (
            line
            for name, values in tables.items()
            for line in (
                f"[[{name}]]",
                *(f"{field} = {json.dumps(value)}" for field, value in values.items()),
            )
        )
        file.write_text("\n".join(lines))
        complaints.append(complaint(CONFIG=file))
    assert any(complaints)
    assert "swordfish" not in "".join(complaints)


def test_a_missing_feedproxy_toml_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"FEEDPROXY_CONFIG: cannot read .*nothing\.toml"):
        load(CONFIG=tmp_path / "nothing.toml")


def test_every_variable_can_be_set():
    """The defaults, spelled out, are accepted: no name of the documentation is missing."""
    shown = {name: value for name, value in load_settings({}).effective().items() if value}
    assert load_settings(shown) == load_settings({})
    assert set(Settings.model_fields) == {*variables(), "tenants"}
