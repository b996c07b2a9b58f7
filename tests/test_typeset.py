"""How the cells of tables are written."""

from __future__ import annotations

import math

import pytest

from pmd.evaluators.intervals import Interval
from pmd.paper.typeset import cell_text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Interval(-1.541, -3.149, 0.0683), "−1.54 [−3.15, 0.07]"),
        (Interval(19.83, 9.97, 29.7), "19.8 [10.0, 29.7]"),
        (Interval(0.4931, 0.2319, 1.038), "0.49 [0.23, 1.04]"),
        (Interval(-0.00455, -0.1004, 0.0911), "−0.005 [−0.100, 0.091]"),
        (Interval(-0.0004, -0.2, 0.25), "0.000 [−0.200, 0.250]"),  # no minus before nothing
        (Interval(1234.4, 1200.0, 1300.0), "1,234 [1,200, 1,300]"),
        (Interval(0.0, 0.0, 0.0), "0 [0, 0]"),
        (Interval(2.0, 1.0, math.inf), "2.00 [1.00, inf]"),
        (Interval(2.0, math.nan, math.nan), "2.00"),
        (Interval(math.nan, math.nan, math.nan), "–"),
        (None, "–"),
        (0.012345, "0.0123"),
        (1234.5, "1,234"),
        ("text", "text"),
    ],
)
def test_numbers_have_three_digits_and_an_interval_one_number_of_decimals(value, text):
    assert cell_text(value) == text
