"""Atomic writing: all or nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from pmd import files


def test_a_write_that_fails_keeps_the_old_file_and_leaves_no_litter(tmp_path):
    path = tmp_path / "a" / "x.json"
    files.write_json(path, {"kept": 1})

    def full(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"x\.json: could not be written .*No space left.*untouched"):
        files.atomic(path, full)
    assert files.read_json(path) == {"kept": 1}
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]


def test_json_has_no_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert not (tmp_path / "x.json").exists()


def test_a_line_separator_inside_a_string_ends_no_line(tmp_path):
    rows = [{"prompt": "a\u2028b\u0085c"}, {"prompt": "d"}]
    files.write_jsonl(tmp_path / "x.jsonl", rows)
    assert files.read_jsonl(tmp_path / "x.jsonl") == rows
    files.write_text(tmp_path / "x.jsonl", "")
    assert files.read_jsonl(tmp_path / "x.jsonl") == []


def test_the_fingerprint_of_the_code_covers_every_room(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "ROOT", tmp_path)
    (tmp_path / "pmd" / "trainer").mkdir(parents=True)
    code = tmp_path / "pmd" / "trainer" / "loop.py"
    code.write_text("a = 1")
    before = files.fingerprint()
    code.write_text("a = 2")
    assert files.fingerprint() != before
    assert files.fingerprint(code=False) == files.fingerprint(code=False)


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\xb0\xff")
    with pytest.raises(ValueError, match=r"a\.jsonl: not UTF-8 text"):
        files.read_jsonl(tmp_path / "a.jsonl")


@pytest.mark.parametrize("call", ["mkstemp", "mkdir"])
def test_a_folder_that_cannot_be_written_is_one_line_that_names_the_file(tmp_path, monkeypatch, call):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(*((files.tempfile, call) if call == "mkstemp" else (Path, call)), refuse)
    with pytest.raises(OSError, match=r"new/a\.txt: could not be written \(.*Permission denied") as caught:
        files.write_text(tmp_path / "new" / "a.txt", "x")
    assert "\n" not in str(caught.value)
