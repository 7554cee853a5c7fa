"""The script: small, whole, and never gone once it was released."""

from __future__ import annotations

import re

from proxy.version import VERSION
from proxy.widget.assets import Asset
from proxy.widget.script import RELEASED, Script, current_script, released_scripts

MOST_BYTES = 12 * 1024


def test_the_current_script_is_among_the_released():
    # After a change of the script: cp static/widget.js released/VERSION-HASH.js, in place of this version's.
    script = current_script()
    assert [path.name for path in RELEASED.glob(f"{VERSION}-*")] == [f"{VERSION}-{script.hash}.js"]


def test_released_scripts_are_what_their_names_say():
    for path in RELEASED.iterdir():
        assert path.suffix == ".js"
        assert path.stem.endswith(f"-{Script(path.read_bytes()).hash}")
    assert len(released_scripts()) == len(list(RELEASED.iterdir()))


def test_it_is_small():
    bodies = Asset(current_script().content, "text/javascript").bodies
    assert len(bodies["br"]) < MOST_BYTES


def test_every_language_has_every_word():
    words = current_script().words
    assert {"en", "de"} <= words.keys()
    for language, table in words.items():
        assert table.keys() == words["en"].keys(), language
        assert all(table.values())
        assert {name for name in table if "{}" in table[name]} == {"updated", "posts", "repost", "replyTo"}


def test_it_makes_no_markup_of_text():
    source = current_script().content.decode()
    ways = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function"
    assert re.findall(ways, source) == []


def test_what_pages_need_before_it_runs_can_be_had():
    script = current_script()
    assert script.format == "1"
    assert ".feed {" in script.style
    assert "${" not in script.style
    assert script.integrity.startswith("sha384-")
