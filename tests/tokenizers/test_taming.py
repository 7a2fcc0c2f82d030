"""Checkpoints in taming's layout become tokenizers like any other, or are refused with the reason."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bench.taming_reference import TamingModel
from worldloom.tokenizers.image import ImageTokenizer, build_autoencoder
from worldloom.tokenizers.load import load_tokenizer
from worldloom.tokenizers.taming import read_taming
from worldloom.tokenizers.taming_settings import Taming

NETWORK = {"ch": 32, "ch_mult": (1, 2), "num_res_blocks": 1, "attn": (False, True), "z_channels": 16, "embed_dim": 8, "n_embed": 30}


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = TamingModel(**NETWORK)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
        found = model.features(2 * torch.rand(4, 3, 16, 24) - 1).permute(0, 2, 3, 1).flatten(0, 2)
        model.quantize.embedding.weight.copy_(found[:: len(found) // 30][:30])  # codes that lie where the features are
    return {key: value.contiguous() for key, value in model.state_dict().items()}


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 16, 24, 3), dtype=np.uint8)


def put(path: Path, weights: dict[str, torch.Tensor]) -> Path:
    save_file(weights, path)
    return path


def test_every_form_of_file_gives_the_plain_networks_codes_and_pictures(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    reference = TamingModel(**NETWORK).eval()
    reference.load_state_dict(weights)
    extra = {"loss.discriminator.main.0.weight": torch.zeros(3), "model_ema.decay": torch.zeros(2)}
    put(tmp_path / "a.safetensors", weights | extra)
    torch.save({"state_dict": weights | extra, "global_step": 7}, tmp_path / "a.ckpt")
    torch.save(weights, tmp_path / "a.pt")
    values = pictures(3)
    x = torch.from_numpy(values).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        codes = reference.encode(x)
        back = ((reference.decode(codes).clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1)
    for name in ("a.safetensors", "a.ckpt", "a.pt"):
        tokenizer = read_taming(tmp_path / name, 16, 24)
        assert tokenizer.shape == (8, 12) and tokenizer.codebook_size == 30 and tokenizer.kind == "image"
        assert np.array_equal(tokenizer.encode(values), codes.numpy()) and len(codes.unique()) > 5
        assert np.abs(tokenizer.decode(codes.numpy()).astype(float) - back.numpy()).max() <= 0.51


def test_saved_and_loaded_it_is_the_same_tokenizer(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    tokenizer = read_taming(put(tmp_path / "a.safetensors", weights), 16, 24, "bf16")
    tokenizer.save_pretrained(tmp_path / "saved")
    loaded = load_tokenizer(tmp_path / "saved")
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.fingerprint != read_taming(tmp_path / "a.safetensors", 16, 24).fingerprint, "the precision decides codes"
    assert np.array_equal(loaded.encode(pictures(2)), tokenizer.encode(pictures(2)))
    assert np.array_equal(loaded.decode(loaded.encode(pictures(2))), tokenizer.decode(loaded.encode(pictures(2))))


def test_large_pictures_go_through_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings = Taming(width=64, multipliers=(1, 1), attention=(False, False), blocks=1)
    found = [ImageTokenizer(build_autoencoder(settings, 0), settings, side, side).batch for side in (32, 64, 128, 512)]
    assert found == [16, 16, 4, 2]


def without(weights: dict[str, torch.Tensor], key: str) -> dict[str, torch.Tensor]:
    return {name: value for name, value in weights.items() if name != key}


REFUSED = {
    "no_codes": (lambda w: without(w, "quantize.embedding.weight"), "has no quantize.embedding.weight of 2 axes"),
    "not_conv": (lambda w: w | {"encoder.conv_in.weight": torch.zeros(32, 3)}, "has no encoder.conv_in.weight of 4 axes"),
    "five_channels": (lambda w: w | {"encoder.conv_in.weight": torch.zeros(32, 5, 3, 3)}, "reads 5 channels"),
    "no_blocks": (lambda w: {k: v for k, v in w.items() if ".down." not in k}, "its resolutions are none channels wide"),
    "lacks": (lambda w: without(w, "decoder.up.1.block.0.conv1.bias"), "lacks decoder.up.1.block.0.conv1.bias"),
    "extra": (
        lambda w: w | {"encoder.down.0.attn.0.k.bias": torch.zeros(32)},
        "has what this network has not: encoder.down.0.attn.0.k.bias",
    ),
    "shape": (lambda w: w | {"quant_conv.bias": torch.zeros(9)}, "has other shapes at quant_conv.bias"),
    "groups": (
        lambda w: {k: v[:16].contiguous() if k.startswith("encoder.conv_in") else v for k, v in w.items()},
        "width must be a multiple of 32",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_such_checkpoint_is_refused(weights: dict[str, torch.Tensor], tmp_path: Path, name: str) -> None:
    change, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        read_taming(put(tmp_path / "a.safetensors", change(weights)), 16, 24)


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


def test_objects_damage_and_other_files_are_refused(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save({"state_dict": Payload(tmp_path / "canary")}, tmp_path / "objects.ckpt")
    (tmp_path / "damaged.safetensors").write_bytes(b"\xff" * 40)
    (tmp_path / "empty.pt").write_bytes(b"")
    for name in ("objects.ckpt", "damaged.safetensors", "empty.pt"):
        with pytest.raises(ValueError, match=f"{name} cannot be read as plain tensors"):
            read_taming(tmp_path / name, 16, 24)
    assert not (tmp_path / "canary").exists()
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds no state_dict of tensors"):
        read_taming(tmp_path / "list.pt", 16, 24)
    with pytest.raises(ValueError, match=r"does not end in \.safetensors"):
        read_taming(tmp_path / "a.bin", 16, 24)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_taming(tmp_path / "none.pt", 16, 24)
    with pytest.raises(ValueError, match="pictures of 15 x 24 pixels cannot be divided into cells of 2"):
        read_taming(put(tmp_path / "a.safetensors", weights), 15, 24)
