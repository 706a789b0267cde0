"""Decodes JPEG images, or the upper rows of one, to RGB uint8, by simplejpeg (libjpeg-turbo).

The entropy-coded data of a JPEG can only be read from the top: decoding a rectangle stops after its
last row. Files that are not one sequential scan are decoded completely.
"""

import math
import threading

import numpy as np
import simplejpeg

# Warnings of libjpeg after which every pixel is still as it was encoded.
HARMLESS_WARNINGS = ('extraneous bytes before marker', 'Invalid SOS parameters')
# Markers of a JPEG, by their second byte: frames of baseline and extended sequential coding, the
# start of a scan, and segments that say nothing of how many rows there are (ITU T.81, table B.1):
# Huffman and quantisation tables, application data and comments.
SEQUENTIAL_SOF, SOS = (0xC0, 0xC1), 0xDA
END_OF_IMAGE = b'\xff\xd9'
SKIPPED_MARKERS = (0xC4, 0xDB, *range(0xE0, 0xF0), 0xFE)
# Rows that decoding a row of the crop may look at below it: chroma is upsampled from neighbours.
ROWS_BELOW = 4

_of_thread = threading.local()  # its scratch memory for decoded pixels


def rows_decoded(count: int, height: int) -> int:
    """How many rows of an image of this height are decoded where the first ones are needed."""
    return min(height, count + ROWS_BELOW)


def rectangle(data: bytes, height: int, width: int, count: int, scale: int, rows_needed: slice,
              columns: slice) -> np.ndarray:
    """A rectangle of a JPEG.

    Args:
      data: the encoded image.
      height, width: of the image, in pixels.
      count: of its rows, those down to the rectangle's lower edge.
      scale: decodes at 1/scale: 1, 2, 4 or 8.
      rows_needed, columns: of the image at 1/scale.

    Returns:
      uint8 [rows, columns, 3], valid until this thread decodes again.

    Raises:
      ValueError: the data is damaged.
    """
    return rows(data, height, width, count, scale, scratch=True)[rows_needed, columns]


def _is_harmless(warning: str) -> bool:
    return any(harmless in warning for harmless in HARMLESS_WARNINGS)


def rows(data: bytes, height: int, width: int, count: int, scale: int, *,
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
            if strict or not _is_harmless(str(error)):
                raise ValueError('it is truncated' if END_OF_IMAGE not in data else str(error)
                                 ) from error
            # The data below the cut is what the decoder finds too much, once all rows are there.
            if not cut:
                simplejpeg.decode_jpeg(data, 'RGB', **arguments, strict=False)
        return pixels

    bottom = rows_decoded(count, height)
    cut = _cut_below(data, bottom) if bottom < height else None
    if cut is not None:
        try:
            return decoded(cut, bottom, True)
        except ValueError:
            pass  # the whole image decides whether it is damaged
    return decoded(data, height, False)


def _cut_below(data: bytes, rows: int) -> bytes | None:
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
    return b''.join((data[:frame + 4], rows.to_bytes(2, 'big'), data[frame + 6:]))


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


def _scratch(shape: tuple[int, ...]) -> np.ndarray:
    """Memory of this thread, uint8, until its next use: fresh pages cost 2 % of decoding."""
    size = math.prod(shape)
    if getattr(_of_thread, 'scratch', np.empty(0)).size < size:
        _of_thread.scratch = np.empty(size, np.uint8)
    return _of_thread.scratch[:size].reshape(shape)
