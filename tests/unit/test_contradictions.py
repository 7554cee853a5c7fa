"""Settings that contradict each other: each contradiction is found, by itself, and says what to do."""

from __future__ import annotations

import pytest

from proxy.ops.contradictions import contradictions
from proxy.ops.findings import Finding
from proxy.settings import load_settings
from proxy.tenants import Tenants

TOKEN = "x" * 32
SITES = Tenants.model_validate(
    {
        "accounts": [{"name": "main", "identifier": "alice.test", "password_env": "P"}],
        "sites": [{"name": "blog", "token_env": "T", "accounts": ["main"]}],
    }
)


def found(tenants=None, **settings):
    given = {f"FEEDPROXY_{name}": str(value) for name, value in settings.items()}
    loaded = load_settings(given)
    return contradictions(loaded if tenants is None else loaded.model_copy(update={"tenants": tenants}))


SOUND = [
    {},
    {"HOST": "0.0.0.0", "ACTORS": "alice.test"},
    {"HOST": "::1", "OPS_LISTEN": "10.0.0.2:9090"},
    {"OPS_LISTEN": "[fd00::1]:9090"},
    {"OPS_LISTEN": "localhost:9090"},
    {"PUBLIC_URL": "https://feeds.example", "ACTORS": "alice.test"},
    {
        "HOST": "0.0.0.0",
        "PUBLIC_URL": "https://feeds.example",
        "ACTORS": "alice.test",
        "TRUSTED_PROXIES": "10.0.0.0/8",
    },
    {"PUBLIC_URL": "http://192.168.1.2:8080", "ACTORS": "alice.test", "ADMIN_TOKEN": TOKEN},
    {"MEMORY_MB": 16, "LEASE_S": 5, "DEAD_RETENTION_DAYS": 7},
]
CONTRADICTORY = [
    ({"HOST": "0.0.0.0"}, "ACTORS"),
    ({"PUBLIC_URL": "https://feeds.example"}, "ACTORS"),
    ({"OPS_LISTEN": "0.0.0.0:9090"}, "OPS_LISTEN"),
    ({"OPS_LISTEN": "[::]:9090"}, "OPS_LISTEN"),
    ({"OPS_LISTEN": "203.0.113.4:9090"}, "OPS_LISTEN"),
    ({"HOST": "::", "PUBLIC_URL": "https://feeds.example", "ACTORS": "alice.test"}, "TRUSTED_PROXIES"),
    ({"PUBLIC_URL": "http://feeds.example", "ACTORS": "alice.test", "ADMIN_TOKEN": TOKEN}, "PUBLIC_URL"),
    ({"TRUSTED_PROXIES": "0.0.0.0/0"}, "TRUSTED_PROXIES"),
    ({"TRUSTED_PROXIES": "::/1"}, "TRUSTED_PROXIES"),
    ({"CLIENT_EXEMPT": "0.0.0.0/0"}, "CLIENT_EXEMPT"),
    ({"CLIENT_MISSES_PER_MIN": 300}, "CLIENT_MISSES_PER_MIN"),
    ({"UPSTREAM_RPS": 1}, "CLIENT_MISSES_PER_MIN"),
    ({"MEMORY_MB": 15}, "MEMORY_MB"),
    ({"CLIENT_MAX_AGE": 601}, "CLIENT_MAX_AGE"),
    ({"NEGATIVE_TTL": 601}, "NEGATIVE_TTL"),
    ({"STALE_IF_ERROR": 3600}, "STALE_IF_ERROR"),
    ({"RETRY_BASE_MS": 4000, "UPSTREAM_TIMEOUT": 4}, "RETRY_BASE_MS"),
    ({"UPSTREAM_CONCURRENCY": 1}, "UPSTREAM_CONCURRENCY"),
    ({"SYNDICATION_RETRY_DELAYS": "43200,43200", "MAX_POST_AGE_DAYS": 1}, "SYNDICATION_RETRY_DELAYS"),
    ({"LEASE_S": 4.9}, "LEASE_S"),
    ({"DEAD_RETENTION_DAYS": 6}, "DEAD_RETENTION_DAYS"),
]


@pytest.mark.parametrize("settings", SOUND, ids=str)
def test_what_is_sound_is_left_alone(settings):
    assert found(**settings) == [Finding("settings", "pass")]


@pytest.mark.parametrize(("settings", "name"), CONTRADICTORY, ids=str)
def test_each_contradiction_is_found_and_no_other(settings, name):
    [finding] = found(**settings)
    assert (finding.part, finding.status) == ("settings", "warn")
    assert f"FEEDPROXY_{name} " in finding.output
    advice = finding.output.rpartition(": ")[2]
    assert any(word in advice for word in ("Name ", "Have ", "Put ", "Lower ", "Raise ", "Shorten ", "Give "))


def test_tokens_of_sites_are_not_to_cross_the_net_in_clear():
    settings = {"PUBLIC_URL": "http://feeds.example", "ACTORS": "alice.test"}
    assert found(**settings) == [Finding("settings", "pass")]
    [finding] = found(SITES, **settings)
    assert "TLS" in finding.output


def test_several_are_all_told():
    assert len(found(MEMORY_MB=1, LEASE_S=1, HOST="0.0.0.0")) == 3
