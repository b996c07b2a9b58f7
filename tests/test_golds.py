"""Gold answers become text in one notation; the value of a number survives, and normalising twice changes nothing."""

from __future__ import annotations

import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmd.foreign_sets.golds import normalise_gold


@pytest.mark.parametrize(
    ("gold", "expected"),
    [
        ("073", "73"),
        (r"336^\circ", "336"),
        (r"30^{\circ}", "30"),
        ("45°", "45"),
        ("1,000", "1000"),
        ("-1,234,567.50", "-1234567.5"),
        (r"10,\!080", "10080"),
        ("1{,}000", "1000"),
        ("-0", "0"),
        ("- 5", "-5"),
        ("−5", "-5"),
        ("+5", "5"),
        ("22099999999999998951424", "22099999999999998951424"),
        (-(10**25) + 1, "-9999999999999999999999999"),
        (Decimal("12345678901234567890"), "12345678901234567890"),
        ("7" * 5000, "7" * 5000),
        ("3.50", "3.5"),
        (3.5, "3.5"),
        (73.0, "73"),
        (".0000672", "0.0000672"),
        ("100", "100"),
        ("5.", "5"),
        (1e-7, "0.0000001"),
        ("1.5e3", "1500"),
        ("2E-3", "0.002"),
        (" $\\frac{1}{2}$ ", r"\frac{1}{2}"),
        (r"\(073\)", "73"),
        ("$$ 12 $$", "12"),
        (r"\[x+1\]", "x+1"),
        ("$3$ or $4$", "$3$ or $4$"),
        (r"\(a\) or \(b\)", r"\(a\) or \(b\)"),
        (r"\$36", r"\$36"),
        ("1,-2", "1,-2"),
        ("12,34", "12,34"),
        ("0,123", "0,123"),
        ("x^2", "x^2"),
        ("x²", "x²"),
        ("1e9999", "1e9999"),
        ("5%", "5%"),
        (None, None),
        (" ", None),
        ("$ $", None),
        (float("nan"), None),
    ],
)
def test_golds_become_text(gold, expected):
    assert normalise_gold(gold) == expected


@pytest.mark.parametrize(
    ("gold", "message"),
    [
        (True, "must be text or a number, got True"),
        (["5"], "must be text or a number"),
        (1e17, "may have lost digits; store it as text"),
        (float("inf"), "store it as text"),
        ("\ud800", "surrogate"),
    ],
)
def test_a_gold_that_is_no_answer_is_refused(gold, message):
    with pytest.raises(ValueError, match=message):
        normalise_gold(gold)


@given(st.one_of(st.text(), st.text("0123456789.,+-eE^°$ \\()[]{}circ", max_size=12), st.from_regex(r"-?\d{1,30}")))
def test_normalising_a_gold_twice_changes_nothing(gold):
    once = normalise_gold(gold)
    assert once is None or normalise_gold(once) == once


@given(st.decimals(allow_nan=False, allow_infinity=False, places=6), st.booleans(), st.integers(0, 3))
def test_the_value_of_a_number_survives(number, grouped, zeros):
    written = f"{number:,f}" if grouped else "0" * zeros + f"{number:f}" if number >= 0 else f"{number:f}"
    assert Decimal(normalise_gold(written)) == number
    assert re.fullmatch(r"0|-?(0\.\d*[1-9]|[1-9]\d*(\.\d*[1-9])?)", normalise_gold(written))


@given(st.integers())
def test_an_integer_is_exact_however_it_is_stored(number):
    assert normalise_gold(number) == normalise_gold(f"{number:,}") == normalise_gold(f"${number}$") == str(number)
