"""The committed base models: read, and refused in one line where they are not what was committed."""

from __future__ import annotations

import json
import shutil

import pytest

from pmd.experiments.bases import BASES, base_folder, write_digests
from pmd.files import read_json


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(BASES / "base-1", tmp_path / "bases" / "base-1")
    write_digests([1], tmp_path / "bases")
    return tmp_path / "bases"


def test_every_committed_base_is_what_its_digest_says():
    numbers = sorted(map(int, read_json(BASES / "digests.json")))
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= 4
    assert [base_folder(n).name for n in numbers] == [f"base-{n}" for n in numbers]


def test_the_bases_differ():
    assert len(set(read_json(BASES / "digests.json").values())) == len(read_json(BASES / "digests.json"))


def test_a_number_that_is_not_there(folder):
    with pytest.raises(ValueError, match=r"^bases: got 9, must be one of the base models in bases/: 1$"):
        base_folder(9, folder)
    with pytest.raises(ValueError, match=r": 1, 2, .*8 \(`git restore bases` brings the committed ones back\)$"):
        base_folder(9)


def test_missing_weights(folder):
    (folder / "base-1" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model.safetensors: missing; `git restore bases`"):
        base_folder(1, folder)


def test_altered_weights(folder):
    path = folder / "base-1" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"model.safetensors: differs from bases/digests.json; `git restore bases`"):
        base_folder(1, folder)


def test_another_vocabulary(folder):
    path = folder / "base-1" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    del tokenizer["model"]["vocab"]["+"]
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match=r"base-1: its vocabulary lacks \+, the task's symbols are 0123456789\+-="):
        base_folder(1, folder)
