"""From a question to the token ids that a policy continues: the template, then the tokenizer's own chat template.

A template is the text before and after the question, so that removing it (`unwrap`) is the exact inverse of
`render` and a file that comes with one template can be given another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pmd.params import require

if TYPE_CHECKING:  # transformers takes seconds to load, and the loaders need only the templates
    from transformers import PreTrainedTokenizerBase


class Template(NamedTuple):
    """What stands before and after the question."""

    before: str
    after: str


TEMPLATES = {
    "plain": Template("", ""),  # the embedded task's: the question is the prompt
    "dapo": Template(  # as DAPO-Math-17k has it, to the letter: the policies trained on it know no other
        "Solve the following math problem step by step. The last line of your response should be of the form "
        "Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n",
        '\n\nRemember to put your answer on its own line after "Answer:".',
    ),
    "boxed": Template("", "\n\nReason step by step, and give the final answer within \\boxed{}."),
}
"""A response's last line is `Answer: 5` under dapo and its last expression `\\boxed{5}` under boxed."""


def render(template: str, question: str) -> str:
    """The question in a template; ValueError if no template has that name."""
    require(template in TEMPLATES, "template", template, f"one of {', '.join(TEMPLATES)}")
    before, after = TEMPLATES[template]
    return before + question + after


def unwrap(template: str, prompt: str) -> str | None:
    """The question of which `render` makes this prompt, or None if the prompt is not in the template."""
    before, after = TEMPLATES[template]
    wrapped = len(prompt) >= len(before) + len(after) and prompt.startswith(before) and prompt.endswith(after)
    return prompt[len(before) : len(prompt) - len(after)] if wrapped else None


def question(prompt: str) -> str:
    """The question of a prompt in any template."""
    found = (unwrap(name, prompt) for name in TEMPLATES if name != "plain")
    return next((text for text in found if text is not None), prompt)


def encode(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Token ids of one prompt: the user's turn with the assistant's opened if there is a chat template, else plain."""
    if not tokenizer.chat_template:
        return tokenizer.encode(prompt)
    turn = [{"role": "user", "content": prompt}]
    return list(tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=True, return_dict=False))


def fit(
    tokenizer: PreTrainedTokenizerBase, problems: list[dict], max_tokens: int, room: int | None = None
) -> tuple[list[dict], int]:
    """The problems whose encoded prompt has at most `max_tokens` tokens, in their order, and how many were dropped.

    room: the tokens that the model's context leaves for a prompt. ValueError if none fits (an experiment on nothing is
    a mistake in the limit or in the tokenizer), or if one that is kept takes more than there is room for.
    """
    lengths = [len(encode(tokenizer, problem["prompt"])) for problem in problems]
    kept = [problem for problem, length in zip(problems, lengths, strict=True) if length <= max_tokens]
    if problems and not kept:
        raise ValueError(f"no prompt fits in {max_tokens} tokens: the shortest of {len(problems)} has {min(lengths)}")
    longest = max((length for length in lengths if length <= max_tokens), default=0)
    if room is not None and longest > room:
        raise ValueError(f"got {max_tokens}, but the model's context has room for {room} and a prompt has {longest}")
    return kept, len(problems) - len(kept)
