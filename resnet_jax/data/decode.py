"""Decodes JPEG, PNG and WebP images, or regions of them, to RGB uint8.

Only a part of a JPEG is decoded where a part suffices (see `jpeg`), and a region that will be
downsampled is decoded at reduced scale. libjpeg-turbo decodes JPEG, Pillow everything else;
cykooz-resizer resamples with Pillow's kernels. EXIF orientation is ignored, as in the reference
pipelines.
"""

import io
import math
import struct
import threading
import warnings
from typing import NamedTuple

import numpy as np
import simplejpeg
from cykooz_resizer import (
    CropBox,
    FilterType,
    ImageData,
    PixelType,
    ResizeAlg,
    ResizeOptions,
    Resizer,
)
from PIL import Image

from resnet_jax.data import jpeg
from resnet_jax.errors import UserError

# The largest image that is decoded, whatever its format: 13,377 pixels squared, which is also where
# Pillow refuses. A thread needs 3 bytes per pixel of a JPEG, and 7 of other formats.
MAX_PIXELS = 2 * Image.MAX_IMAGE_PIXELS
warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)  # at half of that
# A legitimate file cannot hold more pixels than this for each of its bytes: a JPEG block of 64
# pixels takes at least a bit, and deflate shrinks at most 1032 times.
MAX_PIXELS_PER_BYTE = {'JPEG': 64 * 8, 'PNG': 1032 * 8, 'WEBP': math.inf}
COLORSPACES = ('YCbCr', 'RGB', 'Gray')  # that libjpeg-turbo converts to RGB
STRIP_PIXELS = 2**22  # that are converted at a time
# Kernels: what the resizer calls them, and how far they reach, in pixels of the coarser image.
FILTERS = {name: (ResizeOptions(ResizeAlg.convolution(kind), use_alpha=False), reach)
           for name, kind, reach in (('bilinear', FilterType.bilinear, 1),
                                     ('bicubic', FilterType.catmull_rom, 2))}
TOO_LARGE = ('the most that is decoded (MAX_PIXELS in resnet_jax/data/decode.py); scale it down '
             'with another program')
DAMAGED = 'is incomplete or damaged'
PIXEL_TYPES = {1: PixelType.U8, 3: PixelType.U8x3}

_of_thread = threading.local()  # its resizer, and the last JPEG with its header


class UnreadableImageError(UserError):
    """An image file that cannot be decoded; the sentence names it."""


class Region(NamedTuple):
    """A rectangle in the pixels of the whole image; its edges may be fractional.

    `closed` regions are cut out before they are resampled; from others the kernel also sees the
    pixels around them, as when the whole image is resized and then cropped.
    """

    top: float
    left: float
    height: float
    width: float
    closed: bool


def image_format(data: bytes) -> str:
    """'JPEG', 'PNG' or 'WEBP', from the first bytes, whatever the file is called."""
    if data[:3] == b'\xff\xd8\xff':
        return 'JPEG'
    if data[:8] == b'\x89PNG\r\n\x1a\n':
        return 'PNG'
    if data[:4] == b'RIFF' and data[8:12] == b'WEBP':
        return 'WEBP'
    raise ValueError('it is empty' if not data else 'it is not a JPEG, PNG or WebP image')


def image_size(data: bytes, name: str) -> tuple[int, int]:
    """(height, width) from the header, without decoding.

    Raises:
      UnreadableImageError: there is no such header, or it claims what the file cannot hold.
    """
    try:
        return _open(data)[:2]
    except Exception as error:
        raise _unreadable(name, error) from error


def decode(data: bytes, name: str, *, strict: bool = False) -> np.ndarray:
    """The whole image, uint8 [H, W, 3].

    Args:
      data: the encoded image.
      name: what an error message calls it.
      strict: whether stray bytes in a JPEG are damage too. Some intact images have them, but they
        are also the only trace that many a flipped bit leaves.

    Raises:
      UnreadableImageError: the data is damaged, or not an image.
    """
    try:
        height, width, pillow = _open(data)
        if pillow is not None:
            return _pillow_pixels(pillow)
        return jpeg.rows(data, height, width, height, 1, strict=strict)
    except Exception as error:
        raise _unreadable(name, error) from error


