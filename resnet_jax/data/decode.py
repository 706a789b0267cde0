"""Decodes JPEG, PNG and WebP images, or regions of them, to RGB uint8.

The entropy-coded data of a JPEG can only be read from the top, so decoding a region skips the rows
below it, and a region that will be downsampled is decoded at reduced scale. simplejpeg
(libjpeg-turbo) decodes JPEG, Pillow everything else; cykooz-resizer resamples with Pillow's
kernels. EXIF orientation is ignored, as in the reference pipelines.
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

from resnet_jax.errors import UserError

# The largest image that is decoded, whatever its format: 13,377 pixels squared, which is also where
# Pillow refuses. A thread needs 3 bytes per pixel of a JPEG, and 7 of other formats.
MAX_PIXELS = 2 * Image.MAX_IMAGE_PIXELS
warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)  # at half of that
# A legitimate file cannot hold more pixels than this for each of its bytes: a JPEG block of 64
# pixels takes at least a bit, and deflate shrinks at most 1032 times.
MAX_PIXELS_PER_BYTE = {'JPEG': 64 * 8, 'PNG': 1032 * 8, 'WEBP': math.inf}
# Warnings of libjpeg after which every pixel is still as it was encoded.
HARMLESS_WARNINGS = ('extraneous bytes before marker', 'Invalid SOS parameters')
# Markers of a JPEG, by their second byte: frames of baseline and extended sequential coding, the
# start of a scan, and segments that say nothing of how many rows there are (ITU T.81, table B.1):
# Huffman and quantisation tables, application data and comments.
SEQUENTIAL_SOF, SOS = (0xC0, 0xC1), 0xDA
END_OF_IMAGE = b'\xff\xd9'
SKIPPED_MARKERS = (0xC4, 0xDB, *range(0xE0, 0xF0), 0xFE)
COLORSPACES = ('YCbCr', 'RGB', 'Gray')  # that libjpeg-turbo converts to RGB
STRIP_PIXELS = 2**22  # that are converted at a time
# Rows that decoding a row of the crop may look at below it: chroma is upsampled from neighbours.
ROWS_BELOW = 4
# Kernels: what the resizer calls them, and how far they reach, in pixels of the coarser image.
FILTERS = {'bilinear': (ResizeAlg.convolution(FilterType.bilinear), 1),
           'bicubic': (ResizeAlg.convolution(FilterType.catmull_rom), 2)}
TOO_LARGE = ('the most that is decoded (MAX_PIXELS in resnet_jax/data/decode.py); scale it down '
             'with another program')
DAMAGED = 'is incomplete or damaged'
PIXEL_TYPES = {1: PixelType.U8, 3: PixelType.U8x3}

_of_thread = threading.local()  # its resizer, and its scratch memory for decoded rows


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
        return _jpeg_rows(data, height, width, height, 1, strict=strict)
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
        pixels = _jpeg_rows(data, height, width, rows, scale, scratch=True)
        return resample(pixels, Region(*(x / scale for x in region[:4]), region.closed), size,
                        kernel)
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
    height, width, channels = pixels.shape
    margin_y = 0 if region.closed else _margin(region.height, size[0], kernel)
    margin_x = 0 if region.closed else _margin(region.width, size[1], kernel)
    top = max(0, math.floor(region.top) - margin_y)
    left = max(0, math.floor(region.left) - margin_x)
    bottom = min(height, math.ceil(region.top + region.height) + margin_y)
    right = min(width, math.ceil(region.left + region.width) + margin_x)
    pixels = pixels[top:bottom, left:right]
    if region.height == size[0] and region.width == size[1] and pixels.shape[:2] == size:
        return pixels.copy()
    # Reduced decoding rounds the image's size up, so the far edge may be a hair outside.
    box_height = min(region.height, pixels.shape[0] - (region.top - top))
    box_width = min(region.width, pixels.shape[1] - (region.left - left))
    kind = PIXEL_TYPES[channels]
    source = ImageData(pixels.shape[1], pixels.shape[0], kind, pixels.tobytes())
    target = ImageData(size[1], size[0], kind)
    options = ResizeOptions(
        resize_alg=FILTERS[kernel][0], use_alpha=False,
        **({} if (box_height, box_width) == pixels.shape[:2] else {'crop_box': CropBox(
            region.left - left, region.top - top, box_width, box_height)}))
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
            height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data, strict=False)
            by_pillow = colorspace not in COLORSPACES
        except (KeyError, ValueError) as error:  # damage, or chroma sampling without a name there
            if END_OF_IMAGE not in data:
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


def _scratch(shape: tuple[int, ...]) -> np.ndarray:
    """Memory of this thread, uint8, until its next use: fresh pages cost 2 % of decoding."""
    size = math.prod(shape)
    if getattr(_of_thread, 'scratch', np.empty(0)).size < size:
        _of_thread.scratch = np.empty(size, np.uint8)
    return _of_thread.scratch[:size].reshape(shape)


def _jpeg_rows(data: bytes, height: int, width: int, rows: int, scale: int, *,
               strict: bool = False, scratch: bool = False) -> np.ndarray:
    """At least the first rows of a JPEG at 1/scale, uint8 [>= rows / scale, W / scale, 3]."""
    def decoded(data: bytes, height: int, cut: bool) -> np.ndarray:
        # libjpeg rounds up; the width alone then selects exactly this scale.
        shape = (-(-height // scale), -(-width // scale), 3)
        pixels = _scratch(shape) if scratch else np.empty(shape, np.uint8)
        arguments = {'buffer': pixels, 'min_width': pixels.shape[1] if scale > 1 else 0}
        try:
            simplejpeg.decode_jpeg(data, 'RGB', **arguments)
        except ValueError as error:
            if strict or not any(warning in str(error) for warning in HARMLESS_WARNINGS):
                raise ValueError('it is truncated' if END_OF_IMAGE not in data else str(error)
                                 ) from error
            # The data below the cut is what the decoder finds too much, once all rows are there.
            if not cut:
                simplejpeg.decode_jpeg(data, 'RGB', **arguments, strict=False)
        return pixels

    rows_decoded = min(height, rows + ROWS_BELOW)
    cut = _cut_below(data, rows_decoded) if rows_decoded < height else None
    if cut is not None:
        try:
            return decoded(cut, rows_decoded, True)
        except ValueError:
            pass  # the whole image decides whether it is damaged
    return decoded(data, height, False)


def _cut_below(data: bytes, rows: int) -> bytearray | None:
    """The same JPEG with a lower height in its header, or None where that would not be the same.

    The decoder then stops after the last row that it needs. This holds for one sequential scan
    without restart markers, which almost all files are, that is not cut off before its end.
    """
    try:
        frame, scan = _find_frame_and_scan(data)
    except (IndexError, ValueError):
        return None
    whole_scan = data[scan + 3] == data[frame + 8]  # all components at once
    if not whole_scan or data.rfind(END_OF_IMAGE, scan) < 0:
        return None
    cut = bytearray(data)
    cut[frame + 4:frame + 6] = rows.to_bytes(2, 'big')
    return cut


def _find_frame_and_scan(data: bytes) -> tuple[int, int]:
    """Where the only frame and its first scan stand in a sequential JPEG without restart markers.

    ITU T.81, annex B. The positions are those of the second byte of the markers SOF and SOS.

    Raises:
      IndexError, ValueError: it is another kind of JPEG, or damaged.
    """
    position, frame = 2, None
    while data[position] == 0xFF:
        while data[position] == 0xFF:  # fill bytes (B.1.1.2), of which there may be any number
            position += 1
        marker = data[position]
        length = int.from_bytes(data[position + 1:position + 3], 'big')
        if marker == SOS and frame is not None:
            return frame, position
        if marker in SEQUENTIAL_SOF and frame is None:
            frame = position
        elif length < 2 or marker not in SKIPPED_MARKERS:
            break
        position += 1 + length
    raise ValueError('not one sequential scan without restart markers')
