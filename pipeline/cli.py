"""The command line. Heavy packages are imported by what a command calls, never here."""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from worldloom.pipeline import retrieve
from worldloom.pipeline.cli_world import dream, pairs_of, sample

if TYPE_CHECKING:
    from rich.console import Console

    from worldloom.pipeline.config import Pipeline
    from worldloom.pipeline.plan import Plan
    from worldloom.pipeline.reporter import Reporter
    from worldloom.pipeline.transcode import Done

COMPLETE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 3  # exit codes

# typer brings its own copy of click in some releases and depends on click in others; this is ClickException in both.
_ClickException: Any = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="worldloom",
    help="Weaves pictures and text into one stream of tokens and trains one transformer on it.",
    epilog="Exit codes: 0 complete, 1 a stage failed, 2 bad config or usage, 3 interrupted; the same command goes on.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="pipeline file", show_default=False)]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="pipeline file, its root folder or the folder of one run")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[STAGE.SETTING=VALUE]...", help="as in world.steps=3000 root=DIR")]
Output = Annotated[Literal["text", "json"], typer.Option("--output", "-o", help="for people or for programs")]
Only = Annotated[list[str] | None, typer.Option("--only", metavar="STAGE", help="this stage alone; may be repeated")]
From = Annotated[list[str] | None, typer.Option("--from", metavar="STAGE", help="this stage and all that depend on it")]
Until = Annotated[list[str] | None, typer.Option("--until", metavar="STAGE", help="this stage and all that it needs")]
Force = Annotated[
    list[str] | None, typer.Option("--force", metavar="STAGE", help="make it again although it is done, and all that depend on it")
]
ProfileName = Annotated[str | None, typer.Option("--profile", metavar="NAME", help="of the file's profiles; the first by default")]
ExecutorName = Annotated[Literal["ray", "inline"] | None, typer.Option("--executor", help="instead of the profile's")]


@app.command()
def init(
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="to write")] = Path("pipeline.yaml"),
    template: Annotated[
        Literal["shapes", "folder"], typer.Option("--template", "-t", help="a world it draws itself, or your pictures")
    ] = "shapes",
) -> None:
    """Write a pipeline file to start from."""
    from worldloom.pipeline.templates import template as text_of

    if file.exists():
        raise ValueError(f"{file} is there already; give another name")
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "x", encoding="utf-8") as written:
        written.write(text_of(template, template, str(file)))
    _say(f"wrote {file}; next: worldloom plan {file}")


@app.command()
def validate(file: FileArgument, overrides: Overrides = None, output: Output = "text") -> None:
    """Check a pipeline file; list everything that is wrong with it."""
    from worldloom.pipeline.problems import ConfigError

    try:
        pipeline = _read(file, overrides)
    except ConfigError as error:
        if output == "json":
            _say_json({"valid": False, "problems": list(error.problems)})
        else:
            for problem in error.problems:
                typer.echo(problem, err=True)
        raise typer.Exit(USAGE) from None
    if output == "json":
        _say_json({"valid": True, "problems": []})
    else:
        _say(f"{file} is valid: {len(pipeline.stages)} stages")


@app.command()
def plan(
    file: FileArgument,
    overrides: Overrides = None,
    only: Only = None,
    start: From = None,
    until: Until = None,
    force: Force = None,
    output: Output = "text",
) -> None:
    """Show what a run would do, and why."""
    planned = _plan(_read(file, overrides), only, start, until, force)
    if output == "json":
        _say_json(_plan_json(planned, overrides or ()))
    else:
        from worldloom.pipeline.tables import plan_lines

        _say_lines(plan_lines(planned, overrides or ()))


@app.command()
def run(
    file: FileArgument,
    overrides: Overrides = None,
    only: Only = None,
    start: From = None,
    until: Until = None,
    force: Force = None,
    executor: ExecutorName = None,
    profile: ProfileName = None,
    output: Output = "text",
) -> None:
    """Run what is not done; the same command goes on after any stop."""
    from worldloom.pipeline.engine import run_pipeline
    from worldloom.pipeline.profiles import executor_of

    pipeline = _read(file, overrides)
    chosen = pipeline.profile(profile)
    if executor is not None:
        chosen = chosen.model_copy(update={"executor": executor})
    planned = _plan(pipeline, only, start, until, force)
    raise typer.Exit(run_pipeline(planned, executor_of(chosen), _reporter(output)))


@app.command()
def status(run: RunArgument, overrides: Overrides = None, output: Output = "text") -> None:
    """Show how far every stage is, also while it runs."""
    from worldloom.pipeline.locate import locate
    from worldloom.pipeline.overview import as_json, overview
    from worldloom.pipeline.tables import status_lines

    located = locate(run, overrides or ())
    views = overview(located)
    if output == "json":
        _say_json(as_json(located, views))
    else:
        _say_lines(status_lines(located, views))


