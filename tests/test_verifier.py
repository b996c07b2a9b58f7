"""The exact rule: the text after the last `=`, digit for digit, of a response that ended."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmd.verifier import extract, reward


@pytest.mark.parametrize(
    ("response", "ended", "expected"),
    [
        ("85-13=72", True, 1.0),
        ("72", True, 1.0),
        ("85-13=72", False, 0.0),
        ("85-13=73", True, 0.0),
        ("72=", True, 0.0),
        ("=72", True, 1.0),
        ("072", True, 0.0),
        ("7272", True, 0.0),
        ("72=85", True, 0.0),
        ("", True, 0.0),
    ],
)
def test_reward(response, ended, expected):
    assert reward(response, "72", ended) == expected


@given(st.text(), st.text(alphabet="0123456789", min_size=1))
def test_only_what_follows_the_last_sign_counts(prefix, answer):
    assert extract(f"{prefix}={answer}") == answer
    assert reward(f"{prefix}={answer}", answer, True) == 1.0
    assert extract(prefix + "=") is None
