"""What becomes of a value before a network reads it, as preprocessor_config.json in the manner of Hugging Face's processors.

transformers' own image processor, built from that file, gives the network's input for a picture that has the size already; other sizes are
cut to the aspect first (`crop`), where transformers would squeeze them. Sounds say what transformers' feature extractors say, and what is
done beyond that (the factor of a codec's loudness, the spectrogram).
"""

from collections.abc import Mapping
from typing import Any

from worldloom.tokenizers.audio_settings import Mel
from worldloom.tokenizers.image_settings import is_mapped
from worldloom.tokenizers.pixels import EPS
from worldloom.tokenizers.resampling import RESAMPLING

FILE = "preprocessor_config.json"


def preprocessing_of(kind: str, settings: Any, form: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values; of pictures, clips or sounds."""
    if kind == "audio":
        return _of_sounds(settings, form)
    frames = {"num_frames": form["frames"], "fps": form["frame_rate"]} if kind == "video" else {}
    return {**_of_pictures(is_mapped(settings), form), **frames}


def _of_pictures(mapped: bool, form: Mapping[str, Any]) -> dict[str, Any]:
    # [-1, 1], or a dVAE's [eps, 1 - eps], as (x / 255 - mean) / std
    mean, std = (-EPS / (1 - 2 * EPS), 1 / (1 - 2 * EPS)) if mapped else (0.5, 0.5)
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": form["height"], "width": form["width"]},
        "resample": RESAMPLING[form.get("resample", "lanczos")],
        "crop": "largest centred part of the aspect of size, before it is resized",
        "channel_order": "RGB",
        "data_format": "channels_first",
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [mean] * 3,
        "image_std": [std] * 3,
    }


def _of_sounds(settings: Any, form: Mapping[str, Any]) -> dict[str, Any]:
    shared = {
        "sampling_rate": form["sample_rate"],
        "num_channels": form["channels"],
        "num_samples": form["samples"],
        "padding_side": "right",
        "padding_value": 0.0,
        "truncation_side": "right",
    }
    if isinstance(settings, Mel):
        spectrogram = {
            "n_fft": settings.window,
            "hop_length": settings.hop,
            "feature_size": settings.bins,
            "mel_scale": "htk",
            "power": 1.0,
        }
        return {**shared, **spectrogram, "feature_extractor_type": "log_mel"}
    return {**shared, "feature_size": form["channels"], "rescale_factor": 1 / settings.loudest, "feature_extractor_type": "waveform"}
