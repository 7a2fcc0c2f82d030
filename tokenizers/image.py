"""The image tokenizer: a DiscreteAutoencoder with the settings that built it, from uint8 pictures to codes and back."""

import hashlib
import json
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file, save
from torch import Tensor

from worldloom.tokenizers.autoencoder import DiscreteAutoencoder
from worldloom.tokenizers.codebooks import EmaCodebook, GradientCodebook, Upkeep
from worldloom.tokenizers.convnet import ConvDecoder, ConvEncoder
from worldloom.tokenizers.dvae import split_output
from worldloom.tokenizers.fsq_quantizer import FsqQuantizer
from worldloom.tokenizers.gumbel_quantizer import GumbelQuantizer
from worldloom.tokenizers.image_settings import Dvae, ImageTokenizerSettings, VqGan, VqVae
from worldloom.tokenizers.pixels import from_mapped, from_signed, to_mapped, to_signed
from worldloom.tokenizers.vector_quantizer import VectorQuantizer

FORMAT = 1
BATCH = 16  # pictures at a time: beyond that activations leave a CPU's cache. Always this many, so that codes do not depend on the batch
PLACE_AFTER = 50  # steps; the encoder has found its scale by then

CODEBOOKS: dict[str, type[EmaCodebook] | type[GradientCodebook]] = {"ema": EmaCodebook, "gradient": GradientCodebook}


class ImageTokenizer:
    """Square pictures of `size` pixels, uint8 RGB, to a grid of codes; in float32, deterministic."""

    kind = "image"

    def __init__(self, autoencoder: DiscreteAutoencoder, settings: VqGan | VqVae | Dvae, size: int) -> None:
        if size % settings.downsample:
            raise ValueError(
                f"pictures of {size} pixels cannot be divided into cells of {settings.downsample}; "
                f"choose a downsample that divides {size}, or another size for the stream"
            )
        self.autoencoder = autoencoder
        self.settings = settings
        self.size = size

    @property
    def codebook_size(self) -> int:
        return self.settings.codebook_size

    @property
    def shape(self) -> tuple[int, int]:
        side = self.size // self.settings.downsample
        return side, side

    @property
    def fingerprint(self) -> str:
        """sha256 over config.json and the weights."""
        return hashlib.sha256(self._config() + self._weights()).hexdigest()

    @property
    def device(self) -> torch.device:
        return next(self.autoencoder.parameters()).device

    @torch.inference_mode()
    def encode(self, batch: np.ndarray[Any, Any] | Tensor) -> np.ndarray[Any, Any]:
        """uint8 [B, size, size, 3] -> int64 codes [B, h, w]; ValueError for another shape or type."""
        pictures = batch if isinstance(batch, Tensor) else torch.from_numpy(np.require(batch, requirements=["W"]))
        if pictures.dtype != torch.uint8 or pictures.ndim != 4 or tuple(pictures.shape[1:]) != (self.size, self.size, 3):
            raise ValueError(
                f"this tokenizer reads uint8 pictures [B, {self.size}, {self.size}, 3], got {pictures.dtype} {tuple(pictures.shape)}; "
                f"resize and convert them to RGB first"
            )
        self.autoencoder.eval()
        found = [self.autoencoder.encode(to_network(self.settings, part)).cpu() for part in self._parts(pictures)]
        codes = torch.cat(found)[: len(pictures)] if found else torch.zeros((0, *self.shape), dtype=torch.int64)
        return codes.numpy()

    @torch.inference_mode()
    def decode(self, codes: np.ndarray[Any, Any] | Tensor) -> np.ndarray[Any, Any]:
        """Integer codes [B, h, w] -> uint8 pictures [B, size, size, 3]; ValueError for codes out of range or another grid."""
        grid = torch.as_tensor(np.asarray(codes).astype(np.int64, casting="safe") if isinstance(codes, np.ndarray) else codes)
        if grid.ndim != 3 or tuple(grid.shape[1:]) != self.shape:
            raise ValueError(f"this tokenizer writes grids of {self.shape} codes, got an array of shape {tuple(grid.shape)}")
        self.autoencoder.eval()
        found = [to_pictures(self.settings, self.autoencoder.decode(part.long())).cpu() for part in self._parts(grid)]
        size = (0, self.size, self.size, 3)
        return (torch.cat(found)[: len(grid)] if found else torch.zeros(size, dtype=torch.uint8)).numpy()

    def save_pretrained(self, folder: Path) -> None:
        """Writes config.json, model.safetensors and README.md."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.safetensors").write_bytes(self._weights())
        (folder / "config.json").write_bytes(self._config())
        (folder / "README.md").write_text(self._readme(), encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: Path) -> Self:
        """Reads what `save_pretrained` wrote; ValueError where files are damaged or do not fit each other."""
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if config.get("format") != FORMAT or config.get("kind") != "image":
            raise ValueError(
                f"{folder}: config.json has format {config.get('format')!r} and kind {config.get('kind')!r}, expected {FORMAT} and 'image'"
            )
        try:
            settings: VqGan | VqVae | Dvae = TypeAdapter(ImageTokenizerSettings).validate_json(json.dumps(config["tokenizer"]))
        except ValidationError as error:
            raise ValueError(f"{folder}: config.json does not describe an image tokenizer: {error}") from None
        tokenizer = cls(build_autoencoder(settings, seed=0), settings, config["size"])
        weights = load_file(folder / "model.safetensors")
        expected = tokenizer.autoencoder.state_dict()
        wrong = sorted(set(weights) ^ set(expected)) + sorted(
            key
            for key in set(weights) & set(expected)
            if weights[key].shape != expected[key].shape or weights[key].dtype != expected[key].dtype
        )
        if wrong:
            raise ValueError(
                f"{folder}: model.safetensors does not fit config.json at {', '.join(wrong[:5])}; the files are of different runs"
            )
        tokenizer.autoencoder.load_state_dict(weights)
        tokenizer.autoencoder.eval().requires_grad_(False)
        return tokenizer

    def _parts(self, values: Tensor) -> list[Tensor]:
        """Batches of exactly BATCH, the last one padded with zeros, on the weights' device."""
        missing = -len(values) % BATCH
        padded = torch.cat([values, values.new_zeros((missing, *values.shape[1:]))]) if missing else values
        return [part.to(self.device) for part in torch.split(padded, BATCH)] if len(values) else []

    def _config(self) -> bytes:
        config = {
            "format": FORMAT,
            "kind": self.kind,
            "type": self.settings.type,
            "size": self.size,
            "shape": list(self.shape),
            "codebook_size": self.codebook_size,
            "tokenizer": self.settings.model_dump(mode="json"),
        }
        return json.dumps(config, indent=2, sort_keys=True).encode() + b"\n"

    def _weights(self) -> bytes:
        weights: bytes = save({name: value.cpu().contiguous() for name, value in sorted(self.autoencoder.state_dict().items())})
        return weights

    def _readme(self) -> str:
        height, width = self.shape
        return (
            f"# Image tokenizer ({self.settings.type})\n\n"
            f"Pictures of {self.size} x {self.size} pixels to {height} x {width} codes of {self.codebook_size}, and back.\n\n"
            "```python\n"
            "from pathlib import Path\n\nfrom worldloom.tokenizers.load import load_tokenizer\n\n"
            'tokenizer = load_tokenizer(Path("."))\n'
            "codes = tokenizer.encode(pictures)  # uint8 [B, H, W, 3] -> int64 [B, h, w]\n"
            "pictures = tokenizer.decode(codes)\n"
            "```\n"
        )


