"""Counter-based randomness: the order of samples, and draws for each of them, as pure functions of (seed, epoch, index).

Nothing here has a state, so any sample of any epoch can be asked for alone, by any rank, in any order.
"""

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 6  # of the Feistel network; four are enough for a pseudorandom permutation (Luby and Rackoff, 1988)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, 2014): a bijection of 64 bits in which every bit counts."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def draws(*counters: int | NDArray[np.integer]) -> NDArray[np.uint64]:
    """64 uniform bits for each tuple of counters; arrays broadcast. The order of the counters matters."""
    bits = np.zeros(1, dtype=np.uint64)
    for counter in counters:
        value = np.atleast_1d(np.asarray(counter)).astype(np.uint64)
        bits = mix((bits + _GOLDEN) ^ mix(value + _GOLDEN))
    return bits


def uniform(*counters: int | NDArray[np.integer]) -> NDArray[np.float64]:
    """Numbers in [0, 1), one for each tuple of counters."""
    return (draws(*counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def order(seed: int, epoch: int, index: NDArray[np.integer], n: int) -> NDArray[np.int64]:
    """Which of `n` samples stand at the places `index` (each in [0, n)) of epoch `epoch`.

    Over all places it is a permutation of range(n): a Feistel network on the next even number of bits, walked until it lands below n.
    """
    place = np.asarray(index)
    if place.size and (place.min() < 0 or place.max() >= n):
        raise ValueError(f"places run from 0 to {n - 1}, got {place.min()} to {place.max()}")
    half = max(1, (max(n - 1, 1).bit_length() + 1) // 2)
    keys = draws(seed, epoch, np.arange(_ROUNDS))
    out = place.astype(np.uint64).ravel()
    walking = np.arange(out.size)
    while walking.size:
        out[walking] = _feistel(out[walking], keys, half)
        walking = walking[out[walking] >= n]
    return out.astype(np.int64).reshape(place.shape)


def _feistel(x: NDArray[np.uint64], keys: NDArray[np.uint64], half: int) -> NDArray[np.uint64]:
    low = np.uint64((1 << half) - 1)
    shift = np.uint64(half)
    left, right = x >> shift, x & low
    for key in keys:
        left, right = right, left ^ (mix(right ^ key) & low)
    return (left << shift) | right
