"""A trained world as a folder that transformers, and what reads its formats, loads without this code."""

import json
from pathlib import Path

from worldloom.stages.artifact import Artifact
from worldloom.stages.open_world import OpenWorld, open_world
from worldloom.tokenizers.text import TextTokenizer
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
    """Writes the model, its vocabulary, its text tokenizer (if it has one) and a model card into `out`; the names of the files.

    ValueError if `out` holds files already, or the artifact is no world.
    """
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; give a new folder, so that no file of another model stays in it")
    world = open_world(artifact)
    save_qwen3(out, world.model, world.grammar)
    texts = {tokenizer.fingerprint: tokenizer for tokenizer in world.tokenizers.values() if isinstance(tokenizer, TextTokenizer)}
    if len(texts) == 1:
        (text,) = texts.values()
        (out / "tokenizer.model").write_bytes(text.model)
        (out / "tokenizer_config.json").write_text(json.dumps(_TEXT, indent=2) + "\n", encoding="utf-8")
    (out / "README.md").write_text(_card(artifact, world, bool(len(texts) == 1)), encoding="utf-8")
    return sorted(path.name for path in out.iterdir())


EXPORTS = {"hf": export_world}


def _card(artifact: Artifact, world: OpenWorld, text: bool) -> str:
    ids = world.vocabulary
    rows = "\n".join(
        f"| {stream.name} | {stream.kind} | {stream.codebook_size} | {stream.levels} | "
        f"{' x '.join(map(str, stream.shape)) if stream.shape else f'at most {stream.max_length}'} | "
        f"{ids.span(s).start} .. {ids.span(s).stop - 1} | `<{stream.name}>` {ids.indicator(s)} |"
        for s, stream in enumerate(ids.streams)
    )
    parameters = sum(parameter.numel() for parameter in world.model.parameters())
    words = "`AutoTokenizer` gives the ids of texts (those without U+2581 and U+0010).\n" if text else ""
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
        "The tokenizers of pictures, sounds, clips and actions are in the run that it comes from.\n"
    )
