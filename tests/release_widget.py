"""Put the widget's script, as it is now, among the released: `python -m tests.release_widget`.

In place of the one of this version, if there is one: no page has that until this version is released.
"""

from __future__ import annotations

import json
from pathlib import Path

from proxy.version import VERSION
from proxy.widget.script import RELEASED, current_script

# What released/ must hold, by version; kept apart from it, so that nothing gets lost there unnoticed.
LIST = Path(__file__).parent / "unit" / "released_scripts.json"


def main() -> None:
    script = current_script()
    for path in RELEASED.glob(f"{VERSION}-*"):
        path.unlink()
    (RELEASED / f"{VERSION}-{script.hash}.js").write_bytes(script.content)
    released = json.loads(LIST.read_text(encoding="utf-8")) | {VERSION: script.hash}
    LIST.write_text(f"{json.dumps(released, indent=2)}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
