"""The script: small, whole, and never gone once it was released."""

from __future__ import annotations

import json
import re
from pathlib import Path

from proxy.version import VERSION
from proxy.widget.assets import Asset
from proxy.widget.script import HERE, RELEASED, Script, current_script, released_scripts

MOST_BYTES = 12 * 1024


def test_no_script_that_was_released_is_ever_changed_or_lost():
    listed = json.loads((Path(__file__).parent / "released_scripts.json").read_text(encoding="utf-8"))
    for version, digest in listed.items():
        assert Script((RELEASED / f"{version}-{digest}.js").read_bytes()).hash == digest
    assert len(list(RELEASED.iterdir())) == len(listed)
    assert released_scripts().keys() == set(listed.values())


def test_the_current_script_is_among_the_released():
    # After a change of the script: python -m tests.release_widget
    assert [path.name for path in RELEASED.glob(f"{VERSION}-*")] == [f"{VERSION}-{current_script().hash}.js"]


def test_it_is_the_source_without_its_comments():
    source = (HERE / "static" / "widget.js").read_text(encoding="utf-8")
    lines = [line.strip() for line in source.splitlines()]
    read = [line.partition(" // ")[0] for line in lines if not line.startswith(("//", "/**"))]
    assert bare(current_script().content.decode()) == bare("".join(read))
    assert len(bare("".join(read))) < len(bare(source))


def bare(text: str) -> str:
    """`text` without blanks, and without what ends the last declaration of a rule."""
    return re.sub(r"\s", "", text).replace(";}", "}")


def test_it_is_small():
    bodies = Asset(current_script().content, "text/javascript").bodies
    for coding in ("br", "gzip"):
        assert len(bodies[coding]) < MOST_BYTES


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
    assert ".feed{" in script.style
    assert "${" not in script.style
    assert script.integrity.startswith("sha384-")
