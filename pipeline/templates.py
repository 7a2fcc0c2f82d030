"""Pipeline files to start from, as `worldloom init` writes them."""

SHAPES = """\
# A world of coloured shapes: captions and pictures, tokenized and learnt by one transformer.
#   worldloom plan {file}       what a run would do, and why
#   worldloom run {file}        do it; the same command goes on after any stop
#   worldloom show {file}       the figures
name: {name}
root: runs/{name}
streams:
  caption: {{kind: text}}
  frame: {{kind: image, size: 32}}
stages:
  data: {{run: make_shapes, samples: 64000, shard_size: 4000}}
  caption_codes: {{run: train_text_tokenizer, data: data, stream: caption, vocab_size: 512}}
  frame_codes:
    {{run: train_tokenizer, data: data, stream: frame, tokenizer: {{type: vqgan, codebook_size: 512, downsample: 8}}, steps: 1000}}
  tokens: {{run: encode_dataset, data: data, tokenizers: {{caption: caption_codes, frame: frame_codes}}, batch_size: 64}}
  world: {{run: train_world_model, tokens: tokens, model: {{width: 256, depth: 4, heads: 4}}, rows: 8, steps: 900}}
  scores: {{run: evaluate_world_model, world: world}}
profiles:
  laptop: {{executor: ray}}
  cluster: {{executor: ray, address: auto, train: {{workers: 2, gpus_per_worker: 1, zero: 1}}}}
"""

FOLDER = """\
# Your own pictures and their captions, tokenized and learnt by one transformer.
# The folder holds x.png with x.txt beside it, or a captions.csv with the columns file and caption.
#   worldloom run {file} data.path=FOLDER
name: {name}
root: runs/{name}
streams:
  caption: {{kind: text}}
  frame: {{kind: image, size: 64}}
stages:
  data: {{run: import_folder, path: pictures}}
  caption_codes: {{run: train_text_tokenizer, data: data, stream: caption, vocab_size: 512}}
  frame_codes:
    {{run: train_tokenizer, data: data, stream: frame, tokenizer: {{type: vqgan, codebook_size: 512, downsample: 8}}, steps: 1500}}
  tokens: {{run: encode_dataset, data: data, tokenizers: {{caption: caption_codes, frame: frame_codes}}}}
  world: {{run: train_world_model, tokens: tokens, model: {{width: 256, depth: 4, heads: 4}}, rows: 8, steps: 1500}}
  scores: {{run: evaluate_world_model, world: world}}
"""

TEMPLATES = {"shapes": SHAPES, "folder": FOLDER}


def template(kind: str, name: str, file: str) -> str:
    """The text of a new pipeline file called `file`, for a pipeline called `name`."""
    return TEMPLATES[kind].format(name=name, file=file)
