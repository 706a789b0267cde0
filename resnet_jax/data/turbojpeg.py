"""Decodes a rectangle of a JPEG by the TurboJPEG library of the host, if it is version 3 or later.

It computes no pixels outside of the rectangle, which simplejpeg cannot leave out. The pixels are
the same: both are libjpeg-turbo, whose fast paths give the bits of its plain ones.
"""

import ctypes
import functools
import threading
from collections.abc import Callable

import numpy as np

# From turbojpeg.h, version 3.
INIT_DECOMPRESS, PIXEL_FORMAT_RGB = 1, 0
PARAM_SUBSAMPLING = 4
# Width of a unit of decoding in pixels, by the chroma subsampling: 4:4:4, 4:2:2, 4:2:0, grey,
# 4:4:0 and 4:1:1.
UNIT_WIDTH = {0: 8, 1: 16, 2: 16, 3: 8, 4: 8, 5: 32}
# Columns beside the rectangle from which chroma is upsampled.
BESIDE = 4
LIBRARIES = ('libturbojpeg.so.0', 'libturbojpeg.0.dylib')

_of_thread = threading.local()  # its decoder


class _Region(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int) for name in ('x', 'y', 'w', 'h'))


class _Scale(ctypes.Structure):
    _fields_ = (('numerator', ctypes.c_int), ('denominator', ctypes.c_int))


@functools.cache
def library() -> ctypes.CDLL | None:
    """The TurboJPEG library, if the host has one that can decode rectangles."""
    for name in LIBRARIES:
        try:
            return declared(ctypes.CDLL(name))
        except (OSError, AttributeError):  # none, or one before version 3
            pass
    return None


def declared(found: ctypes.CDLL) -> ctypes.CDLL:
    """The library with the types of the functions used here.

    Raises:
      AttributeError: it is older than version 3.
    """
    decoder, data, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
    found.tj3Init.restype = decoder
    found.tj3Init.argtypes = [ctypes.c_int]
    found.tj3Destroy.argtypes = [decoder]
    found.tj3DecompressHeader.argtypes = [decoder, data, size]
    found.tj3Get.argtypes = [decoder, ctypes.c_int]
    found.tj3SetScalingFactor.argtypes = [decoder, _Scale]
    found.tj3SetCroppingRegion.argtypes = [decoder, _Region]
    found.tj3Decompress8.argtypes = [decoder, data, size, decoder, ctypes.c_int, ctypes.c_int]
    found.tj3GetErrorStr.argtypes = [decoder]
    found.tj3GetErrorStr.restype = ctypes.c_char_p
    return found


class _Decoder:
    """A decoder of the library, freed with its thread."""

    def __init__(self, found: ctypes.CDLL):
        self.library, self.handle = found, found.tj3Init(INIT_DECOMPRESS)

    def __del__(self):
        self.library.tj3Destroy(self.handle)

    def check(self, status: int) -> None:
        if status:
            raise ValueError(self.library.tj3GetErrorStr(self.handle).decode(errors='replace'))


def decode_rectangle(data: bytes, rows: slice, columns: slice, width: int, scale: int,
                     scratch: Callable[[tuple[int, ...]], np.ndarray]) -> tuple[np.ndarray, str]:
    """A rectangle of a sequential JPEG.

    Args:
      data: the encoded image.
      rows, columns: of the image at 1/scale.
      width: of the image, in pixels.
      scale: 1, 2, 4 or 8.
      scratch: shape -> uint8 array, the memory to decode to.

    Returns:
      uint8 [rows, columns, 3], and what the decoder warned of, or ''.

    Raises:
      ValueError: it cannot be decoded in part.
    """
    if getattr(_of_thread, 'decoder', None) is None or _of_thread.decoder.library is not library():
        _of_thread.decoder = _Decoder(library())
    decoder = _of_thread.decoder
    handle = decoder.handle
    decoder.check(decoder.library.tj3DecompressHeader(handle, data, len(data)))
    unit = UNIT_WIDTH.get(decoder.library.tj3Get(handle, PARAM_SUBSAMPLING))
    if unit is None:
        raise ValueError('chroma sampling without a name')
    unit = -(-unit // scale)
    left = max(0, columns.start - BESIDE) // unit * unit
    right = min(-(-width // scale), columns.stop + BESIDE)
    height = rows.stop - rows.start
    decoder.check(decoder.library.tj3SetScalingFactor(handle, _Scale(1, scale)))
    decoder.check(decoder.library.tj3SetCroppingRegion(
        handle, _Region(left, rows.start, right - left, height)))
    pixels = scratch((height, right - left, 3))
    warning = ''
    try:
        decoder.check(decoder.library.tj3Decompress8(
            handle, data, len(data), pixels.ctypes.data, 0, PIXEL_FORMAT_RGB))
    except ValueError as error:
        warning = str(error)
    return pixels[:, columns.start - left:columns.stop - left], warning