@app.command()
def show(run: RunArgument, overrides: Overrides = None, output: Output = "text") -> None:
    """Show the figures that the stages measured, and where everything lies."""
    from worldloom.pipeline.locate import locate
    from worldloom.pipeline.overview import as_json, overview
    from worldloom.pipeline.tables import show_lines

    located = locate(run, overrides or ())
    views = overview(located)
    if output == "json":
        _say_json(as_json(located, views))
    else:
        _say_lines(show_lines(located, views))


app.command()(sample)
app.command()(dream)

TokenizerArgument = Annotated[str, typer.Argument(metavar="TOKENIZER", help="a tokenizer's folder, or RUN:STAGE")]
OutFolder = Annotated[Path | None, typer.Option("--out", help="folder to write to; by default beside each file")]


@app.command()
def encode(
    tokenizer: TokenizerArgument,
    files: Annotated[list[Path], typer.Argument(help="pictures, sounds, clips, texts or actions")],
    out: OutFolder = None,
) -> None:
    """Turn files into codes: NAME.codes.npy for each."""
    from worldloom.pipeline.transcode import encode_files

    _say_done(encode_files(tokenizer, files, out))


@app.command()
def decode(
    tokenizer: TokenizerArgument, files: Annotated[list[Path], typer.Argument(help=".npy files of codes")], out: OutFolder = None
) -> None:
    """Turn codes back into pictures, sounds, clips, texts or actions."""
    from worldloom.pipeline.transcode import decode_files

    _say_done(decode_files(tokenizer, files, out))


@app.command()
def serve(
    names: Annotated[
        list[str], typer.Argument(metavar="RUN|TOKENIZER...", help="runs, exported worlds, folders of tokenizers, or RUN:STAGE")
    ],
    port: Annotated[int, typer.Option("--port", help="to listen on; 0 takes any that is free")] = 8484,
    host: Annotated[str, typer.Option("--host", help="address to listen on; others than this machine's own need tokens")] = "127.0.0.1",
    token_file: Annotated[Path | None, typer.Option("--token-file", help="whose tokens are asked for; see worldloom token")] = None,
    replicas: Annotated[int, typer.Option("--replicas", help="processes of each tokenizer")] = 1,
    jobs: Annotated[Path | None, typer.Option("--jobs", help="folder of batches; by default jobs/ beside the run's artifacts")] = None,
    data: Annotated[list[str] | None, typer.Option("--data", metavar="PREFIX=FOLDER", help="a folder that batches may read")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="everything in this one process, without Ray")] = False,
) -> None:
    """Serve tokenizers and the world of a run over HTTP, with the studio page at /."""
    try:
        from worldloom.pipeline.service.serve import serve_command
    except ModuleNotFoundError as error:
        raise ValueError(f"serving needs the extra `serve` ({error.name} is not there); pip install 'worldloom[serve]'") from error

    sources = {name: Path(folder) for name, folder in pairs_of(data or (), "--data", "PREFIX=FOLDER").items()}
    raise typer.Exit(serve_command(names, host, port, token_file, replicas, jobs, sources, plain))


@app.command()
def token(
    tenant: Annotated[str, typer.Argument(metavar="TENANT", help="whose it is: small letters, digits, - and _")],
    to: Annotated[Path | None, typer.Option("--to", help="file of tokens to add it to; without it, its line is printed")] = None,
    quota: Annotated[int | None, typer.Option("--quota", help="cost a minute: pixels, samples, characters, numbers, codes, bytes")] = None,
) -> None:
    """Make a token for the service; it is shown once, the file holds its digest alone."""
    from worldloom.pipeline.service.tenants import add_token

    for line in add_token(tenant, to, quota):
        _say(line)


@app.command()
def verify(run: RunArgument, overrides: Overrides = None, output: Output = "text") -> None:
    """Read every file of every finished artifact and compare it with what was committed."""
    from worldloom.pipeline.locate import locate
    from worldloom.pipeline.verify import verify_run

    root = locate(run, overrides or ()).root
    problems = verify_run(root)
    if output == "json":
        _say_json({"whole": not problems, "problems": problems})
    else:
        for line in problems or [f"{root}: everything is as it was committed"]:
            _say(line)
    raise typer.Exit(FAILED if problems else COMPLETE)


