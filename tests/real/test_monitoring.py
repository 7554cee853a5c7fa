"""The Grafana dashboard asks Debian's Prometheus, which has scraped a run: every query has data."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import re
import socket
import subprocess
import tempfile
from pathlib import Path

import httpx
import pytest
from real.edges import DEPLOY, echo

from harness.waiting import until_true
from harness.workers import nursery_in
from integration.deployment import AccountOfTest, Deployment

DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "feedproxy.json").read_text(encoding="utf-8"))
NOBODYS = "http://127.0.0.1:9"


@pytest.fixture
def deployment():
    """With an account whose posts never arrive: nobody knows where it is."""
    with (
        echo() as api,
        tempfile.TemporaryDirectory(prefix="fp-") as directory,
        nursery_in(Path(directory)) as nursery,
        Deployment(
            Path(directory),
            nursery,
            [AccountOfTest(name="main", identifier="did:plc:nobody", password="x" * 20)],
            UPSTREAM=f"http://127.0.0.1:{api}",
            UPSTREAM_RPS=1000,
            CLIENT_EXEMPT="127.0.0.0/8",
            PLC_URL=NOBODYS,
            WORKERS=2,
        ) as deployment,
    ):
        yield deployment


@pytest.fixture
def prometheus(deployment, tmp_path):
    """A client of a Prometheus that scrapes the deployment every second."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    target = deployment.serve.base_url.removeprefix("http://")
    config = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [{"job_name": "feedproxy", "static_configs": [{"targets": [target]}]}],
    }
    (tmp_path / "prometheus.yml").write_text(json.dumps(config), encoding="utf-8")
    command = [
        "prometheus",
        f"--config.file={tmp_path}/prometheus.yml",
        f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, verify=False) as client:

            def ready():
                assert process.poll() is None, (tmp_path / "log").read_text(encoding="utf-8")
                with contextlib.suppress(httpx.TransportError):
                    return client.get("/-/ready").status_code == 200

            until_true(ready, "Prometheus is ready")
            yield client
    finally:
        process.terminate()
        process.wait(30)


def queries():
    """What the dashboard asks, and what the alerts are made of, by a name for each."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"].replace("$__rate_interval", "30s").replace("$instance", ".*")
            assert "$" not in expression
            yield f"{panel['title']} {target['refId']}", expression
    alerts = (DEPLOY / "prometheus" / "alerts.yml").read_text(encoding="utf-8")
    for name in set(re.findall(r"\bfeedproxy_[a-z_]+", alerts)):
        yield f"alerts: {name}", name


def has_data(prometheus, expression):
    answer = prometheus.get("/api/v1/query", params={"query": expression}).json()
    assert answer["status"] == "success", answer
    return any(not math.isnan(float(series["value"][1])) for series in answer["data"]["result"])


def hosts(prometheus):
    """What there is to choose from at the top of the dashboard."""
    (variable,) = DASHBOARD["templating"]["list"]
    metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]).groups()
    return prometheus.get(f"/api/v1/label/{label}/values", params={"match[]": metric}).json()["data"]


def test_every_query_of_dashboard_and_alerts_has_data(deployment, prometheus):
    lacking = dict(queries())
    assert len(lacking) > 40
    deployment.post("never-arrives")
    actors = (f"/xrpc/app.bsky.actor.getProfile?actor=a{number}.example.com" for number in itertools.count())

    def complete():
        for path in itertools.islice(actors, 5):
            for _ in range(3):
                assert deployment.client.get(path).status_code == 200
        for name in list(lacking):
            if has_data(prometheus, lacking[name]):
                del lacking[name]
        return not lacking

    try:
        until_true(complete, "every query has data", deadline_s=60)
    except AssertionError:
        pytest.fail(f"without data: {lacking}")
    assert hosts(prometheus) == [deployment.serve.base_url.removeprefix("http://")]
