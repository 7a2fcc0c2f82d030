"""EnCodec checkpoints: transformers' model with the same weights says the same, and what is not read is refused with the reason."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from worldloom.tokenizers.encodec import folded, key_table, read_encodec
from worldloom.tokenizers.encodec_settings import Encodec
from worldloom.tokenizers.load import load_tokenizer

SMALL: dict[str, Any] = {
    "sampling_rate": 1_000,
    "target_bandwidths": [1.0],  # kbit/s: 5 codebooks of 16 codes at 50 frames a second
    "codebook_size": 16,
    "hidden_size": 6,
    "num_filters": 4,
    "upsampling_ratios": [5, 2, 2],
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "public": SMALL,
    "deeper": {**SMALL, "num_residual_layers": 2, "dilation_growth_rate": 3, "use_conv_shortcut": False, "num_lstm_layers": 1},
    "zeros": {**SMALL, "pad_mode": "constant", "kernel_size": 5, "last_kernel_size": 3, "compress": 4, "audio_channels": 2},
}


def oracle(layout: str) -> Any:
    """Random weights everywhere, codebooks where the encoder's vectors lie: a fresh one has codebooks of zeros."""
    from transformers import EncodecConfig, EncodecModel

    torch.manual_seed(0)
    model = EncodecModel(EncodecConfig(**LAYOUTS[layout])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        left = model.encoder(torch.from_numpy(sounds(layout, 8))).transpose(1, 2).flatten(0, 1)
        for layer in model.quantizer.layers:
            layer.codebook.embed.copy_(left[torch.randperm(len(left))[:16]] + 0.01 * torch.randn(16, 6))
            left = left - layer.codebook.embed[torch.cdist(left, layer.codebook.embed).argmin(1)]
    return model


def sounds(layout: str, count: int = 3, samples: int = 333) -> np.ndarray:
    shape = (count, LAYOUTS[layout].get("audio_channels", 1), samples)
    return (np.random.default_rng(0).normal(size=shape) * 0.3).clip(-1, 1).astype(np.float32)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("public")
    for layout in LAYOUTS:
        oracle(layout).save_pretrained(folder / layout)
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("samples", [333, 320, 21, 3])
def test_features_codes_and_sounds_are_those_of_transformers(saved: Path, layout: str, samples: int) -> None:
    model, tokenizer = oracle(layout), read_encodec(saved / layout / "model.safetensors", samples / 1_000)
    x = torch.from_numpy(sounds(layout, 3, samples))
    with torch.no_grad():
        features = model.encoder(x)
        codes = model.encode(x, bandwidth=1.0).audio_codes
    assert float((tokenizer.autoencoder.encoder(x) - features).abs().max()) < 1e-5
    assert tokenizer.shape == (-(-samples // 20), 5) and codes.shape[2:] == (5, tokenizer.frames)
    ours = tokenizer.encode(x)
    assert samples < 300 or len(np.unique(ours)) == 16
    assert margins(model, features, ours, codes[0].transpose(1, 2).numpy()) < 1e-6
    with torch.no_grad():
        back = model.decode(torch.from_numpy(ours).transpose(1, 2)[None], [None]).audio_values
    assert np.abs(tokenizer.decode(ours) - back[..., :samples].clamp(-1, 1).numpy()).max() < 1e-5
    assert float(back.abs().max()) > 0.01


def margins(model: Any, features: torch.Tensor, ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference of the distances of two codes, ours and theirs, where they are not the same one."""
    largest = 0.0
    for sound, frame in np.argwhere((ours != theirs).any(-1)):
        level = int((ours[sound, frame] != theirs[sound, frame]).argmax())  # those behind it code another rest
        books = [layer.codebook.embed.double() for layer in model.quantizer.layers]
        left = features[sound, :, frame].double() - sum(books[at][theirs[sound, frame, at]] for at in range(level))
        one, other = (float((left - books[level][codes[sound, frame, level]]).norm()) for codes in (ours, theirs))
        largest = max(largest, abs(one - other))
    return largest


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_table_of_keys_is_a_bijection(saved: Path, layout: str) -> None:
    tokenizer = read_encodec(saved / layout / "model.safetensors", 0.333)
    assert isinstance(tokenizer.settings, Encodec)
    table = key_table(tokenizer.settings)
    theirs = folded(oracle(layout).state_dict())
    assert sorted(table.values()) == sorted(theirs) and len(set(table.values())) == len(table)
    assert set(table) == {name for name, _ in tokenizer.autoencoder.named_parameters()}


def test_older_files_name_normed_weights_otherwise(saved: Path, tmp_path: Path) -> None:
    weights = load_file(saved / "public" / "model.safetensors")
    older = {
        key.replace("parametrizations.weight.original0", "weight_g").replace("parametrizations.weight.original1", "weight_v"): value
        for key, value in weights.items()
    }
    assert set(older) != set(weights)
    put(tmp_path, older)
    same = read_encodec(tmp_path / "model.safetensors", 0.333)
    assert same.fingerprint == read_encodec(saved / "public" / "model.safetensors", 0.333).fingerprint


def test_the_first_levels_alone_are_the_first_codes(saved: Path, tmp_path: Path) -> None:
    path, x = saved / "public" / "model.safetensors", sounds("public")
    few, all_of_them = read_encodec(path, 0.333, levels=3), read_encodec(path, 0.333)
    assert np.array_equal(few.encode(x), all_of_them.encode(x)[..., :3])
    few.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.fingerprint == few.fingerprint and np.array_equal(loaded.encode(x), few.encode(x))
    assert np.array_equal(loaded.decode(few.encode(x)), few.decode(few.encode(x)))


def put(folder: Path, weights: dict[str, torch.Tensor], **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "encodec", **SMALL, **changes}))
    return folder / "model.safetensors"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalize": True}, "has normalize True, and False is needed: codecs that scale each sound"),
        ({"chunk_length_s": 1.0}, "has chunk_length_s 1.0, and None is needed: codecs that cut sounds into chunks"),
        ({"norm_type": "time_group_norm"}, "has norm_type 'time_group_norm'"),
        ({"use_causal_conv": False}, "has use_causal_conv False, and True is needed: codecs that look ahead"),
        ({"trim_right_ratio": 0.5}, "only codecs that trim at the right alone"),
        ({"model_type": "dac"}, "has model_type 'dac', and 'encodec' is needed"),
        ({"num_residual_layers": 2}, "the checkpoint lacks decoder"),
        ({"num_filters": 8}, "the checkpoint has other shapes at"),
        ({"num_filters": "many"}, "Input should be a valid integer"),
        ({"sampling_rate": "fast"}, "has sampling_rate 'fast', and a positive whole number is needed"),
        ({"audio_channels": None}, "has audio_channels None, and a positive whole number is needed"),
        ({"upsampling_ratios": 5}, "strides\n  Input should be a valid array"),
    ],
)
def test_codecs_that_are_not_read_are_refused(saved: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = put(tmp_path, load_file(saved / "public" / "model.safetensors"), **changes)
    with pytest.raises(ValueError, match=message):
        read_encodec(path, 0.333)


def test_files_that_hold_no_codec_are_refused(saved: Path, tmp_path: Path) -> None:
    weights = load_file(saved / "public" / "model.safetensors")
    stem = "encoder.layers.0.conv.parametrizations.weight.original"
    with pytest.raises(ValueError, match=f"has {stem}0 and no {stem}1"):
        read_encodec(put(tmp_path, {key: value for key, value in weights.items() if key != f"{stem}1"}), 0.333)
    with pytest.raises(ValueError, match="has what this network has not: extra"):
        read_encodec(put(tmp_path, weights | {"extra": torch.zeros(2)}), 0.333)
    with pytest.raises(ValueError, match=r"levels \(6\) must not be above the 5 codebooks"):
        read_encodec(put(tmp_path, weights), 0.333, levels=6)
    with pytest.raises(ValueError, match=r"seconds \(0\.0004\) is less than one sample of this codec, which hears 1000 a second; set it"):
        read_encodec(put(tmp_path, weights), 0.0004)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"config\.json holds no object of names and values; import_tokenizer reads EnCodecs"):
        read_encodec(tmp_path / "model.safetensors", 0.333)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        read_encodec(tmp_path / "model.safetensors", 0.333)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no file .*config\.json"):
        read_encodec(tmp_path / "model.safetensors", 0.333)


def test_a_frame_sees_no_sample_behind_it_and_a_sample_no_frame(saved: Path) -> None:
    autoencoder = read_encodec(saved / "public" / "model.safetensors", 0.333).autoencoder
    x = torch.from_numpy(sounds("public", 2, 320)).requires_grad_(True)
    (gradient,) = torch.autograd.grad(autoencoder.encoder(x)[0, :, 9].sum(), x)
    seen = gradient[0, 0].abs() > 0
    assert seen[9 * 20 : 10 * 20].any() and not seen[10 * 20 :].any() and not gradient[1].any()
    z = torch.randn((1, 6, 16), generator=torch.Generator().manual_seed(0), requires_grad=True)
    (gradient,) = torch.autograd.grad(autoencoder.decoder(z)[0, 0, 9 * 20 : 10 * 20].sum(), z)
    seen = gradient[0].abs().sum(0) > 0
    assert seen[9] and not seen[10:].any()
