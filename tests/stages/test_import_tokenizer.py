"""A public checkpoint becomes a tokenizer artifact that encodes a dataset."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from bench.taming_reference import TamingModel
from worldloom.stages import encode_dataset, import_tokenizer
from worldloom.stages.artifact import Artifact, execute
from worldloom.stages.commit import Commits
from worldloom.stages.dataset import Tokens
from worldloom.stages.dataset_writer import RawShard, write_dataset_json
from worldloom.stages.encode_dataset import EncodeDataset
from worldloom.stages.import_tokenizer import ImportTokenizer
from worldloom.stages.kind import StageKind
from worldloom.stages.preprocess import read_value, stream_of
from worldloom.stages.settings import ImageStream, StageSettings
from worldloom.stages.streams import kind_of
from worldloom.stages.worker import Worker
from worldloom.tokenizers.load import load_tokenizer

STREAMS = {"frame": ImageStream(kind="image", size=16)}


class Nothing(StageSettings):
    pass


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = TamingModel(ch=32, ch_mult=(1, 1), num_res_blocks=1, attn=(False, False), z_channels=8, embed_dim=4, n_embed=20)
    model.quantize.embedding.weight.data.normal_()
    path = tmp_path_factory.mktemp("public") / "vqgan.safetensors"
    save_file(model.state_dict(), path)
    return path


def imported(checkpoint: Path, folder: Path, **changes: str) -> Artifact:
    settings = ImportTokenizer(run="import_tokenizer", checkpoint=str(checkpoint), height=16, width=16, **changes)
    return execute(import_tokenizer.STAGE, "codes", settings, {}, folder / "codes" / "f1", Worker())


def test_an_imported_tokenizer_encodes_a_dataset(checkpoint: Path, tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)

    def run(settings, inputs, out, worker):
        with Commits.of(out).attempt("train/shard-000000") as attempt:
            with RawShard(attempt, "train", "shard-000000", STREAMS) as raw:
                for i, picture in enumerate(pictures):
                    raw.add(f"{i:03d}", {"frame": kind_of("image").encode(picture, STREAMS["frame"])})
            attempt.commit(raw.keys, (), raw.counts)

    def finish(settings, inputs, out):
        Commits.of(out).finish(["train/shard-000000"])
        write_dataset_json(out, STREAMS, {"train": [("shard-000000", len(pictures))]})
        return {}

    kind = StageKind("make_something", Nothing, run, finish, "dataset", 1, "shards")
    data = execute(kind, "data", Nothing(run="make_something"), {}, tmp_path / "data" / "f0", Worker())
    codes = imported(checkpoint, tmp_path)
    settings = EncodeDataset(run="encode_dataset", data="data", tokenizers={"frame": "codes"})
    encoded = execute(encode_dataset.STAGE, "tokens", settings, {"data": data, "tokenizers.frame": codes}, tmp_path / "t" / "f2", Worker())
    about = json.loads((encoded.folder / "tokens" / "dataset.json").read_bytes())
    assert about["streams"]["frame"]["codebook_size"] == 20 and about["splits"]["train"]["samples"] == 5
    whole = load_tokenizer(codes.folder / "tokenizer").encode(pictures)
    rows = Tokens(encoded).rows("train", "frame", np.arange(5))
    assert np.array_equal(rows.reshape(whole.shape), whole) and len(np.unique(whole)) > 1


def test_the_card_says_what_codebook_and_network_it_is(checkpoint: Path, tmp_path: Path) -> None:
    codes = imported(checkpoint, tmp_path)
    card = json.loads((codes.folder / "card.json").read_bytes())
    rows = dict(next(block for block in card["blocks"] if block["type"] == "table")["rows"])
    weights = TamingModel(ch=32, ch_mult=(1, 1), num_res_blocks=1, attn=(False, False), z_channels=8, embed_dim=4, n_embed=20)
    parts = [weights.encoder, weights.quant_conv]
    assert rows["codes"] == 20 and rows["codes of one picture"] == "8 x 8"
    assert rows["parameters of the encoder"] == sum(p.numel() for part in parts for p in part.parameters())
    assert json.loads((codes.folder / "DONE.json").read_bytes())["counts"] == {"codebook_size": 20, "codes_per_sample": 64}


def test_how_pictures_are_resized_is_said_and_stored_with_the_tokenizer(checkpoint: Path, tmp_path: Path) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "large.png")
    for way, number in (("bicubic", 3), ("lanczos", 1)):
        folder = imported(checkpoint, tmp_path / way, resample=way).folder / "tokenizer"
        assert json.loads((folder / "preprocessor_config.json").read_bytes())["resample"] == number
        stream = stream_of(load_tokenizer(folder))
        assert isinstance(stream, ImageStream) and stream.resample == way
        expected = Image.fromarray(picture).resize((16, 16), Image.Resampling(number))
        assert np.array_equal(read_value(tmp_path / "large.png", stream), np.asarray(expected))


def test_the_content_of_the_file_counts_and_a_missing_one_is_named(checkpoint: Path, tmp_path: Path) -> None:
    settings = ImportTokenizer(run="import_tokenizer", checkpoint=str(checkpoint), height=16, width=16)
    assert import_tokenizer.STAGE.outside(settings, lambda path: path.name) == {"checkpoint": "vqgan.safetensors"}
    gone = settings.model_copy(update={"checkpoint": str(tmp_path / "gone.pt")})
    with pytest.raises(FileNotFoundError, match="checkpoint: there is no file"):
        import_tokenizer.STAGE.outside(gone, lambda path: "")


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import EncodecConfig, EncodecModel

    torch.manual_seed(0)
    small = {"sampling_rate": 1_000, "target_bandwidths": [1.0], "codebook_size": 16, "hidden_size": 6, "num_filters": 4}
    model = EncodecModel(EncodecConfig(**small, upsampling_ratios=[5, 2, 2]))
    for layer in model.quantizer.layers:
        layer.codebook.embed.normal_()
    folder = tmp_path_factory.mktemp("public")
    model.save_pretrained(folder)
    return folder / "model.safetensors"


def test_an_imported_codec_says_what_it_is_and_counts_its_config(codec: Path, tmp_path: Path) -> None:
    settings = ImportTokenizer(run="import_tokenizer", layout="encodec", checkpoint=str(codec), seconds=0.25, levels=3)
    made = execute(import_tokenizer.STAGE, "codes", settings, {}, tmp_path / "codes" / "f1", Worker())
    card = json.loads((made.folder / "card.json").read_bytes())
    rows = dict(next(block for block in card["blocks"] if block["type"] == "table")["rows"])
    assert rows["codes of one sound, frames x levels"] == "13 x 3" and rows["samples a second"] == 1_000
    assert rows["bits a second"] == 13 * 3 * 4 / 0.25
    tokenizer = load_tokenizer(made.folder / "tokenizer")
    assert tokenizer.decode(tokenizer.encode(np.zeros((2, 1, 250), np.float32))).shape == (2, 1, 250)
    assert import_tokenizer.STAGE.outside(settings, lambda path: path.name) == {"checkpoint": "model.safetensors", "config": "config.json"}
    with pytest.raises(FileNotFoundError, match=r"there is no file .*config\.json"):
        other = settings.model_copy(update={"checkpoint": str(put_alone(codec, tmp_path))})
        import_tokenizer.STAGE.outside(other, lambda path: "")


def put_alone(codec: Path, folder: Path) -> Path:
    (folder / "alone.safetensors").write_bytes(codec.read_bytes())
    return folder / "alone.safetensors"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"height": 16}, "layout 'taming' needs width; it takes height, width, precision, resample"),
        ({"layout": "encodec"}, "layout 'encodec' needs seconds; it takes seconds, levels"),
        ({"layout": "encodec", "seconds": 601.0}, "seconds\n  Input should be less than or equal to 600"),
        ({"layout": "encodec", "seconds": 1.0, "height": 4, "precision": "bf16"}, "'encodec' has no use for height and precision"),
        ({"height": 16, "width": 16, "levels": 3}, "'taming' has no use for levels"),
    ],
)
def test_settings_of_the_other_layout_are_refused(given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImportTokenizer(run="import_tokenizer", checkpoint="a.safetensors", **given)


@pytest.mark.parametrize("stage", ["words_codes", "push_codes", "sound_codes", "clip_codes"])
def test_a_tokenizer_of_worldlooms_own_is_imported_as_it_is(clocked_root: Path, tmp_path: Path, stage: str) -> None:
    folder = clocked_root / "artifacts" / stage / "0123456789abcdef" / "tokenizer"
    settings = ImportTokenizer(run="import_tokenizer", layout="worldloom", checkpoint=str(folder))
    artifact = execute(import_tokenizer.STAGE, "codes", settings, {}, tmp_path / "codes" / "f1", Worker())
    assert load_tokenizer(artifact.folder / "tokenizer").fingerprint == load_tokenizer(folder).fingerprint
    assert artifact.counts["codebook_size"] == load_tokenizer(folder).codebook_size


def test_what_decides_the_codes_of_worldlooms_own_is_in_the_fingerprint_and_a_readme_is_not(clocked_root: Path, tmp_path: Path) -> None:
    settings = ImportTokenizer(
        run="import_tokenizer",
        layout="worldloom",
        checkpoint=str(clocked_root / "artifacts" / "clip_codes" / "0123456789abcdef" / "tokenizer"),
    )
    assert set(import_tokenizer.outside(settings, str)) == {"config.json", "model.safetensors", "preprocessor_config.json"}
    with pytest.raises(FileNotFoundError, match="is no folder of a tokenizer"):
        import_tokenizer.outside(settings.model_copy(update={"checkpoint": str(tmp_path)}), str)
    with pytest.raises(ValueError, match="it takes neither"):
        ImportTokenizer(run="import_tokenizer", layout="worldloom", checkpoint="a", height=16)
