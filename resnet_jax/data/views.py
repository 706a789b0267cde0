"""The views of a test image that the paper's test protocols average over (section 3.4)."""

from typing import NamedTuple

import numpy as np

from resnet_jax.data import crops, decode
from resnet_jax.data.sizes import pair, text
from resnet_jax.data.transforms import EvalTransform
from resnet_jax.data.types import Item

STRIDE = 32  # pixels of the image that one position of the last feature map stands for
MAX_ASPECT = 2  # longer over shorter side; of a longer image the middle is seen


class Views(NamedTuple):
    """Makes the views of an image.

    Attributes:
      protocol: 'center_crop', 'ten_crop' or 'multi_scale'.
      size: of the crops, in pixels: the side of a square, or (height, width).
      resize: of the image before cropping; see `EvalTransform`.
      scales: of 'multi_scale', the shorter sides.
      kernel: 'bilinear' or 'bicubic', of scaling.
    """

    protocol: str
    size: int | tuple[int, int]
    resize: int
    scales: tuple[int, ...] = ()
    kernel: str = 'bilinear'

    def __call__(self, item: Item) -> list[np.ndarray]:
        """Groups of views of one shape, uint8 [views, H, W, C]; each group counts alike.

        Raises:
          UnreadableImageError: the image is damaged.
        """
        if self.protocol == 'center_crop':
            return [EvalTransform(self.size, self.resize, kernel=self.kernel).pixels(item)[None]]
        pixels = item.image
        if not isinstance(pixels, np.ndarray):
            pixels = decode.decode(pixels, item.name)
        if self.protocol == 'ten_crop':
            box = crops.enlarged(self.size, self.resize)
            return [ten_crop(_scaled(pixels, box, self.kernel), self.size)]
        return [fully_convolutional(resize(pixels, scale, self.kernel))[None]
                for scale in self.scales]

    @property
    def words(self) -> str:
        """What is seen of an image, in words."""
        if self.protocol == 'multi_scale':
            return f'whole images at {", ".join(map(str, self.scales))}, {self.kernel}'
        crop = 'central crop' if self.protocol == 'center_crop' else '10 crops'
        return f'{crop} of {text(self.size)} from {self.resize}, {self.kernel}'


def resize(pixels: np.ndarray, shorter: int, kernel: str = 'bilinear') -> np.ndarray:
    """The whole image with its shorter side made `shorter`: uint8 [H, W, C] in and out."""
    return _scaled(pixels, (shorter, shorter), kernel)


def _scaled(pixels: np.ndarray, box: tuple[int, int], kernel: str) -> np.ndarray:
    """The whole image, scaled to cover a box: uint8 [H, W, C] in and out."""
    height, width = pixels.shape[:2]
    return decode.resample(pixels, decode.Region(0, 0, height, width, closed=True),
                           crops.covering(height, width, box), kernel)


def ten_crop(pixels: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """The four corners and the centre, then their mirror images: uint8 [10, *size, C].

    A. Krizhevsky et al., "ImageNet Classification with Deep CNNs", 2012, section 4.1.
    """
    height, width = pair(size)
    bottom, right = pixels.shape[0] - height, pixels.shape[1] - width
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right),
               (round(bottom / 2), round(right / 2))]
    views = np.stack([pixels[top:top + height, left:left + width] for top, left in corners])
    return np.concatenate([views, views[:, :, ::-1]])


def fully_convolutional(pixels: np.ndarray) -> np.ndarray:
    """The image, its longer side cut on both ends to a multiple of 32 pixels.

    Every shape of image is a program to compile, and so there are few. At most twice the shorter
    side is kept. A square is left as it is.
    """
    shorter = min(pixels.shape[:2])

    def kept(side: int) -> slice:
        if side == shorter:
            return slice(0, side)
        length = max(shorter, min(side, MAX_ASPECT * shorter) // STRIDE * STRIDE)
        return slice((side - length) // 2, (side - length) // 2 + length)

    return pixels[kept(pixels.shape[0]), kept(pixels.shape[1])]
