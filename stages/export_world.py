"""A trained world as a folder that transformers, and what reads its formats, loads without this code; this code opens it again, too."""

import json
from collections.abc import Sequence
from pathlib import Path

from worldloom.stages.artifact import Artifact
from worldloom.stages.exported import STREAMS, Exported, ExportedStream
from worldloom.stages.open_world import OpenWorld, encoded_by, open_world, sets_of_tokens
from worldloom.stages.settings import dump
from worldloom.world_model.qwen3 import save_qwen3

# With these, ids are sentencepiece's own, and nothing that a text says is taken for a control token.
_TEXT = {
    "tokenizer_class": "LlamaTokenizer",
    "legacy": False,
    "add_prefix_space": False,
    "split_special_tokens": True,
    "add_bos_token": False,
}


def export_world(artifact: Artifact, out: Path) -> list[str]:
    """Writes the model, its vocabulary, its tokenizers and a model card into `out`; the names of the files.

    What transformers needs for texts stands beside the model where all its texts have one tokenizer, else with each of those. ValueError if
    `out` holds files already, or the artifact is no world.
    """
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; give a new folder, so that no file of another model stays in it")
    world = open_world(artifact)
    save_qwen3(out, world.model, world.grammar)
    places = _write_tokenizers(artifact, world, out)
    texts = list(dict.fromkeys(places[name] for name, kind in world.streams.items() if kind == "text"))
    for place in texts:
        _write_text(out / place, out if len(texts) == 1 else out / place)
    streams = {name: ExportedStream(stream=world.dataset.streams[name], tokenizer=place) for name, place in places.items()}
    about = Exported(
        name=artifact.name,
        fingerprint=artifact.fingerprint,
        objectives=world.objectives,
        oracle=world.dataset.oracle,
        streams=streams,
    )
    (out / STREAMS).write_text(json.dumps(dump(about), indent=2) + "\n", encoding="utf-8")
    (out / "README.md").write_text(_card(artifact, world, texts), encoding="utf-8")
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())


def _write_tokenizers(artifact: Artifact, world: OpenWorld, out: Path) -> dict[str, str]:
    """The folder of every stream's tokenizer, below `out`; streams that share one share its folder."""
    sets, places, written = sets_of_tokens(artifact).values(), dict[str, str](), dict[Path, str]()
    for name in world.streams:
        made = encoded_by(name, sets).input(f"tokenizers.{name}")
        places[name] = written.setdefault(made.folder, f"tokenizers/{name}")
        for file in (file for file in made.files() if file.startswith("tokenizer/")):
            place = out / places[name] / file.removeprefix("tokenizer/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(made.content(file))
    return places


def _write_text(tokenizer: Path, out: Path) -> None:
    """What transformers reads of a tokenizer of texts."""
    if out != tokenizer:
        (out / "tokenizer.model").write_bytes((tokenizer / "tokenizer.model").read_bytes())
    (out / "tokenizer_config.json").write_text(json.dumps(_TEXT, indent=2) + "\n", encoding="utf-8")


EXPORTS = {"hf": export_world}


def _card(artifact: Artifact, world: OpenWorld, texts: Sequence[str]) -> str:
    ids = world.vocabulary
    rows = "\n".join(
        f"| {stream.name} | {stream.kind} | {stream.codebook_size} | {stream.levels} | "
        f"{' x '.join(map(str, stream.shape)) if stream.shape else f'at most {stream.max_length}'} | "
        f"{ids.span(s).start} .. {ids.span(s).stop - 1} | `<{stream.name}>` {ids.indicator(s)} |"
        for s, stream in enumerate(ids.streams)
    )
    parameters = sum(parameter.numel() for parameter in world.model.parameters())
    many = f", from a folder for each of the {len(texts)} tokenizers: {', '.join(texts)}; their ids mean different pieces"
    words = f"`AutoTokenizer` gives the ids of texts (those without U+2581 and U+0010){many if len(texts) > 1 else ''}.\n" if texts else ""
    return (
        "---\nlibrary_name: transformers\ntags: [world-model]\n---\n\n"
        f"# {artifact.name}\n\n"
        f"A world model of {parameters:,} parameters, trained by worldloom: one causal transformer over the tokens of all its streams. "
        "Each segment of a sample opens with its stream's control token, which the model writes itself.\n\n"
        "| stream | kind | codebook | levels | codes | ids | opens with |\n|---|---|---|---|---|---|---|\n"
        f"{rows}\n\n"
        f"`<bos>` is {ids.bos}, `<eos>` {ids.eos}. Code c of level l of a stream is id `first + l * codebook + c`; worldloom.json has all "
        f"spans and the grammar.\n{words}\n"
        "```python\nfrom transformers import AutoModelForCausalLM\n\n"
        'model = AutoModelForCausalLM.from_pretrained(".")\n```\n\n'
        "The tokenizers of all streams are in `tokenizers/`, and streams.json says what their values are: `worldloom sample .` and "
        "`worldloom serve .` take this folder in place of a run.\n"
    )
