"""Decoding gives the pixels that Pillow gives, whatever part is asked for, and names damage."""

import io
import re
import struct
import time
import tracemalloc
import zlib

import numpy as np
import pytest
import simplejpeg
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


def baseline(subsampling='420', height=37, width=53, seed=0):
    return simplejpeg.encode_jpeg(photograph(height, width, seed), 80, 'RGB', subsampling)


def segments(jpeg: bytes) -> list[bytes]:
    """What stands between the markers: SOI, each header segment, and each scan with its data."""
    return re.findall(rb'\xff[^\x00\xff](?:[^\xff]|\xff\x00)*', jpeg)


def four_times_one() -> bytes:
    """A JPEG whose chroma is sampled 1 x 4, for which libjpeg-turbo's header reader has no name."""
    jpeg = bytearray(baseline('420', 64, 64))  # as many blocks as before, in another order
    jpeg[jpeg.index(b'\xff\xc0') + 11] = 0x14
    return bytes(jpeg)


@st.composite
def strange_jpegs(draw):
    """Valid JPEGs of every layout, and cut ones."""
    height, width = draw(st.integers(9, 60)), draw(st.integers(9, 60))
    kind = draw(st.sampled_from(['444', '422', '420', '440', '411', 'progressive', 'restart',
                                 'grey', 'sampled 1 x 4']))
    pixels = photograph(height, width, draw(st.integers(0, 3)))
    if kind == 'progressive':
        jpeg = encoded(pixels, progressive=True)
    elif kind == 'restart':
        jpeg = encoded(pixels, restart_marker_blocks=draw(st.integers(1, 9)))
    elif kind == 'grey':
        jpeg = encoded(pixels[..., 0])
    elif kind == 'sampled 1 x 4':
        jpeg, height, width = four_times_one(), 64, 64
    else:
        jpeg = baseline(kind, height, width)
    start, *rest = segments(jpeg)
    extra = st.sampled_from([  # comments and application data, which may hold what looks like more
        b'\xff\xfe\x00\x08hello\0', b'\xff\xe1\x00\x0aExif\0\0\xff\xd9',
        b'\xff\xe2\x00\x06\xff\xda\xff\xc0', b'\xff\xed\x00\x02'])
    rest = draw(st.lists(extra, max_size=3)) + rest
    padded = [b'\xff' * draw(st.sampled_from([0, 0, 1, 5])) + x for x in rest]
    jpeg = start + b''.join(padded) + draw(st.sampled_from([b'', b'\0' * 9, b'\xff\xd9', jpeg]))
    if draw(st.booleans()):
        jpeg = jpeg[:draw(st.integers(0, len(jpeg)))]
    top, left = draw(st.integers(0, height - 4)), draw(st.integers(0, width - 4))
    return jpeg, Region(top, left, draw(st.integers(4, height - top)),
                        draw(st.integers(4, width - left)), draw(st.booleans()))


def part_and_whole(jpeg, region):
    """Pixels of the region, or the sentence that refuses it: decoded alone, and of all pixels."""
    def outcome(read):
        try:
            return read().tolist()
        except UnreadableImageError as error:
            return str(error)

    return (outcome(lambda: decode.decode_region(jpeg, region, (6, 6), 'x', reduce=False)),
            outcome(lambda: decode.resample(decode.decode(jpeg, 'x'), region, (6, 6))))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(strange_jpegs())
def test_a_part_is_read_or_refused_as_the_whole_whatever_the_layout(example):
    part, whole = part_and_whole(*example)
    assert part == whole


@pytest.mark.parametrize('make', [baseline, lambda: encoded(PIXELS, progressive=True),
                                  lambda: encoded(PIXELS, restart_marker_blocks=2)])
def test_a_jpeg_that_is_cut_anywhere_is_refused_in_words(make):
    jpeg, reasons = make(), set()
    for length in range(len(jpeg)):
        part, whole = part_and_whole(jpeg[:length], Region(2, 3, 9, 9, closed=True))
        assert part == whole
        reasons.add(whole.removeprefix('x cannot be read: '))
    assert reasons == {'it is empty.', 'it is not a JPEG, PNG or WebP image.',
                       'its JPEG header is incomplete or damaged.', 'it is truncated.'}


def test_fill_bytes_do_not_make_reading_a_part_slower():
    """Only the rows of the part are read: damage below them goes unnoticed."""
    start, *rest, scan, end = segments(baseline(height=150))
    damaged = start + b''.join(b'\xff\xff' + x for x in (*rest, scan[:-1000], end))
    part, whole = part_and_whole(damaged, Region(0, 0, 40, 40, closed=True))
    assert 'cannot be read' in whole
    assert len(part) == 6


def test_chroma_sampling_that_only_pillow_reads_is_read_by_pillow():
    expected = np.asarray(Image.open(io.BytesIO(four_times_one())))
    np.testing.assert_array_equal(decode.decode(four_times_one(), 'x'), expected)


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
    """A header that claims this many pixels, with hardly any data."""
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
    with pytest.raises(UnreadableImageError, match=r'wide.png cannot be read: its header claims '
                                                   r'30000 x 30000 pixels, which a file of'):
        decode.decode(data, 'wide.png')
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP'])
def test_one_limit_on_pixels_holds_for_every_format(kind, monkeypatch):
    data = encoded(PIXELS, kind)
    monkeypatch.setattr(decode, 'MAX_PIXELS', 37 * 53)
    assert decode.decode(data, 'x').shape == (37, 53, 3)
    monkeypatch.setattr(decode, 'MAX_PIXELS', 37 * 53 - 1)
    with pytest.raises(UnreadableImageError, match=(
            r'it has 53 x 37 pixels, more than 1,960, the most that is decoded \(MAX_PIXELS in '
            r'resnet_jax/data/decode.py\); scale it down')):
        decode.decode(data, 'x')


def test_an_image_of_12_000_pixels_squared_is_within_the_limit():
    monochrome = io.BytesIO()
    Image.new('L', (12_000, 12_000)).save(monochrome, 'JPEG')
    assert decode.image_size(monochrome.getvalue(), 'x') == (12_000, 12_000)


def test_a_large_png_takes_little_more_memory_than_its_pixels():
    """Beside the 3 bytes per pixel that are counted here, Pillow has 4."""
    data = io.BytesIO()
    Image.new('RGBA', (5000, 2000), (9, 8, 7, 6)).save(data, 'PNG')
    tracemalloc.start()
    pixels = decode.decode(data.getvalue(), 'x')
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (pixels == (9, 8, 7)).all()
    assert pixels.nbytes < peak < 1.9 * pixels.nbytes
