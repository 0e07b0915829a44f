"""How numbers with intervals are written."""

from __future__ import annotations

import pytest

from headstart.base.wording import log_loss_difference, points, share, signed


@pytest.mark.parametrize(
    ("number", "text"), [(0.0, "0.0"), (-0.0, "0.0"), (0.04, "0.0"), (-0.04, "0.0"), (0.06, "+0.1"), (-12.0, "-12.0")]
)
def test_nothing_has_no_sign(number: float, text: str) -> None:
    assert signed(number, 1) == text


def test_an_interval_is_written_where_it_says_something() -> None:
    assert share(0.834, 0.8, 0.861) == "83% (80–86)"
    assert share(1.0, 1.0, 1.0) == "100%"
    assert share(1.0, 0.9961, 1.0, 1) == "100.0% (99.6–100.0)"
    assert points(1.62, -0.31, 3.5) == "+1.6 points (-0.3 to +3.5)"
    assert points(0.0, -0.0, 0.0) == "0.0 points"
    assert points(0.0, -2.0, 2.0, 0) == "0 points (-2 to +2)"
    assert log_loss_difference(0.0123, -0.0004, 0.0271) == "0.012 (0.000 to +0.027)"
    assert log_loss_difference(0.0001, 0.0, 0.0003) == "0.000"
