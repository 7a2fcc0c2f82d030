"""`worldloom embed` and `worldloom search`: files to features, and the pictures of a dataset that are nearest to a text or a picture."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from worldloom.pipeline.found import find_artifact
from worldloom.pipeline.locate import locate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from worldloom.pipeline.transcode import Done
    from worldloom.stages.artifact import Artifact
    from worldloom.stages.eye import Eye, Keep
    from worldloom.stages.settings import ImageStream

SHEETS = (".html", ".png")
MOST = 1_000  # hits


def embed(
    encoder: Annotated[str, typer.Argument(metavar="ENCODER", help="an encoder's folder, or RUN:STAGE")],
    files: Annotated[list[Path], typer.Argument(help="pictures")],
    out: Annotated[Path | None, typer.Option("--out", help="folder to write to; by default beside each file")] = None,
    keep: Annotated[
        Literal["pooled", "tokens", "joint"],
        typer.Option("--keep", help="one vector for a picture, one for each part of it, or what a CoCa compares with texts"),
    ] = "pooled",
    form: Annotated[Literal["npy", "json"], typer.Option("--format", help="for NumPy, or for anything")] = "npy",
) -> None:
    """Turn pictures into features: NAME.features.npy (or .json) for each."""
    refused = 0
    for source, target, said in _embedded(encoder, files, out, keep, form):
        refused += target is None
        typer.echo(f"{source}: {said}" if target is None else f"{source} -> {target}: {said}", err=target is None)
    raise typer.Exit(1 if refused else 0)


def search(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="pipeline file, its root folder or the folder of one run")],
    text: Annotated[str | None, typer.Option("--text", help="what to look for, in words; needs an encoder of objective coca")] = None,
    image: Annotated[Path | None, typer.Option("--image", help="picture to look for")] = None,
    count: Annotated[int, typer.Option("--count", "-n", help="pictures to find")] = 12,
    out: Annotated[Path | None, typer.Option("--out", help="contact sheet to write: file.html or file.png")] = None,
    stage: Annotated[
        str | None, typer.Option("--stage", help="stage that embeds the dataset, or that trains the encoder; where a run has several")
    ] = None,
    output: Annotated[Literal["text", "json"], typer.Option("--output", "-o", help="for people or for programs")] = "text",
) -> None:
    """Find the pictures of a dataset that are nearest to a text or a picture."""
    if out is not None:
        can_be_a_sheet(out)  # before a dataset is embedded
    found = search_run(run, text, image, count, stage)
    if out is not None:
        write_sheet(out, found)
    if output == "json":
        hits = [{"split": hit.split, "key": hit.key, "cosine": round(hit.cosine, 4), "caption": hit.caption} for hit in found.hits]
        typer.echo(json.dumps({"features": found.features, "hits": hits}, indent=1, ensure_ascii=False))
        return
    for hit in found.hits:
        typer.echo(f"{hit.cosine:6.3f}  {hit.split}/{hit.key}" + (f"  {hit.caption}" if hit.caption else ""))
    if out is not None:
        typer.echo(f"sheet in {out}")


class Hit(NamedTuple):
    """One picture that was found."""

    split: str
    key: str
    cosine: float
    caption: str  # of the first stream of text; empty where there is none
    picture: "NDArray[np.uint8]"


class Found(NamedTuple):
    """What a search gave, nearest first."""

    asked: "str | NDArray[np.uint8]"
    features: str  # the stage whose features were compared
    hits: list[Hit]


def search_run(run: Path, text: str | None, image: Path | None, count: int = 12, stage: str | None = None) -> Found:
    """The `count` nearest pictures of all splits; where no stage has embedded the dataset, that is done first, and kept beside the others.

    ValueError or FileNotFoundError say what is wrong and what to do.
    """
    if (text is None) == (image is None):
        raise ValueError("say what to look for: either --text or --image")
    if not 1 <= count <= MOST:
        raise ValueError(f"count must be from 1 to {MOST}, got {count}")
    artifact = _features(run, stage, text is not None)
    import torch

    from worldloom.stages.curate import pooled
    from worldloom.stages.dataset import Dataset
    from worldloom.stages.eye import open_eye
    from worldloom.stages.features import FeatureSet
    from worldloom.stages.nearest import exact_anywhere
    from worldloom.stages.seen import Seen
    from worldloom.stages.settings import ImageStream

    features = FeatureSet(artifact)
    pooled(artifact.name, features)
    seen, eye = Seen(features, Dataset(artifact.input("data"))), open_eye(artifact.input("encoder"))
    with torch.inference_mode():
        if text is not None:
            asked: str | NDArray[np.uint8] = text
            query = eye.reads_texts.texts([text])
        else:
            assert image is not None
            stream = seen.data.streams[features.stream]
            assert isinstance(stream, ImageStream)
            asked = _read(image, stream)  # as the dataset's own pictures were read
            query = eye.see(asked[None], features.keep)  # type: ignore[arg-type]
        near = exact_anywhere(features, torch.nn.functional.normalize(query.float(), dim=1).numpy(), min(count, len(features)))
    hits = []
    for number, cosine in zip(near.numbers[0].tolist(), near.cosines[0].tolist(), strict=True):
        split, _, key = seen.key(number).partition("/")
        hits.append(Hit(split, key, cosine, seen.caption(number), seen.picture(number)))
    return Found(asked, artifact.name, hits)


def can_be_a_sheet(out: Path) -> None:
    """ValueError where its name says that it is none."""
    if out.suffix.lower() not in SHEETS:
        raise ValueError(f"{out} does not end in {' or '.join(SHEETS)}")


def write_sheet(out: Path, found: Found) -> None:
    """A contact sheet: .html, one file that fetches nothing, or .png."""
    can_be_a_sheet(out)
    from worldloom.stages.card import png
    from worldloom.stages.contact_sheet import Pinned, contact_sheet

    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix.lower() == ".png":
        asked = [] if isinstance(found.asked, str) else [Pinned(found.asked, "looked for", None)]
        pinned = [Pinned(hit.picture, f"{hit.cosine:.3f} {hit.key} {hit.caption}", None) for hit in found.hits]
        out.write_bytes(png(contact_sheet([*asked, *pinned])))
        return
    out.write_text(_page(found), encoding="utf-8")


def _page(found: Found) -> str:
    from worldloom.pipeline.markup import element
    from worldloom.pipeline.report_blocks import gallery
    from worldloom.pipeline.report_page import page
    from worldloom.stages.card import Item, write_picture

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        items = [
            Item(
                file=write_picture(folder, f"hit-{number:04d}", hit.picture),
                caption=hit.caption or hit.key,
                detail=f"cosine {hit.cosine:.3f}, {hit.split}/{hit.key}",
            )
            for number, hit in enumerate(found.hits)
        ]
        if isinstance(found.asked, str):
            title, query = f"“{found.asked}”", None
        else:
            title = "Pictures like this one"
            query = gallery([Item(file=write_picture(folder, "asked", found.asked), caption="looked for")], folder)
        header = element(
            "header", {}, element("h1", {}, title), element("p", {"class": "lead"}, f"{len(items)} nearest by {found.features}")
        )
        return page(title, element("div", {"class": "wrap"}, header, query, gallery(items, folder)))


def _features(run: Path, stage: str | None, reads_texts: bool) -> "Artifact":
    """The features to search in: those that a stage left, or made now by an encoder of the run."""
    from worldloom.stages.artifact import Artifact, ArtifactError

    folders = {name: folder for name, folder in locate(run).artifacts.items() if (folder / "DONE.json").is_file()}
    if stage is not None and stage not in folders:
        raise ValueError(f"the run has no finished stage {stage!r}; it has {', '.join(folders) or 'none'}")
    finished = [Artifact.open(folder) for name, folder in folders.items() if stage in (None, name)]
    wanted = ("joint",) if reads_texts else ("pooled", "joint")
    fitting = [one for one in finished if one.produces == "features" and one.settings["keep"] in wanted]
    if len(fitting) > 1:
        raise ValueError(f"{run} has several sets of features ({', '.join(one.name for one in fitting)}); name one by --stage")
    if fitting:
        return fitting[0]
    if stage is not None and finished[0].produces != "encoder":
        what = f"features of keep {finished[0].settings['keep']}" if finished[0].produces == "features" else f"a {finished[0].produces}"
        raise ValueError(
            f"{stage} leaves {what}, and this search needs features of keep {' or '.join(wanted)}, or an encoder; name another stage"
        )
    encoders = [one for one in finished if one.produces == "encoder" and (not reads_texts or (one.folder / "coca").is_dir())]
    if not encoders:
        what = "encoder of objective coca, which a text needs," if reads_texts else "encoder"
        raise ArtifactError(f"no {what} in {run if stage is None else stage} yet; train one by pretrain_encoder")
    if len(encoders) > 1:
        raise ValueError(f"{run} has several encoders ({', '.join(one.name for one in encoders)}); name one by --stage")
    return _index(encoders[0], locate(run).root, "joint" if reads_texts else "pooled")


def _index(encoder: "Artifact", root: Path, keep: "Keep") -> "Artifact":
    """What a stage that embeds the encoder's own dataset would leave, made at the first use and found at the next."""
    from worldloom.pipeline.fingerprint import fingerprint
    from worldloom.stages import embed_dataset
    from worldloom.stages.artifact import execute
    from worldloom.stages.worker import Worker

    if "data" not in encoder.inputs:
        raise ValueError(
            f"{encoder.name} was imported, so no dataset of the run is its own to search in; add a stage embed_dataset and search by that"
        )
    data = encoder.input("data")
    name = f"search-{encoder.name}-{keep}"
    settings = embed_dataset.EmbedDataset(
        run="embed_dataset", data=data.name, encoder=encoder.name, stream=encoder.settings["stream"], keep=keep
    )
    inputs = {"data": data, "encoder": encoder}
    identity = fingerprint(name, embed_dataset.STAGE, settings, {field: each.fingerprint for field, each in inputs.items()}, {})
    out = root / "artifacts" / name / identity
    if not (out / "DONE.json").exists():
        typer.echo(f"embedding {data.name} by {encoder.name}, once", err=True)
    return execute(embed_dataset.STAGE, name, settings, inputs, out, Worker())


