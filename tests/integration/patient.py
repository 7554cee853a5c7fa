"""feedproxy with more patience with the store, which is slow where tests are because the machine is.

Run as `patient.py serve`, whose children are this file, or with the arguments of proxy.child.
"""

from __future__ import annotations

import os
import sys

from proxy.store import link

link.PATIENCE_S = 5.0


def main() -> int:
    # Only now: they take the number over.
    from proxy import runtime, supervisor
    from proxy.settings import load_settings
    from proxy.telemetry import configure_logging

    if sys.argv[1:2] != ["serve"]:
        return runtime.main(sys.argv[1:])
    settings = load_settings(os.environ)
    configure_logging(settings, role="supervisor")
    supervisor.serve(settings, os.environ, child_command=(sys.executable, "-P", __file__))
    return 0


if __name__ == "__main__":
    sys.exit(main())
