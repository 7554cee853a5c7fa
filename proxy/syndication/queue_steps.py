"""The steps of the queue's script, each with the parts of store/lua that it needs and no more."""

from __future__ import annotations

from typing import Final

from proxy.store.scripts import steps

_LEASING: Final = (
    "queue_finish",
    "queue_retry",
    "queue_fail",
    "queue_release",
    "queue_enrich",
    "queue_notify",
    "queue_take",
    "queue_introduce",
)
# What one step is called -> the script that carries it out.
STEPS: Final = steps(
    ["queue", "queue_keep"],
    [
        (
            [],
            [
                "queue_heartbeat",
                "queue_gate",
                "queue_pause",
                "queue_wake",
                "queue_mark",
                "queue_standing",
            ],
        ),
        (
            ["queue_errand", "queue_deliver"],
            ["queue_intend", "queue_read", "queue_list", "queue_promote", "queue_reap", "queue_sweep"],
        ),
        (
            ["queue_errand", "queue_deliver", "queue_lease"],
            [*_LEASING, "queue_reconcile", "queue_accounts"],
        ),
        (
            ["queue_errand", "queue_deliver", "queue_change"],
            ["queue_enqueue", "queue_cancel", "queue_requeue", "queue_dead"],
        ),
    ],
)