def build_autoencoder(settings: VqGan | VqVae | Dvae, seed: int) -> DiscreteAutoencoder:
    """An untrained autoencoder in fp32 on the CPU; the same for the same settings and seed."""
    generator = torch.Generator().manual_seed(seed)
    state = torch.get_rng_state()
    torch.manual_seed(seed)  # torch's layers draw their first weights from the global generator; it is put back below
    try:
        return DiscreteAutoencoder(*_parts_of(settings, seed, generator))
    finally:
        torch.set_rng_state(state)


def to_network(settings: VqGan | VqVae | Dvae, pictures: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] -> what this type's encoder reads, float32 [B, 3, H, W]."""
    return to_mapped(pictures) if settings.type == "dvae" else to_signed(pictures)


def to_pictures(settings: VqGan | VqVae | Dvae, output: Tensor) -> Tensor:
    """What this type's decoder writes -> uint8 [B, H, W, 3]."""
    return from_mapped(split_output(output)[0].sigmoid()) if settings.type == "dvae" else from_signed(output)


def _parts_of(
    settings: VqGan | VqVae | Dvae, seed: int, generator: torch.Generator
) -> tuple[ConvEncoder, VectorQuantizer | FsqQuantizer | GumbelQuantizer, ConvDecoder]:
    network = {"width": settings.width, "blocks": settings.blocks, "patch": settings.patch, "downsample": settings.downsample}
    size, width = settings.codebook_size, settings.code_width
    quantizer: VectorQuantizer | FsqQuantizer | GumbelQuantizer
    if isinstance(settings, Dvae):
        quantizer = GumbelQuantizer(
            size, width, Upkeep(place_after=-1, restart_every=0, least_use=settings.least_use, seed=seed), generator
        )
    elif settings.fsq_levels is not None:
        quantizer = FsqQuantizer(settings.fsq_levels, Upkeep(place_after=-1, restart_every=0, least_use=settings.least_use, seed=seed))
    else:
        upkeep = Upkeep(
            place_after=PLACE_AFTER if settings.place_after is None else settings.place_after,
            restart_every=settings.restart_every,
            dead_below=settings.dead_below,
            decay=settings.decay,
            least_use=settings.least_use,
            seed=seed,
        )
        quantizer = VectorQuantizer(CODEBOOKS[settings.codebook](size, width, upkeep, generator), settings.commitment)
    encoder = ConvEncoder(channels=3, code_width=quantizer.in_width, **network)
    decoder = ConvDecoder(channels=6 if isinstance(settings, Dvae) else 3, code_width=quantizer.out_width, **network)
    return encoder, quantizer, decoder
