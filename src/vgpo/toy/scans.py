"""The 1,797 handwritten-digit scans of `scans.npz`, and their fixed split into train and test.

They are the test set of "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, 1998, UCI Machine
Learning Repository, https://doi.org/10.24432/C50P49), licensed under CC BY 4.0. The values are unchanged, the file
format is new. scikit-learn distributes the same scans, in the same order, as `load_digits`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELL = 28  # pixels: two 14-pixel patches merged by two, so one scan is exactly one visual token
NUM_TEST_SCANS = 397
SCANS = Path(__file__).with_name("scans.npz")  # images uint8 (1797, 8, 8) in 0..16, labels uint8 (1797,)
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
        ValueError: ``split`` is neither "train" nor "test".
    """
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}; expected 'train' or 'test'")
    with np.load(SCANS, allow_pickle=False) as file:
        images, labels = file["images"], file["labels"]
    order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    chosen = order[:NUM_TEST_SCANS] if split == "test" else order[NUM_TEST_SCANS:]
    pixels = np.stack([_enlarge(images[i]) for i in chosen])
    return Scans(pixels=pixels, labels=labels[chosen].astype(np.int64))


def font_digits() -> Scans:
    """The digits 0 to 9 as Pillow's default font prints them, each in 20 sizes and places."""
    rng = np.random.default_rng(SPLIT_SEED)
    pixels, labels = [], []
    for digit in range(10):
        for size in rng.integers(20, 27, size=20):
            cell = Image.new("L", (CELL, CELL))
            middle = tuple(CELL / 2 + rng.integers(-2, 3, size=2))
            ImageDraw.Draw(cell).text(
                middle, str(digit), fill=255, font=ImageFont.load_default(int(size)), anchor="mm"
            )
            pixels.append(np.asarray(cell))
            labels.append(digit)
    return Scans(pixels=np.stack(pixels), labels=np.array(labels, dtype=np.int64))


def _enlarge(scan: np.ndarray) -> np.ndarray:
    # (8, 8) in 0..16 -> (28, 28) uint8
    small = Image.fromarray((scan * (255 / 16)).round().astype(np.uint8))
    return np.asarray(small.resize((CELL, CELL), Image.Resampling.BICUBIC))
