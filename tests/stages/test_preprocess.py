"""Files become what a tokenizer reads, the way its own preprocessing says."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from worldloom.stages.open_tokenizer import open_tokenizer
from worldloom.stages.preprocess import read_value, stream_of
from worldloom.stages.settings import ImageStream
from worldloom.tokenizers.image import ImageTokenizer
from worldloom.tokenizers.image_settings import VqVae
from worldloom.tokenizers.quantizers.settings import Ema


@pytest.mark.parametrize("resample", ["lanczos", "bicubic", "bilinear", "nearest"])
def test_a_file_is_resampled_as_in_training(tmp_path: Path, resample: str) -> None:
    settings = VqVae(codebook_size=11, downsample=8, width=4, quantizer=Ema(code_width=3))
    ImageTokenizer.build(settings, {"height": 16, "width": 24, "resample": resample}, seed=0).save_pretrained(tmp_path / "saved")
    stream = stream_of(open_tokenizer(tmp_path / "saved"))
    assert stream == ImageStream(kind="image", size=(16, 24), resample=resample)  # type: ignore[arg-type]
    labels = np.random.default_rng(0).integers(0, 2, (35, 53, 1), dtype=np.uint8).repeat(3, axis=2) * 255
    content = io.BytesIO()
    Image.fromarray(labels).save(content, format="PNG")
    (tmp_path / "mask.png").write_bytes(content.getvalue())
    value = read_value(tmp_path / "mask.png", stream)
    assert value.shape == (16, 24, 3) and (set(np.unique(value)) <= {0, 255}) is (resample == "nearest")
