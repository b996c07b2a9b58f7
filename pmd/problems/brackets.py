r"""Brackets in mathematical text: what a brace encloses, and what stands outside all brackets."""

from __future__ import annotations

BOX_LENGTH = 2000
"""How many characters a pair of braces may enclose."""


def braced(text: str, start: int) -> str | None:
    """The text from `start` to the closing brace that matches the brace before `start`; None if it is not closed within
    BOX_LENGTH characters.
    """
    depth, escaped = 1, False
    for i, character in enumerate(text[start : start + BOX_LENGTH]):
        if not escaped and character in "{}":
            depth += 1 if character == "{" else -1
            if depth == 0:
                return text[start : start + i]
        escaped = character == "\\" and not escaped
    return None


def depths(text: str) -> list[int]:
    """How many brackets of any kind are open after each character."""
    depth, found = 0, []
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        found.append(depth)
    return found


def split_outside(text: str, separators: str) -> list[str]:
    """The text split at the separators, each one character, that stand outside all brackets."""
    pieces, start = [], 0
    for i, depth in enumerate(depths(text)):
        if depth == 0 and text[i] in separators:
            pieces.append(text[start:i])
            start = i + 1
    return [*pieces, text[start:]]


def equals_signs(text: str) -> list[int]:
    """The places of the equals signs outside all brackets, without those of `<=`, `>=`, `!=` and `:=`."""
    found = depths(text)
    return [i for i, c in enumerate(text) if c == "=" and found[i] == 0 and text[i - 1 : i] not in tuple("<>!:\\")]
