"""One command that proves the GPU path and measures it, in less than eight minutes on one H100.

    python benchmarks/gpu.py [--device cuda] [--quick] [--only NAME ...] [--out runs/gpu] [--seconds 480]

Sections, in order: ceilings, attention, trainer, decoder, end_to_end, sharding, sizes (a file each in
benchmarks/sections). Every result goes to OUT/results.jsonl and into OUT/table.md as it comes. A section that fails
is a result too, and the next one goes on; one that the time left does not suffice for is left out. Nothing is
downloaded. `--device cpu --quick` runs every line at the smallest size.

Exit status 1 if a section failed or a bound of correctness was broken; a missed goal of speed or memory is none.
"""

from __future__ import annotations

import argparse
import datetime
import faulthandler
import importlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # where pmd is not installed

from sections import SECTIONS  # noqa: E402

NEEDED = {
    "ruamel.yaml": ["ruamel.yaml"],
    "pydantic": ["pydantic", "pydantic_core", "annotated-types", "typing-inspection", "typing_extensions"],
}
"""Modules that a machine with PyTorch and transformers may lack, and the packages that bring them."""

BEGAN = time.monotonic()

GRACE = 30
"""Seconds after the last moment at which a hanging section is ended, its stack on stderr."""


def missing() -> list[str]:
    """The packages to bring along, pinned as in requirements.lock; all of them are small and none needs a compiler."""
    lines = (HERE.parent / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = {line.partition("==")[0]: line for line in lines}
    lacking = [packages for module, packages in NEEDED.items() if not _found(module)]
    return [pins[package] for packages in lacking for package in packages]


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a.b, a is not there
        return False


# --- running -------------------------------------------------------------------------------------------------------


def run_section(name: str, context, record: Callable[[dict], bool]) -> bool:
    """Record a section's rows as they come; returns whether the device can go on."""
    from sections.common import fact, fresh

    began = time.monotonic()
    if context.left < SECTIONS[name] and not context.quick:
        why = f"{context.left:.0f} s left, {SECTIONS[name]} needed"
        return record({"section": name, "skipped": why})
    print(f"--- {name}", flush=True)
    usable = True
    try:
        for row in importlib.import_module(f"sections.{name}").rows(context):
            if context.quick and row.kind == "goal":  # goals are for the sizes that are meant
                row = fact(row.name, row.value, row.unit)
            record({"section": name, **vars(row)})
    except Exception as caught:
        trace = traceback.format_exc().splitlines()
        first = next(iter(str(caught).splitlines()), "")
        record({"section": name, "error": type(caught).__name__, "line": first, "trace": trace[-25:]})
        usable = works(context.device)
    record({"section": name, "seconds": round(time.monotonic() - began, 1)})
    if usable:
        fresh(context.device)
    return usable


def works(device: str) -> bool:
    """Can the device still compute? After an illegal access to its memory nothing in this process can."""
    import torch

    try:
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
            torch.ones(1, device=device).item()
    except RuntimeError:
        return False
    return True


def recorder(out: Path, about: dict[str, str], command: str) -> Callable[[dict], bool]:
    """What records one result, returning True: a line of JSON, with the second at which it came, printed too; and the
    table written anew, so that a call that is killed leaves one."""
    from pmd.files import write_text

    def record(line: dict) -> bool:
        at = round(time.monotonic() - BEGAN, 1)
        with (out / "results.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line | {"at": at}, ensure_ascii=False) + "\n")
        write_text(out / "table.md", table(about, command, results(out)))
        print(f"{at:6.1f} s  {spoken(line)}", flush=True)
        return True

    return record


def results(out: Path) -> list[dict]:
    """All results so far."""
    return [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]


def spoken(line: dict) -> str:
    """A result in one line of text."""
    if "name" in line:
        return f"{line['name']}: {shown(line['value'])} {line['unit']} {line['limit']} {line['verdict']}".rstrip()
    return ", ".join(f"{key} {value}" for key, value in line.items() if key != "trace")


def shown(value: float | str | bool) -> str:
    """A value with four digits, and all of those before the point."""
    if isinstance(value, bool | str):
        return {True: "yes", False: "no"}.get(value, str(value))
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


# --- the table -----------------------------------------------------------------------------------------------------


def machine(device: str) -> dict[str, str]:
    """What the numbers depend on."""
    import torch

    found = {"machine": _name(device), "python": platform.python_version(), "torch": torch.__version__}
    for package in ("transformers", "triton"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if device.startswith("cuda"):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
            found["driver"] = done.stdout.split()[0]
        except (OSError, subprocess.SubprocessError, IndexError):
            found["driver"] = "unknown"
    return found | {"date": datetime.date.today().isoformat()}


def _name(device: str) -> str:
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"


def table(about: dict[str, str], command: str, lines: list[dict]) -> str:
    """The results as a Markdown page."""
    rows = []
    for line in lines:
        cells = [line["section"].replace("_", " ")]
        if "name" in line:
            cells += [line["name"], f"{shown(line['value'])} {line['unit']}", line["limit"], line["verdict"]]
        elif "error" in line:
            cells += ["", f"{line['error']}: {line['line']}", "", "FAILS"]
        elif "skipped" in line:
            cells += ["", f"left out: {line['skipped']}", "", ""]
        else:
            cells += ["seconds in all", shown(line["seconds"]), "", ""]
        rows.append("| " + " | ".join(cell.replace("|", "/").strip() for cell in cells) + " |")
    stated = "\n".join(f"* {key}: {value}" for key, value in about.items())
    head = "| section | result | value | held against | verdict |\n| --- | --- | --- | --- | --- |"
    return f"# {about['machine']}\n\nWritten by `{command}`.\n\n{stated}\n\n{head}\n" + "\n".join(rows) + "\n"


def failures(lines: list[dict]) -> list[str]:
    """The results that are wrong: broken bounds and sections that stopped."""
    broken = [spoken(line) for line in lines if line.get("verdict", "").startswith("FAILS")]
    return broken + [f"{line['section']}: {line['error']}: {line['line']}" for line in lines if "error" in line]


# --- the command ---------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    parser.add_argument("--quick", action="store_true", help="the smallest sizes")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=", ".join(SECTIONS))
    parser.add_argument("--out", type=Path, default=HERE.parent / "runs" / "gpu")
    parser.add_argument("--seconds", type=float, default=480, help="end within so many seconds")
    parser.add_argument("--go-on", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    deadline = time.monotonic() + options.seconds
    unknown = [name for name in options.only or [] if name not in SECTIONS]
    if unknown:
        sys.exit(f"gpu: --only: got {unknown[0]!r}, must be among {', '.join(SECTIONS)}")
    if lacking := missing():
        sys.exit(f"gpu: these packages are missing: {' '.join(lacking)}")
    try:
        return run(options, deadline)
    except (ValueError, OSError) as error:
        sys.exit(f"gpu: {error}")


def run(options: argparse.Namespace, deadline: float) -> int:
    """Run the sections asked for; returns the exit status."""
    import torch
    from sections.common import Context

    from pmd.model.device import check_device

    options.device = "cuda:0" if options.device == "cuda" else options.device
    check_device(options.device, "bfloat16")
    if options.device.startswith("cuda"):
        torch.cuda.set_device(options.device)  # where events are recorded and FSDP2 puts its shards
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.go_on:
        (options.out / "results.jsonl").unlink(missing_ok=True)
    faulthandler.dump_traceback_later(options.seconds + GRACE, exit=True)
    about = machine(options.device)
    print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    asked = [name for name in SECTIONS if name in (options.only or SECTIONS)]
    quick = " --quick" if options.quick else ""
    command = f"python benchmarks/gpu.py --device {options.device}{quick}"
    record = recorder(options.out, about, command)
    with tempfile.TemporaryDirectory() as scratch:
        context = Context(options.device, options.quick, options.out, Path(scratch), deadline)
        for done, name in enumerate(asked, start=1):
            usable = run_section(name, context, record)
            if not usable and asked[done:]:
                return elsewhere(options, asked[done:], context.left)
    faulthandler.cancel_dump_traceback_later()
    found = failures(results(options.out))
    print("\n".join(["FAILS:", *found] if found else ["every bound holds"]), flush=True)
    return 1 if found else 0


def elsewhere(options: argparse.Namespace, names: list[str], left: float) -> int:
    """The remaining sections in a process of their own: in this one the device cannot be used any more."""
    command = [sys.executable, __file__, "--device", options.device, "--out", str(options.out), "--go-on"]
    command += ["--seconds", str(max(1.0, left - 15)), *(["--quick"] if options.quick else []), "--only", *names]
    return subprocess.run(command, check=False).returncode or 1


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
