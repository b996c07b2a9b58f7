"""From a question to the token ids that a policy continues: a prompt template, then the tokenizer's chat template.

A prompt template is a text before and a text after the question. `unwrap` removes exactly what `render` adds, so a
problem set that comes in one template can be used with another.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from pmd.params import require

if TYPE_CHECKING:  # transformers takes seconds to load, and most importers of this file need only the templates
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


class Template(NamedTuple):
    """The texts before and after the question."""

    before: str
    after: str


TEMPLATES = {
    "plain": Template("", ""),  # for the embedded task, whose question is the prompt
    "dapo": Template(  # exactly as in DAPO-Math-17k, so that results are comparable with policies trained on it
        "Solve the following math problem step by step. The last line of your response should be of the form "
        "Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n",
        '\n\nRemember to put your answer on its own line after "Answer:".',
    ),
    "boxed": Template("", "\n\nReason step by step, and give the final answer within \\boxed{}."),
}
"""The template dapo asks for a last line such as `Answer: 5`, the template boxed for an answer such as `\\boxed{5}`."""


def render(template: str, question: str) -> str:
    """The prompt: the question in a template; ValueError if no template has that name."""
    require(template in TEMPLATES, "template", template, f"one of {', '.join(TEMPLATES)}")
    before, after = TEMPLATES[template]
    return before + question + after


def unwrap(template: str, prompt: str) -> str | None:
    """The question from which `render` makes this prompt; None if the prompt is not in the template."""
    before, after = TEMPLATES[template]
    wrapped = len(prompt) >= len(before) + len(after) and prompt.startswith(before) and prompt.endswith(after)
    return prompt[len(before) : len(prompt) - len(after)] if wrapped else None


def question(prompt: str) -> str:
    """The question of a prompt that is in any of the templates or in none."""
    found = (unwrap(name, prompt) for name in TEMPLATES if name != "plain")
    return next((text for text in found if text is not None), prompt)


_ASKS_FOR_BOX = re.compile(
    r"\\boxed\s*\{\s*(?:\\text\{)?(?:\}|\.\.\.|…|[<\[]?\s*(?:your|the|final|answer|result|ans)\b)|"
    r"\b(?:within|inside|in|using|use|with|into|by)\s(?:(?:a|the|latex|command|format)\s){0,2}[`'\"$*]*\\{1,2}boxed\b|"
    r"\b(?:after|following|with|by)\s[`'\"]*####|[`'\"“]\s*####|[`'\"“](?:so )?the (?:final )?answer is\b|<answer>",
    re.IGNORECASE,
)
_ASKS_FOR_LINE = re.compile(
    r"\b(?:line|form|format|after|with|write|starting|beginning)\b[^.\n]{0,60}?\bAnswer:|[\"'`“‘]\**Answer:",
    re.IGNORECASE,
)


def asked_rule(question: str) -> str | None:
    """The rule that reads the answer where the question itself says how to give it; None if it does not say.

    "dapo" for a line such as `Answer: 5`, else "math" for a box, `####` or `<answer>`.
    """
    if _ASKS_FOR_LINE.search(question):
        return "dapo"
    return "math" if _ASKS_FOR_BOX.search(question) else None


def encode(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """The token ids of one prompt, as a list.

    If the tokenizer has a chat template, the prompt is the user's message, followed by the start of the assistant's;
    SYSTEM stands before it where the template needs a system message. An end of sequence that the tokenizer appends
    to every text is left out, since a response must follow. ValueError in one line if the template takes no prompt, or
    if the vocabulary is one of single characters, as that of the embedded task, and lacks one of the prompt's.
    """
    if tokenizer.chat_template:
        turns = [*_opening(tokenizer, str(tokenizer.chat_template)), {"role": "user", "content": prompt}]
        return list(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False))
    ids, eos = tokenizer.encode(prompt), tokenizer.eos_token_id
    if (len(ids) < len(prompt) or tokenizer.unk_token_id in ids) and len(tokenizer) < 1000:
        _refuse_unknown(tokenizer, prompt)
    appended = len(ids) > 1 and ids[-1] == eos and not prompt.endswith(tokenizer.eos_token)
    return ids[:-1] if appended else ids


def _refuse_unknown(tokenizer: PreTrainedTokenizerBase, prompt: str) -> None:
    """ValueError that names the prompt's characters outside a vocabulary of single characters, which drops them."""
    names = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    unknown = " ".join(repr(character) for character in dict.fromkeys(prompt) if character not in names)
    if unknown and all(len(name) == 1 for name in names):
        raise ValueError(f"prompt {prompt!r}: has {unknown}, and the vocabulary is {''.join(sorted(names))}")


