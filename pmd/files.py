"""Atomic, plain-text input and output: a reader never sees half a file, a full disk never loses the old one."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
"""The repository's root: papermill runs in the caller's directory, nbval in the notebook's."""


def atomic(path: str | Path, write: Callable[[Path], None]) -> None:
    """Call `write(temporary)` beside `path`, flush it to disk, then move it into place.

    Raises OSError in one line naming `path` (a full disk, a missing permission); `path` keeps its old content.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise OSError(f"{path}: could not be written ({error}); what was there before is untouched") from error
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: str | Path, value: Any) -> None:
    """Write one JSON value, indented, atomically; NaN is refused because JSON has none."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: str | Path, rows: Iterable[dict]) -> None:
    """Write one JSON object a line, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def write_frame(path: str | Path, frame: Any) -> None:
    """Write a pandas frame as parquet, atomically; the same frame gives the same bytes."""
    atomic(path, lambda temporary: frame.to_parquet(temporary, index=False, compression="zstd"))


def read_json(path: str | Path) -> Any:
    """Read one JSON value; ValueError naming the file if it is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error


def utf8(data: bytes) -> bytes:
    """JSON or CSV in UTF-8 without a byte-order mark, from that or from UTF-16 or UTF-32; else UnicodeDecodeError."""
    encoding = json.detect_encoding(data[:4])
    return data.removeprefix(b"\xef\xbb\xbf") if encoding.startswith("utf-8") else data.decode(encoding).encode()


def read_jsonl(path: str | Path) -> list[dict]:
    """Read one JSON object a line, blank lines left out; ValueError naming the file, and the line if one is not."""
    rows = []
    try:
        text = utf8(Path(path).read_bytes()).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error})") from error
    # not splitlines: U+2028 and its like may stand in a string
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not valid JSON ({error})") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number}: expected a JSON object, got {type(row).__name__}")
        rows.append(row)
    return rows


def fingerprint(*paths: str | Path, code: bool = True) -> str:
    """MD5 over the bytes of files (folders: every file in them) and, unless told otherwise, of pmd's own code."""
    digest = hashlib.md5()
    for path in [*map(Path, paths), *(sorted((ROOT / "pmd").rglob("*.py")) if code else [])]:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                with file.open("rb") as opened:  # in pieces: weights may be larger than memory
                    while piece := opened.read(1 << 20):
                        digest.update(piece)
    return digest.hexdigest()


def digest(value: Any) -> str:
    """MD5 of a JSON value."""
    return hashlib.md5(json.dumps(value).encode()).hexdigest()
