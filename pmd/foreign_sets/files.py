"""The rows of a foreign set's files, unchanged: JSON, CSV, Parquet, Arrow, packed or not, one file or a folder."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow
from pyarrow import ipc, parquet

from pmd.files import utf8

Rows = Iterator[tuple[str, dict]]
"""(place, row); the place is what an error message names."""

PACKABLE = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
SUFFIXES = (*PACKABLE, ".parquet", ".arrow")
LFS_POINTER = b"version https://git-lfs"
ALLOWED = f"a folder or a file {', '.join(PACKABLE)} (each also .gz), .parquet or .arrow"


def kind(path: Path) -> str | None:
    """The suffix that says how a file is read, without .gz; None if there is no reader for it."""
    packed = path.suffix.lower() == ".gz"
    suffix = (path.with_suffix("") if packed else path).suffix.lower()
    return suffix if suffix in (PACKABLE if packed else SUFFIXES) else None


def read_path(path: Path, shown: str, split: str) -> Rows:
    """The rows of a file or folder that error messages call `shown`; of a folder those of its subfolder `split`, or of
    the files called so, if it has any.

    ValueError in one line for a file that cannot be read, or for a folder that holds more than one set.
    """
    if path.is_dir():
        inner = path / split
        return _folder_rows(inner, f"{shown}/{split}", split) if inner.is_dir() else _folder_rows(path, shown, split)
    return _rows(path, shown)


def _rows(file: Path, shown: str) -> Rows:
    with file.open("rb") as opened:
        if opened.read(len(LFS_POINTER)) == LFS_POINTER:
            raise ValueError(f"{shown}: is a Git LFS pointer and not the file itself; fetch it with git lfs pull")
    yield from READERS[kind(file)](file, shown)


# --- files ---------------------------------------------------------------------------------------------------------


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")


def _read(path: Path, shown: str) -> bytes:
    """The whole file, unpacked and in UTF-8."""
    try:
        with _open(path) as file:
            return utf8(file.read())
    except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{shown}: not readable ({error}); fetch it anew") from error


def _lines(path: Path, shown: str) -> Iterator[bytes]:
    """The lines of a file; they end with \\n only, because a string may hold other line separators."""
    try:
        with _open(path) as file:
            if json.detect_encoding(file.read(4)).startswith("utf-8"):
                file.seek(0)
                yield from file
                return
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{shown}: not readable ({error}); fetch it anew") from error
    yield from _read(path, shown).split(b"\n")


def _json_lines(path: Path, shown: str) -> Rows:
    for number, line in enumerate(_lines(path, shown), start=1):
        if not line.strip():
            continue
        where = f"{shown}:{number}"
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise ValueError(f"{where}: not UTF-8 text ({error}); save the file in UTF-8") from error
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: not valid JSON ({error}); correct or remove the line") from error
        if isinstance(row, list) and row and isinstance(row[0], dict):
            raise ValueError(f"{where}: expected a JSON object, got list; name a file that is one list .json")
        if not isinstance(row, dict):
            raise ValueError(f"{where}: expected a JSON object, got {type(row).__name__}")
        yield where, row


def _json_value(path: Path, shown: str) -> Any:
    try:
        return json.loads(_read(path, shown))
    except RecursionError as error:
        raise ValueError(f"{shown}: not valid JSON ({error})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{shown}:{error.lineno}: not valid JSON ({error.msg})") from error


def _json_rows(path: Path, shown: str) -> Rows:
    """A list of problems, or an object that holds them in one of the usual ways; or one problem a line."""
    try:
        value = _json_value(path, shown)
    except ValueError as error:
        if "Extra data" not in str(error):
            raise
        yield from _json_lines(path, shown)
        return
    if not isinstance(value, list):
        value = _problems(value) if isinstance(value, dict) else [value]
    for number, row in enumerate(value, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"{shown}: row {number}: expected a JSON object, got {type(row).__name__}")
        yield f"{shown}: row {number}", row


def _problems(value: dict) -> list:
    """The problems of an object: its one list of objects, its objects by their ids, the rows of its columns, as pandas
    writes them, or itself. A list of messages is a prompt."""
    inside = list(value.values())
    lists = [
        v for v in inside if isinstance(v, list) and v and isinstance(v[0], dict) and not {"role", "from"} & set(v[0])
    ]
    if len(lists) == 1:
        return lists[0]
    if inside and all(isinstance(v, dict) and v for v in inside):
        columns = all(str(key).isdigit() for v in inside for key in v)
        return _transposed({key: list(v.values()) for key, v in value.items()}) if columns else inside
    return _transposed(value) if inside and all(isinstance(v, list) for v in inside) and not lists else [value]


def _transposed(columns: dict[str, list]) -> list[dict]:
    """The rows of columns of one length; else the columns themselves as one row."""
    if len({len(column) for column in columns.values()}) != 1:
        return [columns]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _table_rows(path: Path, shown: str) -> Rows:
    """CSV or TSV whose first row names the columns; the separator of a CSV is the one that this row has most often:
    a comma, a semicolon, a tab or a bar. Every value is text."""
    try:
        text = _read(path, shown).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{shown}: not UTF-8 text ({error}); save it as CSV in UTF-8") from error
    text = text.lstrip("\r\n")
    header = re.sub(r'"[^"]*"', "", text.partition("\n")[0])
    comma = "\t" if kind(path) == ".tsv" else max(",;\t|", key=header.count)
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=comma, strict=True)
    number = 0
    try:
        names = [name.strip() for name in reader.fieldnames or []]
        if twice := next((name for name in names if name and names.count(name) > 1), None):
            raise ValueError(f"{shown}: two columns are called {twice!r}; rename one")
        reader.fieldnames = names
        for number, row in enumerate(reader, start=1):
            if None in row:
                raise ValueError(
                    f"{shown}: row {number}: has more values than there are columns ({', '.join(names)}); "
                    "put values that hold a separator in double quotes"
                )
            yield f"{shown}: row {number}", row
    except csv.Error as error:
        raise ValueError(f"{shown}: not readable as CSV after row {number} ({error})") from error


def _parquet_rows(path: Path, shown: str) -> Rows:
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
            for number, row in enumerate(rows, start=1):
                yield f"{shown}: row {number}", row
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        message = " ".join(str(error).split())
        raise ValueError(f"{shown}: not readable as parquet after row {number} ({message}); fetch it anew") from error


def _arrow_rows(path: Path, shown: str) -> Rows:
    try:
        with pyarrow.memory_map(str(path)) as file:
            try:
                found = ipc.open_stream(file).read_all()
            except pyarrow.ArrowInvalid:
                file.seek(0)
                found = ipc.open_file(file).read_all()
            for number, row in enumerate((r for b in found.to_batches() for r in b.to_pylist()), start=1):
                yield f"{shown}: row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{shown}: not readable as Arrow ({' '.join(str(error).split())}); fetch it anew") from error


READERS = dict.fromkeys((".jsonl", ".ndjson"), _json_lines) | {
    ".json": _json_rows,
    ".csv": _table_rows,
    ".tsv": _table_rows,
    ".parquet": _parquet_rows,
    ".arrow": _arrow_rows,
}


# --- folders -------------------------------------------------------------------------------------------------------


def _folder_rows(folder: Path, shown: str, split: str) -> Rows:
    """A folder of `save_to_disk`, of one JSON file a problem, or of the pieces of one table."""
    if (folder / "state.json").is_file():
        yield from _saved_rows(folder, shown)
        return
    splits = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    files = [file for file in folder.rglob("*") if kind(file) and file.name != "dataset_dict.json"]
    files = sorted((f for f in files if not any(p.startswith(".") for p in f.relative_to(folder).parts)), key=_natural)
    if (folder / "dataset_dict.json").is_file() or {"train", "test"} <= set(splits):
        raise ValueError(f"{shown}: holds the sets {', '.join(splits)}; state one of them, path: {shown}/{splits[0]}")
    if not files:
        raise ValueError(f"{shown}: holds no problems; path must be {ALLOWED}")
    single = len(files) > 1 and {kind(file) for file in files} == {".json"}
    pieces = {re.sub(r"-\d+-of-\d+", "", file.name) for file in files}
    if not single and len(pieces) > 1:
        of_split = [file for file in files if re.fullmatch(rf"{re.escape(split)}(?:-\d+-of-\d+)?\.\D+", file.name)]
    else:
        of_split = files
    if not of_split:
        names = [str(file.relative_to(folder)) for file in files]
        some = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
        raise ValueError(
            f"{shown}: holds {some}; state one of them, such as path: {shown}/{names[0]}, "
            "or the split by which files are called"
        )
    for file in of_split:
        name = f"{shown}/{file.relative_to(folder)}"
        yield from [(name, _one_problem(file, name))] if single else _rows(file, name)


def _natural(path: Path) -> list[tuple[int, str]]:
    """For sorting: 2.json before 10.json."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(path))]


def _one_problem(file: Path, shown: str) -> dict:
    row = _json_value(file, shown)
    if not isinstance(row, dict):
        raise ValueError(f"{shown}: expected one problem, got {type(row).__name__}; state the file itself as path")
    return row


def _saved_rows(folder: Path, shown: str) -> Rows:
    """What `save_to_disk` of the package `datasets` wrote."""
    import datasets  # takes seconds to load

    try:
        rows = datasets.load_from_disk(str(folder))
    except Exception as error:  # each kind of damage raises an exception of its own
        message = " ".join(str(error).split())[:300]
        raise ValueError(f"{shown}: cannot be loaded ({type(error).__name__}: {message}); save it anew") from error
    yield from ((f"{shown}: row {number}", row) for number, row in enumerate(rows, start=1))
