"""Random histories of purchases, refunds, disputes, usage and expiry against a plain model.

More of them: `pytest tests/integration/ledger/test_histories.py --histories 5000`.
"""

import pytest

from support.histories import Histories
from support.tenant import Shop
from support.tiers import of_tier

STEPS = 10


@pytest.mark.parametrize("stops_at_zero", [False, True])
def test_every_history_agrees_with_the_plain_model(
    shop: Shop, pytestconfig: pytest.Config, *, stops_at_zero: bool
) -> None:
    count = pytestconfig.getoption("--histories") or of_tier(20, 60)
    histories = Histories.open(shop, count, seed=1, stops_at_zero=stops_at_zero)

    for _ in range(STEPS):
        histories.step()
        histories.check()

    assert shop.faults() == []
