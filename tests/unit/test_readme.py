"""The README names what there is."""

from __future__ import annotations

import re
from pathlib import Path

from proxy.settings import variables
from proxy.syndication.job import transitions_diagram

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_every_setting_is_documented_once():
    section = README.partition("\n## Settings\n")[2].partition("\n## ")[0]
    names = re.findall(r"`([A-Z][A-Z_]+)`", section)
    documented = [name.lower() for name in names if not name.startswith("FEEDPROXY_")]
    assert sorted(set(documented)) == sorted(variables())


def test_the_diagram_of_states_is_current():
    assert f"```mermaid\n{transitions_diagram().strip()}\n```" in README


def test_the_picture_of_the_house_names_every_module():
    house = README.partition("```\nproxy/\n")[2].partition("```")[0]
    proxy = Path(__file__).parents[2] / "proxy"
    modules = [path.relative_to(proxy) for path in proxy.rglob("*.py") if not path.name.startswith("__")]
    known = {module for module in modules if module.name in house}
    helpers = {"aof.py", "datadir.py", "orphan.py", "probe.py", "scripts.py", "version.py"}
    assert {str(module) for module in set(modules) - known if module.name not in helpers} == set()
