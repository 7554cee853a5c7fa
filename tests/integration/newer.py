"""feedproxy as its next version will be: it writes the next format numbers, and reads the present ones.

Run as `newer.py serve`, whose children are this file, with the arguments of proxy.child; or as `newer.py
worker`.
"""

from __future__ import annotations

import os
import sys

from proxy.feeds import entry
from proxy.store import link
from proxy.syndication import job

job.FORMAT += 1
job.READABLE_FORMATS = frozenset((job.FORMAT - 1, job.FORMAT))
link.PATIENCE_S = 5.0  # as in patient.py
entry.FORMAT += 1
entry._READABLE = frozenset((entry.FORMAT - 1, entry.FORMAT))


def main() -> int:
    # Only now: they take the numbers over.
    from proxy import runtime, supervisor
    from proxy.settings import load_settings
    from proxy.telemetry import configure_logging

    if sys.argv[1:] == ["worker"]:
        return runtime.run(runtime.Handed(role="worker"))
    if sys.argv[1:] != ["serve"]:
        return runtime.main(sys.argv[1:])
    settings = load_settings(os.environ)
    configure_logging(settings, role="supervisor")
    supervisor.serve(settings, os.environ, child_command=(sys.executable, "-P", __file__))
    return 0


if __name__ == "__main__":
    sys.exit(main())