@app.command()
def doctor(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="where runs will be written")] = Path(),
    output: Output = "text",
) -> None:
    """Check this machine: versions, processor, memory, disk, compilers."""
    from worldloom.pipeline.doctor import examine
    from worldloom.pipeline.tables import doctor_lines

    findings = examine(folder)
    if output == "json":
        _say_json([finding._asdict() for finding in findings])
    else:
        _say_lines(doctor_lines(findings))
    raise typer.Exit(FAILED if any(finding.verdict == "problem" for finding in findings) else COMPLETE)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="a pipeline file, its root folder or the folder of one run")],
    out: Annotated[Path, typer.Option(help="new folder to write")],
    to: Annotated[Literal["hf"], typer.Option(help="hf: a plain Qwen3ForCausalLM, as transformers loads it")] = "hf",
    stage: Annotated[str | None, typer.Option(help="the stage that trained the world, where a run has several")] = None,
) -> None:
    """Write a trained world as a folder that other libraries load."""
    from worldloom.pipeline.found import find_artifact
    from worldloom.stages.export_world import EXPORTS

    for name in EXPORTS[to](find_artifact(run, "world_model", stage), out):
        _say(f"{out / name}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of pipeline files, for editors."""
    from worldloom.pipeline.schema import schema_text

    sys.stdout.write(schema_text())


app.command()(retrieve.embed)
app.command()(retrieve.search)


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script: whatever the user got wrong is one line on stderr and exit code 2."""
    sys.exit(exit_code(lambda: app(list(sys.argv[1:] if arguments is None else arguments), standalone_mode=False)))


def exit_code(command: Callable[[], Any]) -> int:
    """Runs a command; errors that people can mend become one line."""
    try:
        code = command()
        sys.stdout.flush()
        return code if isinstance(code, int) else COMPLETE
    except _ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(error.format_message())
            return USAGE
        return _complain(f"{error.format_message()} (worldloom --help says more)")
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("interrupted", err=True)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the output has gone, as `head` does
        from worldloom.pipeline.reporter import nobody_reads

        nobody_reads(sys.stdout)
        return FAILED
    except OSError as error:
        return _complain(_os_error(error), FAILED if error.errno in _FULL else USAGE)
    except ValueError as error:
        return _complain(str(error))


_FULL = (28, 122)  # ENOSPC, EDQUOT: a disk without room is not the config's fault, and a later run goes on


def _os_error(error: OSError) -> str:
    if error.errno in _FULL:
        return f"the disk is full: {error.filename or 'a file'} could not be written; free some room and run again, it goes on from here"
    if error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _complain(text: str, code: int = USAGE) -> int:
    typer.echo("error: " + " ".join(text.split()), err=True)
    return code


def _read(file: Path, overrides: Sequence[str] | None) -> "Pipeline":
    from worldloom.pipeline.config import read_pipeline

    return read_pipeline(file, overrides or ())


def _plan(
    pipeline: "Pipeline", only: Sequence[str] | None, start: Sequence[str] | None, until: Sequence[str] | None, force: Sequence[str] | None
) -> "Plan":
    from worldloom.pipeline.plan import make_plan

    return make_plan(pipeline, only or (), start or (), until or (), force or ())


def _plan_json(planned: "Plan", overrides: Sequence[str]) -> dict[str, Any]:
    stages = [
        {
            "name": one.stage.name,
            "kind": one.stage.kind.name,
            "state": one.state,
            "reason": one.reason,
            "fingerprint": one.stage.fingerprint,
            "artifact": str(one.stage.folder),
            "estimate": {"samples": one.estimate.samples, "codes": one.estimate.codes, "bytes": one.estimate.bytes, "seconds": one.seconds},
        }
        for one in planned.stages
    ]
    return {"name": planned.name, "root": str(planned.root), "overrides": list(overrides), "stages": stages}


def _reporter(output: str) -> "Reporter":
    from worldloom.pipeline.reporter import JsonReporter, LineReporter

    if output == "json":
        return JsonReporter(sys.stdout)
    console = _console()
    if not console.is_terminal or console.is_dumb_terminal:
        return LineReporter(sys.stdout)
    from worldloom.pipeline.terminal import TerminalReporter

    return TerminalReporter(console)


def _console() -> "Console":
    from rich.console import Console

    return Console(highlight=False)


def _say_done(files: Iterable["Done"]) -> None:
    """One line a file; exit code 1 where one was refused."""
    refused = 0
    for source, target, said in files:
        refused += target is None
        typer.echo(f"{source}: {said}" if target is None else f"{source} -> {target}: {said}", err=target is None)
    raise typer.Exit(FAILED if refused else COMPLETE)


def _say(text: str) -> None:
    typer.echo(text)


def _say_lines(lines: Iterable[str]) -> None:
    """Lines with rich's markup; colours only on a terminal, and never with NO_COLOR."""
    console = _console()
    for line in lines:
        console.print(line, soft_wrap=True)


def _say_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False))
