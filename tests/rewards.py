"""Reward functions for the tests, which workers import by name."""

import math

import numpy as np


def closeness(prompts, completions, ground_truth, **columns):
    """1 for the right number, less for one that is off, −3 for none."""
    return [
        1 / (1 + abs(int(text) - int(gold))) if text.isdigit() else -3.0
        for text, gold in zip(completions, ground_truth, strict=True)
    ]


def seen(prompts, completions, truncated, colour):
    """A number that tells what it was given."""
    return [
        len(prompt) + 10 * len(text) + 100 * cut + 1000 * (shade or 7)
        for prompt, text, cut, shade in zip(prompts, completions, truncated, colour, strict=True)
    ]


def everything(**columns):
    assert set(columns) == {"prompts", "completions", "truncated", "id", "ground_truth", "rule", "colour"}
    return [float(len(columns))] * len(columns["prompts"])


def array(completions, **_):
    return np.array([len(text) / 4 for text in completions], dtype=np.float32)


def tensors(completions, **_):
    import torch  # only here: every worker would load it

    return [torch.tensor(len(text) / 4) for text in completions]


def sevens(completions):
    """The share of 7 among a response's characters."""
    return [text.count("7") / max(1, len(text)) for text in completions]


def hangs(completions, **_):
    for text in completions:
        while text == "spin":
            pass
        if text == "fill":
            bytearray(10**11)
        if text == "deep":
            hangs(completions)
    return [-0.5 * len(text) for text in completions]


def always_hangs(completions, **_):
    while True:
        pass


def one_too_many(completions, **_):
    return [0.0] * (len(completions) + 1)


def nothing(completions, **_):
    return [None for _ in completions]


def nan(completions, **_):
    return [math.nan for _ in completions]


def infinite(completions, **_):
    return np.array([-math.inf for _ in completions])


def huge(completions, **_):
    return [10**39 for _ in completions]


def words(completions, **_):
    return ["0.5" for _ in completions]


def a_number(completions, **_):
    return 0.5


def raises(completions, **_):
    return [float(text.split()[-1]) for text in completions]


def other_arguments(completions, answers):
    return [0.0 for _ in completions]


def by_position(prompts, completions, /, **_):
    return [0.0 for _ in completions]
