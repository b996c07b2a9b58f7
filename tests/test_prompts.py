"""Templates wrap and unwrap exactly; prompts are encoded with the tokenizer's chat template when it has one."""

from __future__ import annotations

import copy
import time
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from pmd.files import ROOT
from pmd.problems import prompts

CHAT = "{% for m in messages %}<{{ m['content'] }}>{% endfor %}{% if add_generation_prompt %}={% endif %}"


@given(st.sampled_from(sorted(prompts.TEMPLATES)), st.text())
def test_unwrapping_is_the_inverse_of_rendering(name, question):
    prompt = prompts.render(name, question)
    assert prompts.unwrap(name, prompt) == question
    assert question in prompt
    if name != "plain":
        assert prompts.question(prompt) == question


def test_what_each_template_asks_for():
    assert prompts.render("plain", "47+38-13=") == "47+38-13="
    assert prompts.render("boxed", "{x}?").startswith("{x}?\n\n")
    assert r"\boxed{}" in prompts.render("boxed", "{x}?")
    assert "The last line of your response should be of the form Answer: $Answer " in prompts.render("dapo", "x")


def test_a_prompt_in_no_template_is_its_own_question():
    assert prompts.unwrap("dapo", "What is 1+1?") is None
    assert prompts.question("What is 1+1?") == "What is 1+1?"
    before, after = prompts.TEMPLATES["dapo"]
    assert prompts.unwrap("dapo", before + "What is 1+1?") is None
    assert prompts.unwrap("dapo", "What is 1+1?" + after) is None
    assert prompts.unwrap("dapo", before.rstrip() + after) is None  # both ends match, sharing the blank line


def test_an_unknown_template_is_refused():
    with pytest.raises(ValueError, match="template: got 'cot', must be one of plain, dapo, boxed"):
        prompts.render("cot", "x")


def test_a_tokenizer_without_a_chat_template_encodes_the_prompt_alone(tiny):
    tokenizer = tiny[1]
    assert prompts.encode(tokenizer, "1+2=") == tokenizer.encode("1+2=")
    assert tokenizer.convert_ids_to_tokens(prompts.encode(tokenizer, "1+2=")) == ["1", "+", "2", "="]


def test_a_character_outside_the_vocabulary_is_refused_by_name(tiny):
    committed = AutoTokenizer.from_pretrained(ROOT / "bases" / "base-1")
    for tokenizer in (tiny[1], committed):
        assert len(prompts.encode(tokenizer, "12+3=")) == 5
        with pytest.raises(ValueError, match=r"^prompt '1 × 2=': has ' ' '×', and the vocabulary is \+-0123456789=$"):
            prompts.encode(tokenizer, "1 × 2=")
        with pytest.raises(ValueError, match=r"has '\\n', and"):
            prompts.encode(tokenizer, "1+2\n\n")


def test_a_chat_template_opens_the_answer(tiny):
    tokenizer = copy.deepcopy(tiny[1])
    tokenizer.chat_template = CHAT
    ids = prompts.encode(tokenizer, "1+2")
    assert isinstance(ids, list)
    assert tokenizer.convert_ids_to_tokens(ids) == ["<unk>", "1", "+", "2", "<unk>", "="]  # the tokenizer has no <, >


def test_over_long_prompts_are_dropped_and_counted(tiny):
    tokenizer = copy.deepcopy(tiny[1])
    problems = [{"prompt": "1+2+3="}, {"prompt": "1+2="}, {"prompt": "4+5="}, {"prompt": "12+34="}]
    assert prompts.fit(tokenizer, problems, 4) == (problems[1:3], 2)
    assert prompts.fit(tokenizer, problems, 6) == (problems, 0)
    with pytest.raises(ValueError, match="no prompt fits in 3 tokens: the shortest of 4 has 4"):
        prompts.fit(tokenizer, problems, 3)
    assert prompts.fit(tokenizer, problems, 5, room=4) == (problems[1:3], 2)  # the longer ones are left out
    with pytest.raises(ValueError, match=r"^got 6, but the model's context has room for 5 and a prompt has 6$"):
        prompts.fit(tokenizer, problems, 6, room=5)
    with pytest.raises(ValueError, match=r"^max_tokens: got 4, must be less than the model's context of 4 tokens$"):
        prompts.within(tokenizer, problems, 4, 4, "problems")
    tokenizer.chat_template = CHAT  # three tokens more, which count
    assert prompts.fit(tokenizer, problems, 7) == (problems[1:3], 2)


def test_an_end_that_the_tokenizer_appends_is_left_out(tiny):
    tokenizer = copy.deepcopy(tiny[1])
    plain = tokenizer.encode("1+2=")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    assert tokenizer.encode("1+2=") == [*plain, 1]
    assert prompts.encode(tokenizer, "1+2=") == plain
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<eos> $A", special_tokens=[("<eos>", 1)])
    assert prompts.encode(tokenizer, "1+2=") == [1, *plain]  # a beginning stays


NEEDS_SYSTEM = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('a system message is needed') }}{% endif %}"
LOSES_FIRST = "{% set system = messages[0]['content'] %}"


@pytest.mark.parametrize(
    ("before", "turns"), [(NEEDS_SYSTEM, "messages"), (LOSES_FIRST, "messages[1:]")], ids=["refuses", "loses"]
)
def test_a_template_that_needs_a_system_message_gets_one(tiny, before, turns):
    tokenizer = copy.deepcopy(tiny[1])
    tokenizer.chat_template = before + CHAT.replace("in messages", f"in {turns}")
    with pytest.warns(UserWarning, match="needs a system message: 'You are a helpful assistant.' is put before"):
        ids = prompts.encode(tokenizer, "1+2")
    assert tokenizer.convert_ids_to_tokens(ids)[-6:] == ["<unk>", "1", "+", "2", "<unk>", "="]
    assert len(ids) == (6 if turns != "messages" else 6 + 2 + len(prompts.SYSTEM))


def test_a_template_that_takes_no_prompt_is_refused_in_one_line(tiny):
    tokenizer = copy.deepcopy(tiny[1])
    tokenizer.chat_template = "{{ raise_exception('tools\\nalone') }}"
    with pytest.raises(ValueError, match=r"^chat_template: it takes no prompt as the user's message \(tools alone\)"):
        prompts.encode(tokenizer, "1+2")
    tokenizer.chat_template = "Hello!"
    with pytest.raises(ValueError, match=r"\(it leaves the user's message out\), with a system message or not$"):
        prompts.encode(tokenizer, "1+2")


def test_a_template_that_prints_the_date_is_warned_of(tiny):
    tokenizer = copy.deepcopy(tiny[1])
    tokenizer.chat_template = "{{ strftime_now('%d') }}" + CHAT
    with pytest.warns(UserWarning, match="prints today's date: prompts, and with them results, change from day to day"):
        ids = prompts.encode(tokenizer, "1+2")
    assert tokenizer.convert_ids_to_tokens(ids)[:2] == list(time.strftime("%d"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prompts.encode(tokenizer, "1+2")  # once a tokenizer
        prompts.encode(tiny[1], "1+2")
