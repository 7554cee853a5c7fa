"""Where a child process begins: how it loads its modules decides how soon it answers."""

from __future__ import annotations

import gc
import sys

# While modules are loaded there is no garbage to be looked for.
gc.disable()
# structlog loads it if it can, for coloured tracebacks that we do not print: 3 MB, and a tenth of the time.
sys.modules["rich"] = None  # type: ignore[assignment]

from proxy.runtime import main  # noqa: E402

if __name__ == "__main__":
    # Modules stay: whoever looks for garbage later need not look through them.
    gc.freeze()
    gc.enable()
    sys.exit(main(sys.argv[1:]))
