"""A folder of transformers becomes an encoder artifact that embeds a dataset."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from worldloom.pipeline.retrieve import _index
from worldloom.stages import embed_dataset, evaluate_encoder, import_encoder
from worldloom.stages.artifact import Artifact, execute
from worldloom.stages.dataset import Dataset
from worldloom.stages.embed_dataset import EmbedDataset
from worldloom.stages.encoder_features import signed
from worldloom.stages.evaluate_encoder import EvaluateEncoder
from worldloom.stages.eye import open_eye
from worldloom.stages.features import FeatureSet
from worldloom.stages.import_encoder import ImportEncoder
from worldloom.stages.worker import Worker

VIT: dict[str, Any] = {
    **{"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40, "mlp_ratio": 4},
    **{"image_size": 12, "patch_size": 4, "layer_norm_eps": 1e-6},
}
SWIN: dict[str, Any] = {"embed_dim": 8, "depths": [2, 2], "num_heads": [2, 4], "window_size": 3, "patch_size": 2, "image_size": 12}
CASES = {"ViT": VIT, "DeiT": VIT, "Dinov2": VIT, "Swin": SWIN}


def theirs(name: str, folder: Path, **changes: Any) -> Any:
    """A model of transformers, drawn, and saved in `folder`."""
    import transformers

    pooler = {"add_pooling_layer": False} if name in ("ViT", "DeiT") else {}
    model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**CASES[name] | changes), **pooler).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1, generator=generator)
    model.save_pretrained(folder)
    return model


def imported(folder: Path, root: Path) -> Artifact:
    settings = ImportEncoder(run="import_encoder", folder=str(folder))
    return execute(import_encoder.STAGE, "eye", settings, {}, root / "artifacts" / "eye" / "f0", Worker())


@pytest.fixture
def data(tiny_root: Path) -> Artifact:
    return Artifact.open(tiny_root / "artifacts" / "data" / "0123456789abcdef")


@pytest.mark.parametrize("name", CASES)
def test_an_imported_encoder_sees_what_transformers_sees(tmp_path: Path, name: str) -> None:
    model = theirs(name, tmp_path / "public")
    made = imported(tmp_path / "public", tmp_path)
    eye = open_eye(made)
    assert eye.side == 12 and eye.name == "eye"
    pictures = np.random.default_rng(0).integers(0, 256, (3, 12, 12, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = model(signed(pictures)).last_hidden_state
        found = eye.see(pictures, "tokens"), eye.see(pictures, "pooled")
    wanted = expected[:, -found[0].shape[1] :], expected.mean(1) if name == "Swin" else expected[:, 0]
    for ours, its in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, its, rtol=0, atol=1e-5)
    weights = load_file(made.folder / "encoder" / "model.safetensors")
    assert made.counts == {"parameters": sum(each.numel() for each in weights.values()), "width": found[1].shape[1]}
    card = json.loads(made.content("card.json"))
    assert card["blocks"][0]["text"].startswith("From transformers;")


def test_an_imported_encoder_embeds_a_dataset_and_has_none_of_its_own(tmp_path: Path, data: Artifact) -> None:
    theirs("ViT", tmp_path / "public")
    eye = imported(tmp_path / "public", tmp_path)
    settings = EmbedDataset(run="embed_dataset", data="data", encoder="eye", stream="view")
    inputs = {"data": data, "encoder": eye}
    seen = FeatureSet(execute(embed_dataset.STAGE, "seen", settings, inputs, tmp_path / "artifacts" / "seen" / "f0", Worker()))
    picture = Dataset(data).value(seen.parts[0].split, "view", 0)
    with torch.inference_mode():
        own = open_eye(eye).see(picture[None], "pooled")[0].numpy()
    np.testing.assert_allclose(seen.rows(0, 1)[0], own / np.linalg.norm(own), atol=1e-5)
    with pytest.raises(ValueError, match="eye was imported, so no dataset of the run is its own to search in; add a stage embed_dataset"):
        _index(eye, tmp_path, "pooled")


def test_only_what_is_in_the_folder_is_in_the_fingerprint_and_what_lacks_is_said(tmp_path: Path) -> None:
    theirs("Swin", tmp_path)
    settings = ImportEncoder(run="import_encoder", folder=str(tmp_path))
    (tmp_path / "README.md").write_text("what it is")
    assert import_encoder.outside(settings, lambda path: path.name) == {name: name for name in ("config.json", "model.safetensors")}
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"folder: there is no model\.safetensors in .*; give a folder that transformers saved"):
        import_encoder.outside(settings, str)


def test_encoders_of_other_pictures_or_forms_are_refused(tmp_path: Path) -> None:
    theirs("ViT", tmp_path / "grey", num_channels=1)
    with pytest.raises(ValueError, match=r"folder: the encoder in .*grey sees 1 colours, pictures have 3; give another"):
        imported(tmp_path / "grey", tmp_path)
    config = tmp_path / "grey" / "config.json"
    config.write_text(config.read_text().replace('"model_type": "vit"', '"model_type": "bert"'))
    with pytest.raises(ValueError, match=r"config\.json is of model_type 'bert'; encoders are read from vit, deit"):
        imported(tmp_path / "grey", tmp_path)


def test_an_imported_encoder_is_measured_at_the_side_that_it_was_made_for(tmp_path: Path, data: Artifact) -> None:
    theirs("Dinov2", tmp_path / "public", patch_size=5, image_size=15)  # 5 divides no picture of the dataset
    made = imported(tmp_path / "public", tmp_path)
    settings = EvaluateEncoder(
        run="evaluate_encoder", encoder="eye", data="data", stream="view", text="words", label_by=("shape",), shown=2
    )
    about = {"encoder": made, "data": data}
    scores = execute(evaluate_encoder.STAGE, "scores", settings, about, tmp_path / "artifacts" / "scores" / "f0", Worker())
    figures = json.loads(scores.content("figures.json"))
    assert {"view.held_out_shape_knn_accuracy", "view.held_out_shape_knn_untrained_accuracy"} <= set(figures)
