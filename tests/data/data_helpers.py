"""Tiny images and image folders that the tests make."""

import io
import pathlib

import numpy as np
from PIL import Image


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth uint8 [H, W, 3] image with some texture, which JPEG keeps well."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return np.clip(pixels + rng.integers(-8, 9, pixels.shape), 0, 255).astype(np.uint8)


def encoded(pixels: np.ndarray, kind: str = 'JPEG', **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def write_folder(root: pathlib.Path, classes=('a', 'b', 'c'), images=10, size=(40, 56),
                 splits=('train', 'test')) -> pathlib.Path:
    """An image folder of JPEGs, all different."""
    for s, split in enumerate(splits):
        for c, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for i in range(images):
                pixels = photograph(*size, seed=10_000 * s + 100 * c + i)
                (root / split / name / f'{i:04d}.jpg').write_bytes(encoded(pixels))
    return root
