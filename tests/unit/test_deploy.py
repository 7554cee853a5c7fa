"""The examples in deploy/ are sound by the schemas of those who read them, and name what there is."""

from __future__ import annotations

import json
import re
import tomllib
from importlib.resources import files
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from jsonschema.validators import validator_for

from proxy.ops.contradictions import contradictions
from proxy.settings import load_settings, variables
from proxy.tenants import Tenants
from proxy.web_server import KEEP_ALIVE_S

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
KUBERNETES = "1.31"


def documents(path):
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def manifests():
    return {
        (path.name, each["kind"], each["metadata"]["name"]): each for path in MANIFESTS for each in _of(path)
    }


def _of(path):
    return [] if path.name == "kustomization.yaml" else documents(path)


def pods():
    return [
        each["spec"]["template"]["spec"]
        for (_, kind, _), each in manifests().items()
        if kind in ("Deployment", "StatefulSet")
    ]


def settings_of_examples():
    """What each example sets for a feedproxy, by the example's name."""
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    for name in ("proxy-1", "proxy-2", "worker"):
        yield f"compose {name}", compose["services"][name]["environment"]
    for unit in sorted((DEPLOY / "systemd").glob("*.service")):
        pairs = re.findall(r"^Environment=(\w+)=(.*)$", unit.read_text(), re.MULTILINE)
        yield unit.name, dict(pairs)
    yield "kubernetes", manifests()["config.yaml", "ConfigMap", "feedproxy"]["data"]


EXAMPLES = dict(settings_of_examples())


@pytest.mark.parametrize("example", EXAMPLES)
def test_each_example_limits_whose_feeds_are_served_and_sets_what_there_is(example):
    given = {name: value for name, value in EXAMPLES[example].items() if name != "FEEDPROXY_CONFIG"}
    assert given.keys() <= {f"FEEDPROXY_{name.upper()}" for name in variables()}
    settings = load_settings(given)
    assert settings.actors == ("alice.example.com",)
    assert [finding.output for finding in contradictions(settings)] == [""]


def test_the_accounts_of_the_examples_can_be_read():
    compose = (DEPLOY / "feedproxy.toml").read_text()
    kubernetes = manifests()["config.yaml", "ConfigMap", "feedproxy-toml"]["data"]["feedproxy.toml"]
    secrets = manifests()["secrets.example.yaml", "Secret", "feedproxy"]["stringData"]
    named = re.findall(r"^(\w+)=$", (DEPLOY / "secrets.env.example").read_text(), re.MULTILINE)
    for text in (compose, kubernetes):
        tenants = Tenants.model_validate(tomllib.loads(text))
        assert tenants.referenced_env() < set(named)
        assert tenants.referenced_env() < set(secrets)


@pytest.mark.parametrize("manifest", manifests(), ids="/".join)
def test_manifests_are_what_kubernetes_knows(manifest):
    kubernetes_validate.validate(manifests()[manifest], KUBERNETES, strict=True)


def test_the_kustomization_names_every_manifest_but_the_secrets():
    (listed,) = documents(DEPLOY / "kubernetes" / "kustomization.yaml")
    others = {path.name for path in MANIFESTS} - {"kustomization.yaml", "secrets.example.yaml"}
    assert sorted(listed["resources"]) == sorted(others)


def test_pods_are_probed_and_can_do_no_harm():
    assert len(pods()) == 3
    for pod in pods():
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        (container,) = pod["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert "readinessProbe" in container
        assert "memory" in container["resources"]["limits"]
        if "feedproxy" in container["image"]:
            assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
            assert container["livenessProbe"]["httpGet"]["path"] == "/livez"


def test_autoscaler_budgets_and_services_select_what_there_is():
    labels = {
        name: each["spec"]["template"]["metadata"]["labels"]
        for (_, kind, name), each in manifests().items()
        if kind in ("Deployment", "StatefulSet")
    }
    for (_, kind, name), each in manifests().items():
        if kind == "HorizontalPodAutoscaler":
            assert each["spec"]["scaleTargetRef"]["name"] in labels
        elif kind == "PodDisruptionBudget":
            assert each["spec"]["selector"]["matchLabels"].items() <= labels[name].items()
        elif kind == "Service":
            assert each["spec"]["selector"].items() <= labels[name].items()


def test_compose_is_what_its_specification_knows():
    path = files("check_jsonschema").joinpath("builtin_schemas", "vendor", "compose-spec.json")
    schema = json.loads(path.read_text())
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    faults = [error.message for error in validator_for(schema)(schema).iter_errors(compose)]
    assert faults == []
    services = compose["services"]
    assert services.keys() == {"proxy-1", "proxy-2", "worker", "redis", "prometheus", "grafana"}
    assert services["worker"]["deploy"]["replicas"] == 2
    assert services["redis"]["command"][1:3] == ["--appendonly", "yes"]
    assert all(services[name]["read_only"] for name in ("proxy-1", "proxy-2", "worker", "redis"))


@pytest.mark.parametrize(
    ("example", "setting"),
    [
        ("nginx/feedproxy-upstream.conf", r"^ *keepalive_timeout (\d+)s;$"),
        ("caddy/Caddyfile", r"^\t*keepalive (\d+)s$"),
    ],
)
def test_servers_before_us_close_idle_connections_before_we_do(example, setting):
    """A request into a connection that is just being closed is lost, and a POST is not sent again."""
    (closes_after_s,) = re.findall(setting, (DEPLOY / example).read_text(), re.MULTILINE)
    assert int(closes_after_s) + 2 <= KEEP_ALIVE_S


def test_what_compose_mounts_and_scrapes_is_there():
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    for service in compose["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert source in compose["volumes"] or (DEPLOY / source).exists(), volume
    jobs = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    hosts = [target.partition(":")[0] for target in jobs[0]["static_configs"][0]["targets"]]
    assert {*hosts, *jobs[1]["dns_sd_configs"][0]["names"]} <= compose["services"].keys()


def test_grafana_finds_its_dashboard_and_source():
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = documents(provisioning / "datasources" / "prometheus.yaml")[0]["datasources"]
    dashboard = json.loads((DEPLOY / "grafana" / "dashboards" / "feedproxy.json").read_text())
    for panel in dashboard["panels"]:
        assert panel["type"] == "row" or panel["datasource"]["uid"] == source["uid"]
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)


def test_the_image_has_what_the_build_needs_and_no_more():
    instructions = re.findall(r"^COPY ([^-].*) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    copied = {name for line in instructions for name in line.split()}
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == copied
    assert all((ROOT / name).exists() for name in copied)