def _embedded(encoder: str, files: Sequence[Path], out: Path | None, keep: "Keep", form: str) -> "Iterator[Done]":
    """What became of each file, as soon as it is known."""
    import numpy as np
    import torch

    from worldloom.pipeline.transcode import each_file
    from worldloom.stages.disk import canonical_json
    from worldloom.stages.preprocess import read_value
    from worldloom.stages.settings import ImageStream

    eye = _eye(encoder)
    eye.form(keep)  # says now, and not for each file, where there is no such thing
    stream = ImageStream(kind="image", size=eye.side)

    def embed_file(source: Path, target: Path) -> str:
        with torch.inference_mode():
            features = eye.see(read_value(source, stream)[None], keep)[0].float().numpy()
        if form == "json":
            target.write_bytes(canonical_json({"file": source.name, "encoder": eye.name, "keep": keep, "features": features.tolist()}))
        else:
            np.save(target, features)
        return f"{' x '.join(map(str, features.shape))} numbers"

    return each_file(files, out, lambda source: f"{source.stem}.features.{form}", embed_file)


def _eye(encoder: str) -> "Eye":
    """An encoder by its folder, or as RUN:STAGE by the stage that trained it."""
    from worldloom.stages.eye import open_eye, open_eye_folder

    for folder in (Path(encoder), Path(encoder).parent):
        if (folder / "encoder" / "config.json").is_file():
            return open_eye_folder(folder)
    run, colon, stage = encoder.rpartition(":")
    if not colon:
        raise ValueError(
            f"{encoder} is no folder of an encoder (there is no encoder/config.json in it); give one, or RUN:STAGE (runs/shapes:eye)"
        )
    return open_eye(find_artifact(Path(run), "encoder", stage))


def _read(path: Path, stream: "ImageStream") -> "NDArray[np.uint8]":
    from worldloom.stages.preprocess import read_value
    from worldloom.stages.rejects import InputRejected

    try:
        picture: NDArray[np.uint8] = read_value(path, stream)
    except InputRejected as error:
        raise ValueError(f"{path} cannot be read as a picture: {error.code}: {error.detail}") from None
    return picture
