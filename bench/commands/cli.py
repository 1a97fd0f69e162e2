"""The command line. Nothing heavy is imported before a command needs it: `--help` answers at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import click

from bench import __version__
from bench.errors import InputError, NoWorkers


class _Group(click.Group):
    """Turns bad input into exit code 2, and the loss of all workers into 1, with one message and no traceback."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except InputError as error:
            click.echo(f"ownbench: {error}", err=True)
            sys.exit(2)
        except NoWorkers as error:
            click.echo(f"ownbench: {error}", err=True)
            sys.exit(1)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ownbench")
def main() -> None:
    """Which ways of proving ownership of a neural network hold up.

    Exit codes: 0 all cells ok or not applicable; 1 some cell failed, some rule is violated, or a claim does not hold;
    2 bad input.
    """


@main.command("list")
@click.argument("names", nargs=-1)
def list_command(names: tuple[str, ...]) -> None:
    """Defenses, attacks, tasks and suites, with parameters and sources; NAMES for a few of them."""
    from bench.commands import listing

    click.echo(listing.everything(names), nl=False)


@main.command()
@click.argument("suite")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder; default results/runs/SUITE.")
@click.option(
    "--workers", type=click.IntRange(min=1), help="Jobs at once; default: what the machine or the cluster has."
)
@click.option("--seeds", type=click.IntRange(min=1), help="Run seeds 0 to N-1 instead of the suite's.")
@click.option("--seed", "one_seed", type=click.IntRange(min=0), multiple=True, help="Run just this seed; repeatable.")
@click.option("--only", multiple=True, metavar="task=…|defense=…|attack=…", help="By name or label; repeatable.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--fresh", is_flag=True, help="Set an earlier run folder aside and start anew.")
@click.option("--local", is_flag=True, help="One process without Ray, for debuggers; no time limit.")
@click.option("--plan", "plan_only", is_flag=True, help="Print jobs, time and disk of the run; start nothing.")
@click.option(
    "--gpus-per-job",
    type=click.FloatRange(min=0, max=1, min_open=True),
    metavar="SHARE",
    help="Of a GPU, above 0 to 1: 0.25 runs four jobs on each. Default: as many as memory holds.",
)
@click.option("--address", metavar="HOST:PORT", help="Join this Ray cluster (or auto) instead of starting one here.")
def run(
    suite: str,
    out: Path | None,
    workers: int | None,
    seeds: int | None,
    one_seed: tuple[int, ...],
    only: tuple[str, ...],
    device: str,
    fresh: bool,
    local: bool,
    plan_only: bool,
    address: str | None,
    gpus_per_job: float | None,
) -> None:
    """Run SUITE (a name or a TOML file); what an earlier run finished is not done again."""
    from bench.planning.options import Options

    if seeds is not None and one_seed:
        raise InputError("--seeds and --seed: expected one of them, got both")
    chosen = tuple(range(seeds)) if seeds is not None else (tuple(dict.fromkeys(one_seed)) or None)
    options = Options(suite, out, workers, chosen, only, device, fresh, local, address, gpus_per_job)
    if plan_only:
        from bench.commands import preview

        click.echo(preview.text(options), nl=False)
        return
    from bench.storage import settled

    # Before anything heavy is imported: a run that is whole needs neither PyTorch nor a plan.
    known = settled.inputs(options)
    if whole := settled.finished(options, known):
        from bench.commands import boards

        click.echo(boards.show_settled(*whole), nl=False)
        return
    from bench.commands import run as running

    sys.exit(running.run(options, known=known))


@main.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--format", "form", type=click.Choice(["table", "markdown", "json", "parquet"]), default="table", show_default=True
)
@click.option(
    "--null",
    type=click.Path(path_type=Path),
    help="Folder of a null table: which defenses have honest p-values; default results/null, where it is there.",
)
def leaderboard(runs: tuple[Path, ...], form: str, null: Path | None) -> None:
    """Print the leaderboard of one or more run folders; parquet writes the files and prints their paths."""
    from bench.commands import boards

    click.echo(boards.show(runs, form, null), nl=False)


@main.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.option(
    "--protocol",
    type=click.Choice(["evidence", "committed", "derived"]),
    help="Count a defense that can be forged as worth nothing: on evidence alone, with keys committed to before, or "
    "with keys that are derived as well. By default forgeries are not counted.",
)
def game(runs: tuple[Path, ...], form: str, protocol: Literal["evidence", "committed", "derived"] | None) -> None:
    """Which defense an owner should choose, and which attack is best against it: the game of one or more run folders.

    Once for an owner whose choice the attacker sees, and once for both choosing unseen, by chance.
    """
    from bench.commands import games

    click.echo(games.show(runs, form, protocol), nl=False)


@main.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option("--to", type=click.Path(path_type=Path), default=Path("results"), show_default=True, help="Folder.")
@click.option("--readme", type=click.Path(path_type=Path), help="Renew the tables between its markers, too.")
def publish(runs: tuple[Path, ...], to: Path, readme: Path | None) -> None:
    """Publish run folders (or published sets) as one: Parquet, Markdown, figures, and a page that opens from disk.

    Runs have to agree in their protocol. Publishing the same again changes nothing.
    """
    from bench.commands import publishing

    click.echo(publishing.publish(runs, to, readme), nl=False)


