"""Whatever a model's files declare as an end ends a response, and counts as ended."""

from __future__ import annotations

import copy
import json

import pytest

from pmd.model import ends
from pmd.model.loading import load_policy, save_policy
from pmd.problems.prompts import encode
from pmd.sampling.engine import Sampling
from pmd.sampling.scoring import respond
from pmd.sampling.torch_engine import TorchEngine

CHAT = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[{{ m['content'] }}]"
    "{% elif m['role'] == 'assistant' %}{{ m['content'] }}<pad>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}={% endif %}"
)
"""The assistant's turn ends with <pad>, token 0; the end of sequence is <eos>, token 1."""


def change(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def several(tiny_dir):
    """Ends in every place: 5 and 7 in generation_config.json, 1 in config.json and tokenizer, 0 in the template."""
    change(tiny_dir / "generation_config.json", eos_token_id=[5, 7])
    (tiny_dir / "chat_template.jinja").write_text(CHAT)
    return tiny_dir


def test_ends_are_declared_in_four_places(several):
    model, tokenizer = load_policy(several)
    assert ends.declared(model) == [0, 1, 5, 7]
    assert ends.turn_end(tokenizer) == [0]
    assert ends.declared(model, 3) == [0, 1, 3, 5, 7]


def test_a_saved_policy_still_declares_its_ends(several, tmp_path):
    save_policy(*load_policy(several), tmp_path / "last")
    assert json.loads((tmp_path / "last" / "generation_config.json").read_text())["eos_token_id"] == [0, 1, 5, 7]
    assert ends.declared(load_policy(tmp_path / "last")[0]) == [0, 1, 5, 7]


def test_one_end_stays_one_number(tiny_dir, tmp_path):
    save_policy(*load_policy(tiny_dir), tmp_path / "last")
    assert json.loads((tmp_path / "last" / "generation_config.json").read_text())["eos_token_id"] == 1


@pytest.mark.parametrize("static", [False, True])
def test_every_end_ends_a_response_and_counts_as_ended(several, static):
    model, tokenizer = load_policy(several)
    engine = TorchEngine(model, tokenizer.eos_token_id, static=static)
    problems = [{"id": str(i), "prompt": f"1+{i}", "ground_truth": "2"} for i in range(3)]
    found = engine.sample([encode(tokenizer, p["prompt"]) for p in problems], 40, Sampling(12), 0)
    flat = [response for group in found for response in group]
    last = {response[-1] for response in flat if len(response) < 12}
    assert last == {0, 1, 5, 7}
    assert not [token for response in flat for token in response[:-1] if token in last]
    rows = respond(engine, tokenizer, problems, 40, Sampling(12), 0)
    assert rows["truncated"].tolist() == [response[-1] not in last for response in flat]
    assert rows["truncated"].any()
    digits = tokenizer.decode([5])  # an end that is an ordinary token, and no part of the text
    by_five = [text for text, response in zip(rows["response"], flat, strict=True) if response[-1] == 5]
    assert by_five
    assert not [text for text in by_five if digits in text]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% for m in messages %}{{ m['content'] }}<eos>{% endfor %}", [1]),
        ("{% for m in messages %}{{ m['content'] }} ={% endfor %}", []),  # an ordinary token
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", []),
        ("{{ raise_exception('no') }}", []),
        ("{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system message') }}{% endif %}"
         "{% for m in messages %}{{ m['content'] }}<pad>{% endfor %}", [0]),
        ("{% if messages[0]['role'] != 'system' %}{{ raise_exception('needs one') }}{% endif %}"
         "{% for m in messages %}{{ m['content'] }}<pad>{% endfor %}", [0]),
    ],
)  # fmt: skip
def test_the_end_of_a_turn_is_the_special_token_behind_it(tiny, template, expected):
    tokenizer = copy.deepcopy(tiny[1])
    tokenizer.chat_template = template
    assert ends.turn_end(tokenizer) == expected


def test_a_tokenizer_whose_end_only_its_template_knows_is_accepted(tiny_dir):
    """As after fine-tuning to a chat format; without the template it would be another model's."""
    for file in ("config.json", "generation_config.json"):
        change(tiny_dir / file, eos_token_id=5)
    with pytest.raises(ValueError, match=r"ends a response with token 1 \(<eos>\), the model with \[5\]"):
        load_policy(tiny_dir)
    (tiny_dir / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}<eos>{% endfor %}")
    assert ends.declared(load_policy(tiny_dir)[0]) == [1, 5]


def test_a_tokenizer_without_an_end_needs_one_of_the_model(tiny_dir):
    change(tiny_dir / "tokenizer_config.json", eos_token=None)
    model, tokenizer = load_policy(tiny_dir)
    assert tokenizer.eos_token_id is None
    assert TorchEngine(model, tokenizer.eos_token_id).ends == [1]
    for file in ("config.json", "generation_config.json"):
        change(tiny_dir / file, eos_token_id=None)
    with pytest.raises(ValueError, match="no end-of-sequence token is declared, so no response could ever end"):
        load_policy(tiny_dir)
