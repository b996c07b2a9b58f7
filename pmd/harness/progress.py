"""The progress of runs in other processes, read from their logs: what their starter's progress bar shows."""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from pmd.harness.run_folder import complete_rows
from pmd.sampling.accuracy import score


def show(bar: tqdm, runs: list[tuple[Path, int]]) -> None:
    """Bring a bar over the steps of all these runs, each (folder, steps), up to date.

    Beside it stand the mean reward and the validation score of the runs under way and their tokens/s together.
    """
    rows = [last_row(folder) for folder, _ in runs]
    running = [row for row, (_, steps) in zip(rows, runs, strict=True) if 0 < row["step"] < steps]
    if running:
        means = {key: sum(row[key] for row in running) / len(running) for key in ("reward", "val")}
        rate = sum(row["tokens_per_s"] for row in running)
        bar.set_postfix_str(
            f"reward {means['reward']:.3f}, val {means['val']:.3f}, {rate:,.0f} tokens/s",
            refresh=False,
        )
    bar.update(sum(row["step"] for row in rows) - bar.n)


def last_row(folder: Path) -> dict:
    """{"step", "reward", "val", "tokens_per_s"} from the last complete rows of a run's logs; 0 if there is no row."""
    row = {"step": 0, "reward": 0.0, "val": 0.0, "tokens_per_s": 0.0}
    for name, keys in (("timing.jsonl", ("step", "tokens_per_s")), ("log.jsonl", ("reward",))):
        for last in complete_rows(folder / name)[-1:]:
            row |= {key: last[key] for key in keys}
    evaluations = [summary for summary in complete_rows(folder / "eval.jsonl") if summary["set"] == "val"]
    return row | {"val": score(evaluations[-1]) if evaluations else 0.0}