@main.command()
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--to", type=click.Path(path_type=Path), metavar="FILE", help="Default: the run's name and .zip, here.")
def pack(run_folder: Path, to: Path | None) -> None:
    """Pack RUN (or a published set) as one archive to submit: records, suite, environment, digests.

    The same run gives the same bytes. A run that `ownbench accept` would refuse is refused here, with the reason.
    """
    from bench.commands import submitting

    click.echo(submitting.pack(run_folder, to), nl=False)


@main.command()
@click.argument("archive", type=click.Path(path_type=Path))
@click.option("--to", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Folder of the set.")
@click.option("--origin", metavar="NAME", help="Who submitted it; default: the name of the file.")
def accept(archive: Path, to: Path, origin: str | None) -> None:
    """Check ARCHIVE, which anybody may have made, and publish its rows in DIR beside those there, marked with NAME.

    Nothing in it is run. Nothing in DIR is replaced: its defenses are listed as DEFENSE@NAME.
    """
    from bench.commands import submitting

    click.echo(submitting.accept(archive, to, origin), nl=False)


@main.command()
@click.argument("first", metavar="A", type=click.Path(path_type=Path))
@click.argument("second", metavar="B", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def compare(first: Path, second: Path, form: str) -> None:
    """What changed from A to B (run folders or published sets): better, worse, within noise, missing.

    Both have to agree in their protocol. Differences are paired over the seeds that both have.
    """
    from bench.commands import publishing

    click.echo(publishing.compare(first, second, form), nl=False)


@main.command()
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("job", required=False)
def show(run_folder: Path, job: str | None) -> None:
    """Print one record of RUN by its JOB id or a prefix of it: whole provenance, and how to repeat it.

    Without JOB all tables of RUN.
    """
    from bench.commands import boards

    click.echo(boards.show([run_folder], "table") if job is None else boards.describe(run_folder, job), nl=False)


@main.command()
@click.argument("role", type=click.Choice(["defense", "attack"]))
@click.argument("name")
@click.option("--to", type=click.Path(path_type=Path), help="Folder; default: the project's own, else this one.")
def new(role: Literal["defense", "attack"], name: str, to: Path | None) -> None:
    """Write a commented skeleton of a defense or attack NAME that runs as it stands, and say what comes next."""
    from bench.commands import new as making

    click.echo(making.new(role, name, to), nl=False)


@main.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME|FILE...")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A parameter, in TOML; repeatable.")
def check(names: tuple[str, ...], settings: tuple[str, ...]) -> None:
    """Hold plugins to the contract, by NAME or all those of a Python FILE: a verdict for each rule.

    Takes under a minute for a plugin. Exit codes: 0 all rules hold or are skipped; 1 some rule is violated;
    2 bad input, a file that does not import among it.
    """
    from bench.commands import check as checking

    sys.exit(checking.check(names, settings, click.echo))


@main.command()
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--defense", required=True, metavar="LABEL", help="As the leaderboard prints it.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Which repetition.")
@click.option("--task", help="Which task, where the run has several.")
@click.option("--owner", required=True, metavar="NAME", help="Who claims: a name that stands for one owner alone.")
@click.option("--to", required=True, type=click.Path(path_type=Path), help="Folder for model, key and commitment.")
def claim(run_folder: Path, defense: str, seed: int, task: str | None, owner: str, to: Path) -> None:
    """Commit to a protected model of RUN before it is shown: writes the model, the secret key, and a commitment.

    The commitment is published first; it tells nothing of the key. In a dispute the key opens it: `ownbench verify`.
    """
    from bench.commands import claims

    click.echo(claims.claim(run_folder, defense, seed, owner, to, task), nl=False)


_alpha = click.option("--alpha", type=float, default=1e-6, show_default=True, help="Rate of false claims, in (0, 1).")
_data = click.option("--data", "at", metavar="PATH", help="Where the owner's own data lies here.")
_form = click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("key", type=click.Path(path_type=Path))
@click.option("--commitment", type=click.Path(path_type=Path), help="The published one; without it evidence alone.")
@_alpha
@_data
@click.option("--which", default="", metavar="NAME", help="Of a file with several models.")
@_form
def verify(
    model: Path, key: Path, commitment: Path | None, alpha: float, at: str | None, which: str, form: str
) -> None:
    """Judge the suspect file MODEL by the key file KEY: whether the owner's claim on it holds, with its p-value.

    MODEL is a safetensors file: of `ownbench claim`, a product of a run, or the state dict of a model of the claimed
    architecture. Exit codes: 0 the claim holds; 1 it does not; 2 bad input, a file that cannot be read among it.
    """
    from bench.commands import claims

    holds, told = claims.verify(model, key, commitment, alpha, at, which, form)
    click.echo(told, nl=False)
    sys.exit(0 if holds else 1)


@main.command()
@click.argument("first", metavar="A", type=click.Path(path_type=Path))
@click.argument("second", metavar="B", type=click.Path(path_type=Path))
@click.option("--time-a", metavar="TIME", help="When A committed by the log, where it is not what the file says.")
@click.option("--time-b", metavar="TIME", help="When B did.")
@_alpha
@_data
@_form
def resolve(
    first: Path, second: Path, time_a: str | None, time_b: str | None, alpha: float, at: str | None, form: str
) -> None:
    """Rule on two opposing claims: A and B are folders with the model, the key and the commitment of each side.

    Both keys are held against both models. Exit codes: 0 one side wins; 1 undecided; 2 bad input.
    """
    from bench.commands import claims

    decided, told = claims.resolve((first, second), (time_a, time_b), alpha, at, form)
    click.echo(told, nl=False)
    sys.exit(0 if decided else 1)
