"""The tokens that end a response: every one that the files of a model declare.

They are declared in three places, which often differ: Llama 3's chat models name three ends in generation_config.json,
its tokenizer one, and its chat template closes each turn with one of them. `declare` collects them in the model's
generation configuration, from which the engines read them.
"""

from __future__ import annotations

from transformers import PreTrainedModel, PreTrainedTokenizerBase

MARK = "0123"
"""The content of a trial message: digits, which no chat template changes."""


def declared(model: PreTrainedModel, eos: int | None = None) -> list[int]:
    """The tokens that end a response of a model, ascending: `eos`, and those of its two configurations."""
    stated = [eos, *(getattr(config, "eos_token_id", None) for config in (model.config, model.generation_config))]
    return sorted({end for ids in stated for end in (ids if isinstance(ids, list) else [ids]) if end is not None})


def declare(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Add to a model's generation configuration the ends that its tokenizer and its chat template declare."""
    ends = sorted({*declared(model, tokenizer.eos_token_id), *turn_end(tokenizer)})
    if len(ends) > 1:
        model.generation_config.eos_token_id = ends


def turn_end(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special token by which the chat template closes the assistant's turn, in a list; empty if there is none."""
    if not tokenizer.chat_template:
        return []
    turns = [{"role": role, "content": MARK} for role in ("system", "user", "assistant")]
    for conversation in (turns, turns[1:]):  # some templates have no system message, others need one
        try:
            text = tokenizer.apply_chat_template(conversation, tokenize=False)
            break
        except Exception:  # whatever the template raises
            continue
    else:
        return []
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} | {*tokenizer.all_special_ids}
    special -= {tokenizer.unk_token_id, tokenizer.bos_token_id} - {tokenizer.eos_token_id}
    behind = tokenizer.encode(text.rpartition(MARK)[2], add_special_tokens=False)
    return [token for token in behind if token in special][:1]
