"""The commands that ask a trained world: sample and dream."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import typer

Number = TypeVar("Number", int, float)


Infill = Annotated[
    list[str] | None,
    typer.Option(
        "--infill",
        metavar="STREAM=FIRST:END",
        help="write only these codes of what is given anew, counted from 0, END not among them; may be repeated",
    ),
]
Temperature = Annotated[
    list[str] | None,
    typer.Option("--temperature", help="0 takes the likeliest token; by default 0.25 for an answer, 1 from nothing; or STREAM=NUMBER"),
]
FillSteps = Annotated[
    int | None,
    typer.Option(
        "--fill-steps",
        help="write pictures, clips and sounds in so many steps, by hidden codes; 0: token by token; by default as the world learnt",
    ),
]
FillOrder = Annotated[
    Literal["confidence", "random", "raster"] | None,
    typer.Option(
        "--fill-order", help="where codes are filled in, which are settled first: the surest (by default), any, or those in front"
    ),
]
FillLength = Annotated[
    list[str] | None,
    typer.Option(
        "--fill-length", metavar="STREAM=CODES", help="where codes are filled in, so many of a stream whose length varies, such as a text"
    ),
]
TopP = Annotated[
    list[str] | None, typer.Option("--top-p", help="takes the likeliest tokens that make up this probability; or STREAM=NUMBER")
]
TokensOf = Annotated[
    str | None, typer.Option("--tokens", help="whose dataset and tokenizers, where the world learnt from several; the first by name")
]


def sample(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="pipeline file, its root folder, the folder of one run or an exported world")],
    caption: Annotated[str | None, typer.Option("--caption", help="text to draw")] = None,
    image: Annotated[Path | None, typer.Option("--image", help="picture to describe")] = None,
    give: Annotated[list[str] | None, typer.Option("--give", metavar="STREAM=VALUE", help="another stream's text or file")] = None,
    want: Annotated[list[str] | None, typer.Option("--want", metavar="STREAM", help="streams to make; by default those not given")] = None,
    infill: Infill = None,
    out: Annotated[Path | None, typer.Option("--out", help="file.png (.wav, .json) or folder")] = None,
    count: Annotated[int, typer.Option("--count", "-n", help="samples")] = 1,
    seed: Annotated[int, typer.Option("--seed", help="of every draw; the same one gives the same samples")] = 0,
    temperature: Temperature = None,
    top_k: Annotated[list[str] | None, typer.Option("--top-k", help="0 takes all tokens; or STREAM=NUMBER")] = None,
    top_p: TopP = None,
    guidance: Annotated[float, typer.Option("--guidance", help="how strongly what is given counts; 1 as learnt")] = 1.0,
    fill_steps: FillSteps = None,
    fill_order: FillOrder = None,
    fill_length: FillLength = None,
    scale: Annotated[int, typer.Option("--scale", help="enlarge pictures so many times")] = 1,
    see: Annotated[Path | None, typer.Option("--see", help="picture that a world trained with `sees` is shown ahead of all")] = None,
    stage: Annotated[str | None, typer.Option("--stage", help="which world model, where a run has several")] = None,
    tokens: TokensOf = None,
) -> None:
    """Ask a trained world: a caption gives a picture, a picture a caption, nothing gives everything."""
    from worldloom.pipeline.sample import Asked, sample_command, sample_lines

    asked = Asked(
        caption=caption,
        image=image,
        give=pairs_of(give or (), "--give"),
        see=see,
        want=want,
        infill=_places(infill or ()),
        out=out,
        seed=seed,
        count=count,
        temperature=_numbers(temperature, "--temperature", float),
        top_k=_numbers(top_k, "--top-k", int),
        top_p=_numbers(top_p, "--top-p", float),
        guidance=guidance,
        fill_steps=fill_steps,
        fill_order=fill_order,
        fill_lengths=_numbers(fill_length, "--fill-length", int),
        scale=scale,
    )
    for line in sample_lines(sample_command(run, asked, stage, tokens)):
        typer.echo(line)  # a world may say anything, brackets too: no markup


def dream(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="pipeline file, its root folder or the folder of one run")],
    out: Annotated[Path, typer.Option("--out", help="file.gif, or file.mp4 with sound")],
    steps: Annotated[int | None, typer.Option("--steps", help="how far; by default as far as the sample, or the actions, go")] = None,
    actions: Annotated[
        str | None, typer.Option("--actions", help='instead of the sample\'s own: "left,left,up", numbers, or a file')
    ] = None,
    policy: Annotated[Literal["random"] | None, typer.Option("--policy", help="who acts instead")] = None,
    seed: Annotated[int, typer.Option("--seed", help="of the sample and of every draw")] = 0,
    temperature: Annotated[float | None, typer.Option("--temperature", help="0 takes the likeliest token; by default 0.25")] = None,
    stage: Annotated[str | None, typer.Option("--stage", help="which world model, where a run has several")] = None,
    tokens: Annotated[
        str | None,
        typer.Option("--tokens", help="which set of tokens to begin from, where the world learnt from several; the first by name"),
    ] = None,
    given: Annotated[int, typer.Option("--given", help="true frames to begin with; from two on they show what moves already")] = 1,
) -> None:
    """Roll a trained world out from frames that it has not seen, beside how that really went on."""
    from worldloom.pipeline.dream import dream_command

    made = dream_command(run, out, steps, actions, policy, seed, temperature, stage, tokens, given)
    sides = ", true at the left, dreamed at the right" if made.truth else ""
    typer.echo(f"{made.frames} frames in {made.file}, from {made.sample} of {made.split}{sides}")


def pairs_of(given: Sequence[str], option: str, form: str = "STREAM=VALUE") -> dict[str, str]:
    """What is before and behind the first equals sign of each; ValueError where one has none."""
    pairs = [one.partition("=") for one in given]
    for name, equals, _ in pairs:
        if not (name and equals):
            raise ValueError(f"{option} {name}: write {form}")
    return {name: value for name, _, value in pairs}


def _places(given: Sequence[str]) -> dict[str, list[int]]:
    """Which codes of each stream."""
    found: dict[str, list[int]] = {}
    for one in given:
        name, _, places = one.partition("=")
        first, _, end = places.partition(":")
        if not (name and first.isdecimal() and end.isdecimal() and int(first) < int(end)):
            raise ValueError(f"--infill {one}: write STREAM=FIRST:END, two whole numbers, FIRST below END")
        found.setdefault(name, []).extend(range(int(first), int(end)))
    return found


def _numbers(given: Sequence[str] | None, option: str, kind: type[Number]) -> dict[str, Number]:
    """NUMBER, for all streams, under "", and STREAM=NUMBER under its name."""
    found: dict[str, Number] = {}
    for one in given or ():
        name, _, number = one.rpartition("=")
        try:
            found[name] = kind(number)
        except ValueError:
            raise ValueError(f"{option} {one}: write a number, or STREAM=NUMBER") from None
    return found
