"""Whatever is sent to a running proxy with a real queue: no 500, and nothing stored that was refused."""

from __future__ import annotations

import contextlib
import uuid

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import (
    ignored_auth,
    negative_data_rejection,
    positive_data_acceptance,
)

from harness.newsroom import published_at, token_of
from harness.queue import QueueOfTest
from integration.processes import ServeProcess
from proxy.syndication.openapi import openapi_document

TOML = """
[[accounts]]
name = "main"
identifier = "did:plc:main"
password_env = "PASSWORD_main"

[[sites]]
name = "blog"
token_env = "TOKEN_blog"
accounts = ["main"]
posts_per_hour = 100000
"""
AUTHORIZED = {"Authorization": f"Bearer {token_of('blog')}"}
SCHEMA = schemathesis.openapi.from_dict(openapi_document())


class Running:
    """A proxy as a process, and what its store holds."""

    def __init__(self, serve: ServeProcess, stored: QueueOfTest) -> None:
        self.url = serve.base_url
        self.serve = serve
        self.stored = stored
        self.session = requests.Session()
        self.session.trust_env = False
        # A job that is over: what follows it ends at once.
        post = {"id": "seed", "url": "https://a.example/", "title": "T", "published_at": published_at()}
        with httpx.Client(base_url=self.url, headers=AUTHORIZED, trust_env=False, verify=False) as client:
            self.job = client.post("/syndicate", json=post).json()["id"]
            assert client.delete(f"/syndicate/{self.job}").json()["status"] == "canceled"

    def held(self) -> dict[str, bytes]:
        """Everything there is of jobs and posts."""
        with self.stored.redis.pipeline(transaction=False) as pipe:
            keys = sorted(self.stored.keys())
            for key in keys:
                pipe.execute_command("DUMP", self.stored.key(key), NEVER_DECODE=[])
            return dict(zip(keys, pipe.execute(), strict=True))


@pytest.fixture(scope="module")
def running(valkey_url, tmp_path_factory):
    directory = tmp_path_factory.mktemp("fuzz")
    config = directory / "feedproxy.toml"
    config.write_text(TOML)
    namespace = f"test-{uuid.uuid4().hex[:12]}"
    stored = QueueOfTest(valkey_url, namespace)
    with pytest.MonkeyPatch.context() as patch, contextlib.closing(stored):
        patch.setenv("PASSWORD_main", "app-password-of-main")
        patch.setenv("TOKEN_blog", token_of("blog"))
        settings_ = {"REDIS_URL": valkey_url, "NAMESPACE": namespace, "CONFIG": config}
        # Nothing of it may go out: there is no network to be asked.
        settings_ |= {"UPSTREAM": "http://127.0.0.1:9", "PLC_URL": "http://127.0.0.1:9"}
        with ServeProcess(directory / "data", **settings_) as serve:
            serve.wait_ready()
            yield Running(serve, stored)
            assert not [e for e in serve.events() if e.get("level") in ("error", "critical")]


# No schema can say that hosts, accounts and instants may be wrong, and that a batch fails item by item;
# unknown parameters of a query are ignored on purpose. Wrong tokens are limited, which is tried elsewhere.
LENIENT = (positive_data_acceptance, negative_data_rejection, ignored_auth)
STRICT = (positive_data_acceptance, ignored_auth)


@SCHEMA.parametrize()
@settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_no_500_and_nothing_stored_that_was_refused(running, case):
    if "job" in case.path_parameters and len(str(case.path_parameters["job"])) % 2:
        case.path_parameters["job"] = running.job
    if isinstance(case.query, dict):
        case.query.pop("wait", None)  # its bounds are tried without a server
    before = running.held()
    response = case.call(base_url=running.url, session=running.session, headers=AUTHORIZED)
    assert response.status_code not in (500, 501, 502, 504)
    if response.status_code >= 400:
        assert running.held() == before
    # What is too large is refused as such, whatever else is wrong with it.
    strict = case.operation.label == "POST /syndicate" and response.status_code != 413
    excluded = STRICT if strict else LENIENT
    case.validate_response(response, headers=AUTHORIZED, excluded_checks=list(excluded))
