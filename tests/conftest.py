"""Fixtures of every tier."""

from __future__ import annotations

import os
import sys
import tempfile
import uuid

import pytest
import structlog

from harness.clock import FakeClock
from harness.proxy import running_proxy
from harness.upstream import Upstream
from harness.valkey import StoreOfTest, valkey_server
from integration.chaos import Plan
from integration.soak import Plan as SoakPlan


def pytest_configure(config):
    """Let the processes that tests start share what is compiled, though nothing may be left of it."""
    if sys.dont_write_bytecode:
        compiled = tempfile.TemporaryDirectory(prefix="feedproxy-compiled-")
        config.add_cleanup(compiled.cleanup)
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = compiled.name


def pytest_addoption(parser):
    parser.addoption("--chaos-jobs", type=int, help="posts of a run of chaos; the more, the longer")
    parser.addoption("--crowd", type=int, default=1000, help="new feeds that one greedy client asks for")
    parser.addoption("--soak-requests", type=int, help="requests of a soak; the more, the longer")
    parser.addoption("--soak-seed", type=int, default=1, help="what a soak follows from")
    parser.addoption("--long", action="store_true", help="promises of the fleet at full size, and in time")
    parser.addoption("--chaos-seed", type=int, default=1, help="what a run of chaos follows from")


@pytest.fixture(autouse=True)
def logging_of_one_test(monkeypatch):
    """Loggers that a test has configured are not those of the next one."""
    configure = structlog.configure
    uncached = {"cache_logger_on_first_use": False}
    monkeypatch.setattr(structlog, "configure", lambda **options: configure(**options | uncached))
    yield
    structlog.reset_defaults()


@pytest.fixture
def chaos_plan(request):
    """The run of chaos that the command line asks for, else a short one of so many posts."""
    given = request.config.getoption

    def plan(jobs):
        jobs = given("--chaos-jobs") or jobs
        return Plan(seed=given("--chaos-seed"), jobs=jobs, outages=max(2, jobs // 100))

    return plan


@pytest.fixture(scope="session")
def long(request):
    """Whether sizes and times are to be those that are promised, on a machine that does nothing else."""
    return request.config.getoption("--long")


@pytest.fixture
def soak_plan(request):
    """The soak that the command line asks for, else a short one."""
    seed, requests = (request.config.getoption(f"--soak-{name}") for name in ("seed", "requests"))
    if requests:
        return SoakPlan(seed=seed, requests=requests, keys=1000, pause_s=2.0, fault_s=2.0)
    return SoakPlan(seed=seed, requests=10_000, keys=200, pause_s=0.3, fault_s=0.7)


@pytest.fixture
def crowd(request):
    """For so many new feeds a greedy client asks."""
    return request.config.getoption("--crowd")


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture(scope="session")
def valkey_url():
    with valkey_server() as url:
        yield url


@pytest.fixture
async def upstream():
    async with Upstream() as server:
        yield server


@pytest.fixture
def store(valkey_url):
    """A part of the store that is this test's own."""
    own = StoreOfTest(valkey_url, f"test-{uuid.uuid4().hex[:12]}")
    yield own
    own.close()


@pytest.fixture
def start(upstream, store):
    """Start a proxy before `upstream` on `store`: `async with start(CACHE_TTL=1) as proxy`."""

    def starting(**options):
        return running_proxy(upstream.url, store, **options)

    return starting
