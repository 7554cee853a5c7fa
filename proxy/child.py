"""Where a child process begins. While its modules are loaded, nobody looks for garbage: there is none."""

from __future__ import annotations

import gc
import sys

gc.disable()

from proxy.runtime import main  # noqa: E402

if __name__ == "__main__":
    # Modules stay: whoever looks for garbage later need not look through them.
    gc.freeze()
    gc.enable()
    sys.exit(main())
