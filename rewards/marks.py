"""Partial credit for the embedded arithmetic: a mark for every step that is right, as a teacher gives it."""

import re

SUM = re.compile(r"\d{1,6}([+-]\d{1,6})*")


def mark(step: str, operations: int, answer: int) -> bool:
    """Is `85-13` a sum of so many operations with the value of the whole?"""
    right = SUM.fullmatch(step) and sum(map(int, re.findall(r"[+-]?\d+", step))) == answer
    return bool(right) and len(re.findall(r"[+-]", step)) == operations


def reward(prompts, completions, ground_truth, truncated, **columns) -> list[float]:
    """The share of steps that are right: `47+38-13=` takes two, `85-13=72`, each with one operation fewer."""
    rewards = []
    for prompt, completion, answer, cut in zip(prompts, completions, ground_truth, truncated, strict=True):
        operations = len(re.findall(r"[+-]", prompt))
        steps = completion.split("=")
        marks = [mark(step, operations - i, int(answer)) for i, step in enumerate(steps, start=1)]
        rewards.append(0.0 if cut else sum(marks) / max(operations, len(steps)))
    return rewards
