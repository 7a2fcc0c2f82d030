"""What every tokenizer around a DiscreteAutoencoder shares: its files, fingerprint and batches. Kinds differ in values and networks."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import Tensor, nn

from worldloom.tokenizers.autoencoder import DiscreteAutoencoder
from worldloom.tokenizers.networks.elsewhere import NONE, Networks, NetworksMissing
from worldloom.tokenizers.preprocessing import FILE, preprocessing_of

FORMAT = 3


class LearnedTokenizer(ABC):
    """Values of one fixed form to codes of one fixed shape and back; in float32, deterministic.

    A kind is a subclass: it says what its values are, and how they become the networks' input and come back.
    """

    kind: ClassVar[str]
    values: ClassVar[str]  # what they are called in messages: "pictures"
    batch: int = 16  # values at a time, always exactly this many, so that codes do not depend on what else is in a batch
    value_type: ClassVar[torch.dtype]

    def __init__(self, autoencoder: DiscreteAutoencoder, settings: Any) -> None:
        self.autoencoder = autoencoder
        self.settings = settings
        self.measured = ""  # a section of README.md, in Markdown: what whoever trained it found

    @property
    @abstractmethod
    def value_shape(self) -> tuple[int, ...]:
        """Shape of one value."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of one value's codes; the last axis is the levels' where there are several."""

    @property
    @abstractmethod
    def form(self) -> dict[str, Any]:
        """What config.json says of the values; with the settings, all that `build` needs."""

    @classmethod
    @abstractmethod
    def build(cls, settings: Any, form: Mapping[str, Any], seed: int) -> Self:
        """Untrained, in fp32 on the CPU, the same for the same seed; ValueError where settings and form do not go together."""

    @classmethod
    def assemble(cls, settings: Any, form: Mapping[str, Any], networks: Networks) -> Self:
        """What saved weights are read into; kinds whose networks may come from elsewhere look into `networks`."""
        return cls.build(settings, form, seed=0)

    @classmethod
    @abstractmethod
    def read_settings(cls, value: Any) -> Any:
        """The settings from what config.json says; ValueError where they are none of this kind."""

    @abstractmethod
    def to_network(self, values: Tensor) -> Tensor:
        """[B, *value_shape] -> what the encoder reads, float32."""

    @abstractmethod
    def to_values(self, output: Tensor) -> Tensor:
        """What the decoder writes -> [B, *value_shape]."""

    @property
    def codebook_size(self) -> int:
        """Codes of one level."""
        return self.autoencoder.quantizer.codebook_size

    @property
    def levels(self) -> int:
        """Codes at one place of the grid."""
        return self.autoencoder.quantizer.levels

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What preprocessor_config.json says: how values are brought to their form, and to what the networks read."""
        return preprocessing_of(self.kind, self.settings, self.form)

    @property
    def fingerprint(self) -> str:
        """sha256 over config.json, preprocessor_config.json and the weights."""
        return hashlib.sha256(self._config() + self._preprocessor() + self._weights()).hexdigest()

    @property
    def weights(self) -> nn.Module:
        """All that is learnt, as it is saved; a kind that has more than the autoencoder puts both into one module."""
        return self.autoencoder

    @property
    def device(self) -> torch.device:
        return next(self.autoencoder.parameters()).device

    @torch.inference_mode()
    def encode(self, batch: NDArray[Any] | Tensor) -> NDArray[np.int64]:
        """Values [B, *value_shape] -> int64 codes [B, *shape]; ValueError for another shape or type, or what is not finite."""
        values = batch if isinstance(batch, Tensor) else torch.from_numpy(np.require(batch, requirements=["W"]))
        if values.dtype != self.value_type or tuple(values.shape[1:]) != self.value_shape or values.ndim == 0:
            raise ValueError(
                f"this tokenizer reads {self.values} [B, {', '.join(map(str, self.value_shape))}] of {self.value_type}, "
                f"got {values.dtype} {tuple(values.shape)}; bring them to that form first"
            )
        if values.is_floating_point() and not bool(torch.isfinite(values).all()):
            raise ValueError(f"some of these {self.values} hold NaN or infinite values, which have no code; leave them out or mend them")
        self.autoencoder.eval()
        found = [self.autoencoder.encode(self.to_network(part)).cpu() for part in self._parts(values)]
        codes = torch.cat(found)[: len(values)] if found else torch.zeros((0, *self.shape), dtype=torch.int64)
        return codes.numpy()

    @torch.inference_mode()
    def decode(self, codes: NDArray[Any] | Tensor) -> NDArray[Any]:
        """Integer codes [B, *shape] -> values [B, *value_shape]; ValueError for codes out of range, another grid or no integers."""
        found = codes.cpu().numpy() if isinstance(codes, Tensor) else np.asarray(codes)
        if not np.issubdtype(found.dtype, np.integer):
            raise ValueError(f"codes are integers, got {found.dtype}; hand over what encode gave")
        grid = torch.from_numpy(found.astype(np.int64))
        if grid.ndim == 0 or tuple(grid.shape[1:]) != self.shape:
            raise ValueError(f"this tokenizer writes grids of {self.shape} codes, got an array of shape {tuple(grid.shape)}")
        self.autoencoder.eval()
        made = [self.to_values(self.autoencoder.decode(part)).cpu() for part in self._parts(grid)]
        return (torch.cat(made)[: len(grid)] if made else torch.zeros((0, *self.value_shape), dtype=self.value_type)).numpy()

    def save_pretrained(self, folder: Path) -> None:
        """Writes config.json, preprocessor_config.json, model.safetensors and README.md."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).write_bytes(self._preprocessor())
        (folder / "model.safetensors").write_bytes(self._weights())
        (folder / "config.json").write_bytes(self._config())
        (folder / "README.md").write_text(self._readme(), encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: Path, networks: Networks = NONE) -> Self:
        """Reads what `save_pretrained` wrote; ValueError where files do not fit each other, or a backbone was not passed in."""
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if config.get("format") != FORMAT or config.get("kind") != cls.kind:
            raise ValueError(
                f"{folder}: config.json has format {config.get('format')!r} and kind {config.get('kind')!r}, "
                f"expected {FORMAT} and {cls.kind!r}"
            )
        try:
            tokenizer = cls.assemble(cls.read_settings(config["tokenizer"]), config["form"], networks)
        except NetworksMissing as error:
            raise NetworksMissing(f"{folder}: {error}") from None
        except ValueError as error:
            raise ValueError(f"{folder}: config.json does not describe a tokenizer of {cls.values}: {error}") from None
        _check_preprocessing(folder, tokenizer.preprocessing)
        weights = load_file(folder / "model.safetensors")
        expected = tokenizer.weights.state_dict()
        wrong = sorted(set(weights) ^ set(expected)) + sorted(
            key
            for key in set(weights) & set(expected)
            if weights[key].shape != expected[key].shape or weights[key].dtype != expected[key].dtype
        )
        if wrong:
            raise ValueError(
                f"{folder}: model.safetensors does not fit config.json at {', '.join(wrong[:5])}; the files are of different runs"
            )
        tokenizer.weights.load_state_dict(weights)
        tokenizer.weights.eval().requires_grad_(False)
        return tokenizer

    def _parts(self, values: Tensor) -> list[Tensor]:
        """Batches of exactly `batch`, the last one padded with zeros, on the weights' device."""
        missing = -len(values) % self.batch
        padded = torch.cat([values, values.new_zeros((missing, *values.shape[1:]))]) if missing else values
        return [part.to(self.device) for part in torch.split(padded, self.batch)] if len(values) else []

    def _config(self) -> bytes:
        config = {
            "format": FORMAT,
            "kind": self.kind,
            "type": self.settings.type,
            "form": self.form,
            "shape": list(self.shape),
            "codebook_size": self.codebook_size,
            "levels": self.levels,
            "tokenizer": self.settings.model_dump(mode="json"),
        }
        return json.dumps(config, indent=2, sort_keys=True).encode() + b"\n"

    def _preprocessor(self) -> bytes:
        return json.dumps(self.preprocessing, indent=2, sort_keys=True).encode() + b"\n"

    def _weights(self) -> bytes:
        weights: bytes = save({name: value.cpu().contiguous() for name, value in sorted(self.weights.state_dict().items())})
        return weights

    def _readme(self) -> str:
        each = " x ".join(map(str, self.value_shape))
        return (
            f"# Tokenizer of {self.values} ({self.settings.type})\n\n"
            f"{self.values.capitalize()} of {each} to {' x '.join(map(str, self.shape))} codes of {self.codebook_size}, and back.\n\n"
            "```python\n"
            "from pathlib import Path\n\nfrom worldloom.stages.open_tokenizer import open_tokenizer\n\n"
            'tokenizer = open_tokenizer(Path("."))\n'
            f"codes = tokenizer.encode({self.values})  # {self.value_type} [B, {each.replace(' x ', ', ')}] -> int64 codes\n"
            f"{self.values} = tokenizer.decode(codes)\n"
            "```\n"
            f"{self.measured and chr(10) + self.measured}"
        )


def _check_preprocessing(folder: Path, expected: Mapping[str, Any]) -> None:
    """ValueError where the file says other things than the networks were trained with: codes would silently be others."""
    try:
        found = json.loads((folder / FILE).read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{folder} has no {FILE}: it says how values are prepared; save the tokenizer again") from None
    wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
    if wrong:
        raise ValueError(
            f"{folder}: {FILE} says {wrong[0]} = {found.get(wrong[0])!r}, the weights were trained with {expected.get(wrong[0])!r}; "
            f"undo the change, or train a tokenizer for it"
        )


@contextmanager
def first_weights(seed: int) -> Iterator[torch.Generator]:
    """Within it torch's layers draw their first weights from `seed`; gives a generator of the same seed for what draws from one."""
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        yield torch.Generator().manual_seed(seed)
    finally:
        torch.set_rng_state(state)
