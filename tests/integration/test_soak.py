"""No reader of a fleet that has trouble with everything is given what is wrong."""

from __future__ import annotations

import pytest

from integration.soak import Plan, soak

LONG = 100_000


@pytest.mark.timeout(3600)
async def test_nobody_is_given_what_is_wrong(tmp_path, soak_plan):
    plan: Plan = soak_plan
    result = await soak(plan, tmp_path)
    print(f"\nsoak: {result.line()}")  # noqa: T201
    assert result.wrong == []
    assert result.lost == 0
    assert sum(result.statuses.values()) >= plan.requests
    assert result.statuses.keys() <= {200, 502, 503, 504}
    assert result.statuses[200] > 0.5 * plan.requests
    assert sum(result.incidents.values()) >= 5
    if plan.requests >= LONG:
        assert result.growth <= 0.05