SYSTEM = "You are a helpful assistant."
"""The system message of a chat template that cannot do without one."""

TRIAL = "0123"
"""The user's message by which a template is tried: digits, which no template changes."""


@lru_cache(maxsize=8)
def _opening(tokenizer: PreTrainedTokenizerBase, template: str) -> list[dict[str, str]]:
    """The messages before the user's: none, or SYSTEM where the template refuses or loses a prompt that comes first.

    It warns of that, and of a template that prints today's date.
    """
    if "strftime_now" in template:
        warnings.warn(
            "the chat template prints today's date: prompts, and with them results, change from day to day; "
            "set the date in chat_template to a fixed one for numbers that can be repeated",
            stacklevel=3,
        )
    why = "it leaves the user's message out"
    for opening in ([], [{"role": "system", "content": SYSTEM}]):
        try:
            turns = [*opening, {"role": "user", "content": TRIAL}]
            taken = TRIAL in tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # whatever the template raises
            taken, why = False, " ".join(str(error).split())[:200]
        if taken and opening:
            warnings.warn(f"the chat template needs a system message: {SYSTEM!r} is put before prompts", stacklevel=3)
        if taken:
            return opening
    raise ValueError(f"chat_template: it takes no prompt as the user's message ({why}), with a system message or not")


def fit(
    tokenizer: PreTrainedTokenizerBase, problems: list[dict], max_tokens: int, room: int | None = None
) -> tuple[list[dict], int]:
    """The problems whose encoded prompt has at most `max_tokens` tokens, in their order, and the number of the others.

    room: how many tokens the model's context leaves for a prompt, None for no such limit. Raises ValueError if no
    problem fits, because the limit or the tokenizer is then wrong, or if a problem that fits has more than `room`
    tokens.
    """
    lengths = [len(encode(tokenizer, problem["prompt"])) for problem in problems]
    kept = [problem for problem, length in zip(problems, lengths, strict=True) if length <= max_tokens]
    if problems and not kept:
        raise ValueError(f"no prompt fits in {max_tokens} tokens: the shortest of {len(problems)} has {min(lengths)}")
    longest = max((length for length in lengths if length <= max_tokens), default=0)
    if room is not None and longest > room:
        raise ValueError(f"got {max_tokens}, but the model's context has room for {room} and a prompt has {longest}")
    return kept, len(problems) - len(kept)


def within(
    tokenizer: PreTrainedTokenizerBase, problems: list[dict], context: int, max_tokens: int, name: str
) -> list[dict]:
    """The problems whose prompt leaves room for a response of `max_tokens` tokens in a context of so many tokens.

    A warning in one line counts the others. name: what to call the problems. ValueError if none is left, or if there
    is no room for any prompt.
    """
    if max_tokens >= context:
        raise ValueError(f"max_tokens: got {max_tokens}, must be less than the model's context of {context} tokens")
    try:
        kept, dropped = fit(tokenizer, problems, context - max_tokens)
    except ValueError as error:
        raise ValueError(f"{name}: {error}, since a response of {max_tokens} is to fit into {context}") from None
    if dropped and os.environ.get("RANK", "0") == "0":
        log.warning(
            "%s: %d of %d prompts left out: with a response of %d tokens they exceed the model's context of %d",
            name, dropped, len(problems), max_tokens, context,
        )  # fmt: skip
    return kept