def decode_region(data: bytes, region: Region, size: tuple[int, int], name: str, *,
                  reduce: bool, kernel: str = 'bilinear') -> np.ndarray:
    """A region of an encoded image, resampled: uint8 [*size, 3].

    Args:
      data: the encoded image.
      region: inside the image; see `image_size`.
      size: (height, width) of the result, in pixels.
      name: what an error message calls the image.
      reduce: whether to decode a JPEG at 1/2, 1/4 or 1/8 scale where the region is at least so
        many times larger than the result.
      kernel: see `resample`.

    Raises:
      UnreadableImageError: the data that the region needs is damaged, or not an image.
    """
    try:
        height, width, pillow = _open(data)
        if pillow is not None:
            return resample(_pillow_pixels(pillow), region, size, kernel)
        shrink = min(region.height / size[0], region.width / size[1])
        scale = 2 ** min(3, int(math.log2(shrink))) if reduce and shrink >= 2 else 1
        margin = 0 if region.closed else _margin(region.height, size[0], kernel)
        rows = min(height, math.ceil(region.top + region.height) + margin)
        scaled = Region(*(x / scale for x in region[:4]), region.closed)
        bottom = -(-jpeg.rows_decoded(rows, height) // scale)
        window = _window(scaled, size, kernel, bottom, -(-width // scale))
        pixels = jpeg.rectangle(data, height, width, rows, scale, *window)
        return _resample(pixels, scaled, window, size, kernel)
    except Exception as error:
        raise _unreadable(name, error) from error


def resample(pixels: np.ndarray, region: Region, size: tuple[int, int],
             kernel: str = 'bilinear') -> np.ndarray:
    """A region, resampled with an antialiased kernel, as Pillow does.

    Args:
      pixels: uint8 [H, W, C], C 1 or 3.
      region: inside it.
      size: (height, width) of the result.
      kernel: 'bilinear' or 'bicubic'.

    Returns:
      uint8 [*size, C].
    """
    window = _window(region, size, kernel, *pixels.shape[:2])
    return _resample(pixels[window.rows, window.columns], region, window, size, kernel)


class _Window(NamedTuple):
    """The pixels that resampling a region looks at."""

    rows: slice
    columns: slice


def _window(region: Region, size: tuple[int, int], kernel: str, height: int,
            width: int) -> _Window:
    """What resampling a region to this size looks at in an image of this height and width."""
    margin_y = 0 if region.closed else _margin(region.height, size[0], kernel)
    margin_x = 0 if region.closed else _margin(region.width, size[1], kernel)
    return _Window(
        slice(max(0, math.floor(region.top) - margin_y),
              min(height, math.ceil(region.top + region.height) + margin_y)),
        slice(max(0, math.floor(region.left) - margin_x),
              min(width, math.ceil(region.left + region.width) + margin_x)))


def _resample(pixels: np.ndarray, region: Region, window: _Window, size: tuple[int, int],
              kernel: str) -> np.ndarray:
    """A region of the image whose pixels in the window these are; see `resample`."""
    if region.height == size[0] and region.width == size[1] and pixels.shape[:2] == size:
        return pixels.copy()
    height, width, channels = pixels.shape
    top, left = region.top - window.rows.start, region.left - window.columns.start
    # Reduced decoding rounds the image's size up, so the far edge may be a hair outside.
    box_height, box_width = min(region.height, height - top), min(region.width, width - left)
    kind = PIXEL_TYPES[channels]
    source = ImageData(width, height, kind, pixels.tobytes())
    target = ImageData(size[1], size[0], kind)
    options = FILTERS[kernel][0]
    if (box_height, box_width) != (height, width):
        options = options.copy()
        options.crop_box = CropBox(left, top, box_width, box_height)
    if not hasattr(_of_thread, 'resizer'):
        _of_thread.resizer = Resizer()
    _of_thread.resizer.resize(source, target, options)
    return np.frombuffer(target.get_buffer(), np.uint8).reshape(*size, channels)


def _margin(length: float, size: int, kernel: str) -> int:
    """Pixels beside a region of this length that the kernel sees when it gets this size."""
    return math.ceil(FILTERS[kernel][1] * max(length / size, 1)) + 1


def _unreadable(name: str, error: Exception) -> UnreadableImageError:
    reason = str(error).strip().rstrip('.') or type(error).__name__
    return UnreadableImageError(f'{name} cannot be read: {reason}.')


def _open(data: bytes) -> tuple[int, int, Image.Image | None]:
    """(height, width, None or the image as Pillow opened it), the header being plausible."""
    kind = image_format(data)
    pillow, by_pillow = None, kind != 'JPEG'
    if kind == 'JPEG':
        try:
            height, width, colorspace = _jpeg_header(data)
            by_pillow = colorspace not in COLORSPACES
        except (KeyError, ValueError) as error:  # damage, or chroma sampling without a name there
            if jpeg.END_OF_IMAGE not in data:
                raise ValueError(f'its {kind} header {DAMAGED}') from error
            by_pillow, pillow = True, _open_by_pillow(data, kind)
            width, height = pillow.size
    elif kind == 'PNG' and len(data) >= 24:
        width, height = struct.unpack_from('>II', data, 16)
    else:
        pillow = _open_by_pillow(data, kind)
        width, height = pillow.size
    _check_size(height, width, len(data), kind)
    if by_pillow and pillow is None:
        pillow = _open_by_pillow(data, kind)
    return height, width, pillow


def _jpeg_header(data: bytes) -> tuple[int, int, str]:
    """(height, width, colorspace), read once for all who ask for the same image in turn."""
    if getattr(_of_thread, 'data', None) is not data:
        _of_thread.header = simplejpeg.decode_jpeg_header(data, strict=False)[:3]
        _of_thread.data = data
    return _of_thread.header


def _open_by_pillow(data: bytes, kind: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=(kind,))
    except Image.DecompressionBombError as error:
        raise ValueError(f'it has more than {MAX_PIXELS:,} pixels, {TOO_LARGE}') from error
    except Exception as error:  # damage leads to many kinds
        raise ValueError(f'its {kind} header {DAMAGED}') from error


def _check_size(height: int, width: int, num_bytes: int, kind: str) -> None:
    if not 0 < height * width <= MAX_PIXELS_PER_BYTE[kind] * num_bytes:
        raise ValueError(f'its header claims {width} x {height} pixels, which a file of '
                         f'{num_bytes:,} bytes cannot hold')
    if height * width > MAX_PIXELS:
        raise ValueError(f'it has {width} x {height} pixels, more than {MAX_PIXELS:,}, {TOO_LARGE}')


def _pillow_pixels(image: Image.Image) -> np.ndarray:
    """RGB of any mode. 16-bit grey keeps its high byte, as 16-bit colour does in Pillow.

    Strip by strip, since Pillow copies what it converts and again what it hands on.
    """
    image.load()
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        strip = image.crop((0, top, image.width, bottom)) if rows < image.height else image
        if image.mode.startswith('I'):
            grey = np.clip(np.asarray(strip), 0, 65535) >> 8
            pixels[top:bottom] = grey.astype(np.uint8)[:, :, None]
        else:
            pixels[top:bottom] = np.asarray(strip if strip.mode == 'RGB' else strip.convert('RGB'))
    return pixels
