"""Response -> extracted answer -> reward. Text from a model is only ever compared, never executed."""

from __future__ import annotations


def extract(response: str) -> str | None:
    """The text after the last `=` of a response (all of it where there is none); None if that is blank."""
    answer = response.rpartition("=")[2].strip()
    return answer or None


def reward(response: str, ground_truth: str, ended: bool) -> float:
    """1.0 if the response ended by itself and its answer equals `ground_truth` digit for digit, else 0.0."""
    return float(ended and extract(response) == ground_truth)
