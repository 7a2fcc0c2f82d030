"""Values of single steps of a clock, and their codes: what whole clips, actions and sounds are made of.

N steps, of any rows and in any order: frames and actions are coded each by itself. Of a sound, a step is heard in those before it.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from worldloom.tokenizers.tokenizer import Tokenizer


def encode_steps(tokenizer: Tokenizer, values: NDArray[Any]) -> NDArray[np.int64]:
    """Frames [N, height, width, 3] or actions [N, dimensions] -> codes [N, codes of a step]."""
    steps = _steps(tokenizer)
    codes = np.asarray(tokenizer.encode(_filled(values, steps)), np.int64)
    return codes.reshape(codes.shape[0] * steps, -1)[: len(values)]


def decode_steps(tokenizer: Tokenizer, codes: NDArray[np.int64]) -> NDArray[Any]:
    """The way back."""
    assert tokenizer.shape is not None
    clips = _filled(codes, tokenizer.shape[0])
    values: NDArray[Any] = tokenizer.decode(clips.reshape(len(clips), *tokenizer.shape))
    return values.reshape(-1, *values.shape[2:])[: len(codes)]


def encode_sounds(tokenizer: Tokenizer, sounds: NDArray[np.float32], steps: int, samples: int) -> NDArray[np.int64]:
    """Sounds [B, channels, up to `samples`] of the first steps -> codes [B, n, codes of a step] of the n whole steps in them."""
    if sounds.shape[2] > samples:
        raise ValueError(f"sounds of {sounds.shape[2]} samples are longer than the {samples} of a whole sample; give the last of them")
    many = int(sounds.shape[2] * steps / samples + 1e-6)
    whole = np.pad(sounds, ((0, 0), (0, 0), (0, samples - sounds.shape[2])))
    codes = np.asarray(tokenizer.encode(whole), np.int64)
    return codes.reshape(len(codes), steps, -1)[:, :many]


class Hearing:
    """The sounds of B rows as their steps come: each is heard behind those before it, as far back as a whole sound goes."""

    def __init__(self, tokenizer: Tokenizer, steps: int, samples: int) -> None:
        self.tokenizer, self.steps, self.samples = tokenizer, steps, samples
        self._past: list[NDArray[np.int64]] = []

    def __call__(self, codes: NDArray[np.int64]) -> NDArray[np.float32]:
        """Codes [B, codes of a step] -> float32 [B, channels, samples of a step]."""
        assert self.tokenizer.shape is not None
        self._past = [*self._past, codes][-self.steps :]
        whole = np.stack([*self._past, *([codes] * (self.steps - len(self._past)))], axis=1)
        sounds: NDArray[np.float32] = self.tokenizer.decode(whole.reshape(len(codes), *self.tokenizer.shape))
        first, last = (round(self.samples * at / self.steps) for at in (len(self._past) - 1, len(self._past)))
        return sounds[..., first:last]


def _steps(tokenizer: Tokenizer) -> int:
    assert tokenizer.shape is not None
    return tokenizer.shape[0]


def _filled(values: NDArray[Any], steps: int) -> NDArray[Any]:
    """[N, ...] -> [ceil(N / steps), steps, ...], the last one repeated."""
    missing = -len(values) % steps
    whole = np.concatenate([values, np.repeat(values[-1:], missing, axis=0)]) if missing else values
    return whole.reshape(-1, steps, *values.shape[1:])
