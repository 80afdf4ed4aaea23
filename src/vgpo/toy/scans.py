"""The 1,797 handwritten-digit scans that scikit-learn ships, and their fixed split into train and test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

CELL = 28  # pixels: two 14-pixel patches merged by two, so one scan is exactly one visual token
NUM_TEST_SCANS = 397
SPLIT_SEED = 0  # the split never moves: test scans stay unseen whatever seed a run takes

Split = Literal["train", "test"]


@dataclass(frozen=True, kw_only=True)
class Scans:
    """Some of the scans: ``pixels`` uint8 (N, 28, 28), 0 is paper and 255 ink, and ``labels`` int (N,)."""

    pixels: np.ndarray
    labels: np.ndarray

    def of_digit(self, digit: int) -> np.ndarray:
        """Indices of the scans that show ``digit``, (M,)."""
        return np.flatnonzero(self.labels == digit)


def load_scans(split: Split) -> Scans:
    """The scans of one side of the split, 1,400 for training and 397 for testing, never in both.

    Raises:
        ImportError: scikit-learn, which holds the scans, is absent.
        ValueError: ``split`` is neither "train" nor "test".
    """
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}; expected 'train' or 'test'")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the pictures of the embedded task are made of scikit-learn's digit scans, and scikit-learn is "
            "not installed; install it with: pip install 'vgpo[toy]'"
        ) from error
    digits = load_digits()
    order = np.random.default_rng(SPLIT_SEED).permutation(len(digits.target))
    chosen = order[:NUM_TEST_SCANS] if split == "test" else order[NUM_TEST_SCANS:]
    pixels = np.stack([_enlarge(digits.images[i]) for i in chosen])
    return Scans(pixels=pixels, labels=digits.target[chosen].astype(np.int64))


def _enlarge(scan: np.ndarray) -> np.ndarray:
    # (8, 8) floats in 0..16 -> (28, 28) uint8
    small = Image.fromarray((scan * (255 / 16)).round().astype(np.uint8))
    return np.asarray(small.resize((CELL, CELL), Image.Resampling.BICUBIC))
