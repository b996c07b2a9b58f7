"""The `pmd` command (and `python -m pmd`): one thin function a sub-command, which imports what it runs when it runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pmd.extras import missing

try:
    import click
except ModuleNotFoundError as error:
    sys.exit(str(missing("pmd's command", error)))

FILE = click.Path(path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """PMD-mean, from clone to paper: what `dvc repro` runs, and what helps beside it.

    \b
    Examples:
      pmd preset smoke && dvc repro                  the whole pipeline in three minutes
      pmd plan paper-7b --gpus 8 --memory 80         does a run fit, before it is started
      pmd overlap train.jsonl test.jsonl             which test problems are in the training set
      torchrun --nproc-per-node 8 -m pmd scale NAME  an entry of `scale` in params.yaml, on eight GPUs
    """


@cli.command()
@click.argument("path", type=FILE)
@click.option("-p", "pairs", multiple=True, metavar="NAME=VALUE", help="A parameter; its value is read as YAML.")
@click.option("--stage", help="The name of the executed copy; the notebook's own if not given.")
def notebook(path: Path, pairs: tuple[str, ...], stage: str | None) -> None:
    """Execute a notebook as a stage of the pipeline.

    The namespaces of params.yaml that its cell `parameters` declares are given to it whole, then each -p. A dotted NAME
    changes one setting of a namespace.

    Example: pmd notebook notebooks/3-training.ipynb -p preset=mine -p train.tau=0.1
    """
    from pmd.notebook import execute, parse

    execute(path, stage or path.stem, parse(pairs))


@cli.command()
@click.argument("out", type=FILE)
def sources(out: Path) -> None:
    """Write the code of all notebooks to the folder OUT.

    The stages depend on it, and not on the notebooks, into which JupyterLab writes outputs.

    Example: pmd sources runs/sources
    """
    from pmd.files import ROOT
    from pmd.notebook import write_sources

    click.echo(write_sources(ROOT / "notebooks", out))


@cli.command("check")
def check_params() -> None:
    """Check every setting of params.yaml.

    Every stage does so too before it begins.

    Example: pmd check
    """
    from pmd.params import load
    from pmd.settings import check

    check(load())
    click.echo("params.yaml: every setting is valid")


@cli.command()
@click.argument("name")
def preset(name: str) -> None:
    """Apply presets/NAME.yaml to params.yaml.

    `git diff params.yaml` shows what changed, `git restore params.yaml dvc.lock metrics.json` goes back.

    Example: pmd preset smoke
    """
    from pmd.params import apply_preset

    apply_preset(name)
    click.echo(f"params.yaml now holds preset {name!r}: `git diff params.yaml` shows it, `dvc repro` runs it,")
    click.echo("`git restore params.yaml dvc.lock metrics.json` goes back")


@cli.group()
def problems() -> None:
    """Write the problem sets of the embedded arithmetic task."""


@problems.command()
@click.argument("out", type=FILE)
def generate(out: Path) -> None:
    """Write the five embedded sets to the folder OUT.

    Fails if they are not what data.dvc pins.

    Example: pmd problems generate runs/problems
    """
    from pmd.problems.arithmetic import generate_pinned

    click.echo(generate_pinned(out))


@problems.command()
@click.argument("name")
@click.argument("out", type=FILE)
def harder(name: str, out: Path) -> None:
    """Write the harder version NAME to the folder OUT.

    NAME is an entry of `tasks` in params.yaml.

    Example: pmd problems harder hard runs/tasks/hard
    """
    from pmd.problems.arithmetic import generate_harder

    click.echo(generate_harder(name, out))


@problems.command()
def pin() -> None:
    """Accept a changed generator: data.dvc pins what it writes.

    Example: pmd problems pin
    """
    from pmd.problems.arithmetic import pin_generated

    click.echo(pin_generated())


@cli.command()
@click.argument("name")
@click.argument("out", type=FILE)
@click.option("--metrics", type=FILE, help="A JSON file for the counts of what was kept and dropped.")
def sets(name: str, out: Path, metrics: Path | None) -> None:
    """Write a foreign problem set, cleaned and counted, as JSONL.

    NAME is an entry of `sets` or `hub_sets` in params.yaml.

    Example: pmd sets gsm8k runs/sets/gsm8k.jsonl
    """
    from pmd.foreign_sets.cleaning import write_set

    click.echo(write_set(name, out, metrics))


@cli.command()
@click.argument("train", type=FILE)
@click.argument("test", type=FILE)
def overlap(train: Path, test: Path) -> None:
    """List the problems of TEST that TRAIN holds too.

    Prompts are compared in a normal form: templates, spacing and punctuation make no difference.

    Example: pmd overlap runs/sets/dapo.jsonl runs/sets/math500.jsonl
    """
    from pmd.foreign_sets.cleaning import report_overlap

    click.echo(report_overlap(train, test))


@cli.command()
@click.argument("responses", type=FILE)
@click.argument("problems", type=FILE)
@click.argument("out", type=FILE)
def score(responses: Path, problems: Path, out: Path) -> None:
    """Score responses that another program sampled.

    RESPONSES holds one JSON object a line with `prompt_id` and `response`, optionally `truncated` (false if left out)
    and `tokens`. Writes samples.parquet, metrics.json and examples.md to OUT.

    Example: pmd score responses.jsonl runs/sets/math500.jsonl runs/scored
    """
    from pmd.evaluators.benchmark import metrics_table, score_file

    click.echo(metrics_table(score_file(responses, problems, out)).round(4).to_string())


@cli.command()
@click.argument("name")
@click.option("--gpus", type=int, help="Their number in all; the entry's nodes x ranks if not given.")
@click.option("--memory", type=float, default=80, show_default=True, help="GiB of one GPU.")
def plan(name: str, gpus: int | None, memory: float) -> None:
    """Say what memory a run takes and whether it fits.

    If it does not, the plan names the settings that help. NAME is a preset or an entry of `scale` in params.yaml.

    Example: pmd plan paper-7b --gpus 8 --memory 80
    """
    from pmd.scale.plan import report

    click.echo(report(name, gpus, memory))


@cli.command()
@click.argument("preset")
@click.option("--only", multiple=True, help="law, finite or train; may be repeated. All of them if not given.")
@click.option("--seconds", type=float, help="After so many seconds no further training run begins.")
def experiment(preset: str, only: tuple[str, ...], seconds: float | None) -> None:
    """Run the experiments of a preset without notebooks and DVC.

    Runs whose rows are in results/PRESET/evidence already are not made again.

    Example: pmd experiment study --only train --seconds 3600
    """
    import math

    from pmd.experiments.preset import PARTS, run

    for line in run(preset, only or PARTS, math.inf if seconds is None else seconds):
        click.echo(line)


@cli.group()
def study() -> None:
    """Make a run of the study again and compare it."""


@study.command()
@click.argument("run")
@click.option("--preset", default="study", show_default=True, help="Another preset whose evidence holds the run.")
def check(run: str, preset: str) -> None:
    """Make one run again and compare.

    On the same kind of processor it must give the same answers, on another an accuracy within the range of the runs
    that differ from it in base model and seed alone.

    Example: pmd study check pmd-mean/K-8/lr-0.00015/base-1-seed-101
    """
    from pmd.experiments.check import check as check_run

    click.echo(check_run(run, preset))


@cli.command()
@click.argument("before", type=FILE)
@click.argument("after", type=FILE)
def verdicts(before: Path, after: Path) -> None:
    """Compare the verdicts of two runs.

    BEFORE and AFTER are tables T1.csv, or folders results/PRESET. Exit status 1 if a verdict differs; each is named.

    Example: pmd verdicts committed/T1.csv results/default
    """
    from pmd.paper.verdicts import compare

    click.echo(compare(before, after))


@cli.command()
@click.argument("name")
@click.option("--params", "file", type=FILE, help="Another params.yaml.")
def scale(name: str, file: Path | None) -> None:
    """Train an entry of `scale`, as a rank of torchrun or alone.

    The entries of `scale` are in params.yaml. A run that stopped goes on from its last checkpoint.

    \b
    Examples:
      pmd scale NAME                                               one process
      torchrun --standalone --nproc-per-node 8 -m pmd scale NAME   eight GPUs of one machine
      sbatch --nodes 4 scripts/train.slurm NAME                    four machines
    """
    from pmd.scale.run import run_rank

    run_rank(name, file)


def main(arguments: list[str] | None = None) -> None:
    """Run the command. A mistake is one line on stderr: exit status 2 for a wrong call, 1 for what went wrong in it."""
    try:
        cli.main(arguments, prog_name="pmd", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "pmd"
        click.echo(f"{path}: {error.format_message()} (see `{path} --help`)", err=True)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped; the same command goes on with what is finished", err=True)
        sys.exit(130)
    except BrokenPipeError:  # whoever read our output, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (ValueError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
