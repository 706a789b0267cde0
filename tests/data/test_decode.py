"""Decoding gives the pixels that Pillow gives, whatever part is asked for, and names damage."""

import io
import struct
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from resnet_jax.data import crops, decode
from resnet_jax.data.decode import Region, UnreadableImageError
from tests.data.data_helpers import encoded, photograph

PIXELS = photograph(37, 53)
GREY16 = (PIXELS[..., 0].astype(np.uint16) << 8) + 7


def pillow(data, region, size):
    image = Image.open(io.BytesIO(data)).convert('RGB')
    box = (region.left, region.top, region.left + region.width, region.top + region.height)
    if region.closed:
        image = image.crop(tuple(map(int, box)))
        box = None
    return np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR, box=box))


def convert(mode, kind, **options):
    file = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(('mode', 'kind', 'tolerance'), [
    ('L', 'JPEG', 10), ('CMYK', 'JPEG', 10), ('RGB', 'JPEG', 10), ('L', 'PNG', 0),
    ('RGB', 'PNG', 0), ('RGBA', 'PNG', 0), ('LA', 'PNG', 0), ('RGBA', 'WEBP', 25),
    ('RGB', 'WEBP', 25)])
def test_every_mode_becomes_rgb(mode, kind, tolerance):
    pixels = decode.decode(convert(mode, kind), 'x')
    expected = np.asarray(Image.fromarray(PIXELS).convert(mode).convert('RGB'))
    assert pixels.shape == (37, 53, 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - expected).mean() <= tolerance


def test_16_bits_keep_the_high_byte():
    data = encoded(GREY16, 'PNG')
    np.testing.assert_array_equal(decode.decode(data, 'x'),
                                  np.repeat(PIXELS[..., :1], 3, axis=2))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_decoding_a_part_gives_exactly_the_pixels_of_decoding_all(data):
    """Whatever the chroma subsampling, and for progressive and restart-marked files too."""
    height, width = (data.draw(st.integers(9, 150)) for _ in range(2))
    options = data.draw(st.sampled_from([
        {}, {'subsampling': 0}, {'subsampling': 1}, {'subsampling': 2}, {'progressive': True},
        {'restart_marker_rows': 1}, {'optimize': True}]))
    jpeg = encoded(photograph(height, width, data.draw(st.integers(0, 9))), 'JPEG',
                   quality=data.draw(st.sampled_from([30, 75, 95])), **options)
    top = data.draw(st.integers(0, height - 4))
    left = data.draw(st.integers(0, width - 4))
    region = Region(top, left, data.draw(st.integers(4, height - top)),
                    data.draw(st.integers(4, width - left)), data.draw(st.booleans()))
    part = decode.decode_region(jpeg, region, (20, 20), 'x', reduce=False)
    np.testing.assert_array_equal(
        part, decode.resample(decode.decode(jpeg, 'x'), region, (20, 20)))
    # Resampling rounds each pass to 8 bits; Pillow's rounding differs by one at most.
    assert np.abs(part.astype(int) - pillow(jpeg, region, (20, 20))).max() <= 2


@pytest.mark.parametrize('subsampling', [0, 2])
@pytest.mark.parametrize('shrink', [2, 3, 5, 8.3])
def test_reduced_decoding_keeps_the_geometry(subsampling, shrink):
    """A shift by half a pixel would cost more than 3 grey levels on this image."""
    side = int(32 * shrink)
    pixels = np.asarray(Image.fromarray(photograph(400, 420)).resize((420, 400)))
    jpeg = encoded(pixels, quality=95, subsampling=subsampling)
    for top, left in ((0, 0), (31, 77), (400 - side, 420 - side)):
        region = Region(top, left, side, side, closed=True)
        got = decode.decode_region(jpeg, region, (32, 32), 'x', reduce=True).astype(int)
        assert np.abs(got - pillow(jpeg, region, (32, 32))).mean() < 1.5


def test_the_centre_crop_is_pillows_resize_and_crop():
    jpeg = encoded(photograph(300, 407))
    region = crops.center_crop(300, 407, 256, 224)
    image = Image.open(io.BytesIO(jpeg)).resize((int(256 * 407 / 300), 256),
                                                Image.Resampling.BILINEAR)
    left, top = round((image.width - 224) / 2), 16
    expected = np.asarray(image.crop((left, top, left + 224, top + 224))).astype(int)
    got = decode.decode_region(jpeg, region, (224, 224), 'x', reduce=False)
    assert np.abs(got - expected).max() <= 2
    assert np.abs(got - expected).mean() < 0.3


def damaged(i: int) -> tuple[bytes, bool]:
    """(a damaged file, whether the damage is certain to show)"""
    rng = np.random.default_rng(i)
    jpeg = encoded(photograph(60 + i % 40, 80), quality=90)
    kind = i % 5
    if kind == 0:
        return jpeg[:int(rng.uniform(0.05, 0.95) * len(jpeg))], True
    if kind == 1:
        data = bytearray(jpeg)
        for at in rng.integers(len(data), size=40):
            data[at] ^= 1 << int(rng.integers(8))
        # Bits of the pixels themselves may turn into other valid pixels.
        return bytes(data), False
    if kind == 2:
        return b'', True
    if kind == 3:
        return b'this is not an image\n' * 20, True
    return wide_png(30_000, int(rng.integers(1000, 30_000))), True


def wide_png(width: int, height: int) -> bytes:
    """A header that claims so many pixels, and hardly any data."""
    def chunk(name, body):
        return struct.pack('>I', len(body)) + name + body + struct.pack(
            '>I', zlib.crc32(name + body))
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0,
                                                             0, 0))
            + chunk(b'IDAT', zlib.compress(bytes(1000))) + chunk(b'IEND', b''))


def test_200_damaged_files_are_each_named_and_none_crashes_or_hangs():
    named, begin = 0, time.monotonic()
    for i in range(200):
        data, certain = damaged(i)
        for read in (lambda d, n: decode.decode(d, n, strict=True),
                     lambda d, n: decode.decode_region(d, Region(0, 0, 60, 60, True), (32, 32), n,
                                                       reduce=True)):
            try:
                assert read(data, f'file{i}.jpg').dtype == np.uint8
            except UnreadableImageError as error:
                assert str(error).startswith(f'file{i}.jpg cannot be read: ')
                named += certain
            else:
                assert not certain
    assert named == 2 * 160
    assert time.monotonic() - begin < 20


def test_a_header_that_claims_30_000_pixels_allocates_nothing():
    data = wide_png(30_000, 30_000)
    tracemalloc.start()
    with pytest.raises(UnreadableImageError, match=r'wide.png cannot be read: its header claims'):
        decode.decode(data, 'wide.png')
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
