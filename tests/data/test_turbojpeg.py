"""A rectangle decoded by the TurboJPEG library has the pixels that simplejpeg gives."""

import ctypes
import importlib.metadata

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_jax.data import decode, jpeg, turbojpeg
from resnet_jax.data.decode import Region, UnreadableImageError
from tests.data.data_helpers import encoded, photograph

KINDS = ('444', '422', '420', '440', '411', 'grey', 'optimized', 'progressive', 'restart')


def find():
    """The library of the host, or the one that the package turbojpeg of PyPI brings."""
    if found := turbojpeg.library():
        return found
    try:
        files = importlib.metadata.files('turbojpeg')
    except importlib.metadata.PackageNotFoundError:
        return None
    [file] = [file.locate() for file in files if file.name.startswith('libturbojpeg')]
    return turbojpeg.declared(ctypes.CDLL(str(file)))


LIBRARY = find()
pytestmark = pytest.mark.skipif(LIBRARY is None, reason='there is no TurboJPEG 3')


@pytest.fixture
def used(monkeypatch):
    """Lets the library decode, and lists the warnings of what it decoded."""
    made = []
    rectangle = turbojpeg.decode_rectangle

    def spy(*args):
        pixels, warning = rectangle(*args)
        made.append(warning)
        return pixels, warning

    monkeypatch.setattr(turbojpeg, 'library', lambda: LIBRARY)
    monkeypatch.setattr(turbojpeg, 'decode_rectangle', spy)
    return made


def make(kind: str, height: int, width: int, seed: int) -> bytes:
    pixels = photograph(height, width, seed)
    options = {'optimized': {'optimize': True}, 'progressive': {'progressive': True},
               'restart': {'restart_marker_rows': 1}}
    if kind == 'grey':
        return encoded(pixels[..., 0])
    if kind in options:
        return encoded(pixels, **options[kind])
    return simplejpeg.encode_jpeg(pixels, 90, 'RGB', kind)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_rectangles_have_the_bits_of_complete_rows(data):
    kind, scale = data.draw(st.sampled_from(KINDS[:7])), data.draw(st.sampled_from([1, 2, 4, 8]))
    height, width = data.draw(st.integers(9, 150)), data.draw(st.integers(9, 150))
    image = make(kind, height, width, data.draw(st.integers(0, 9)))
    scaled_height, scaled_width = -(-height // scale), -(-width // scale)
    top, left = (data.draw(st.integers(0, side - 1)) for side in (scaled_height, scaled_width))
    rows = slice(top, data.draw(st.integers(top + 1, scaled_height)))
    columns = slice(left, data.draw(st.integers(left + 1, scaled_width)))
    whole = jpeg.rows(image, height, width, height, scale)[rows, columns]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(turbojpeg, 'library', lambda: LIBRARY)
        pixels, warning = turbojpeg.decode_rectangle(image, rows, columns, width, scale,
                                                     lambda shape: np.empty(shape, np.uint8))
        np.testing.assert_array_equal(pixels, whole)
        assert not warning
        # With the rows below left out.
        np.testing.assert_array_equal(whole, jpeg.rectangle(
            image, height, width, min(height, rows.stop * scale), scale, rows, columns))


@pytest.mark.parametrize('kind', KINDS)
def test_regions_are_decoded_by_the_library_where_it_can(kind, used, monkeypatch):
    image = make(kind, 120, 90, 3)
    regions = [(Region(31, 40, 60, 44, True), False), (Region(31, 40, 60, 44, True), True),
               (Region(31.3, 40.7, 50.2, 44.1, False), True)]

    def decoded():
        return [decode.decode_region(image, region, (20, 20), 'x', reduce=reduce)
                for region, reduce in regions]

    made = decoded()
    assert len(used) == (0 if kind in ('progressive', 'restart') else 3)
    assert all(not warning or 'extraneous' in warning for warning in used)
    monkeypatch.setattr(turbojpeg, 'library', lambda: None)
    np.testing.assert_array_equal(made, decoded())


def test_damage_is_reported_as_without_the_library(used, monkeypatch):
    whole, rng, damaged = make('420', 120, 90, 4), np.random.default_rng(0), 0
    for i in range(60):
        image = bytearray(whole)
        for at in rng.integers(2, len(image), size=3):
            image[at] ^= 1 << int(rng.integers(8))
        image = bytes(image[:rng.integers(len(image))]) if i % 5 == 0 else bytes(image)

        def outcome(image=image):
            try:
                return decode.decode_region(image, Region(31, 40, 60, 44, True), (20, 20), 'x',
                                            reduce=True).tolist()
            except UnreadableImageError as error:
                return str(error)

        monkeypatch.setattr(turbojpeg, 'library', lambda: LIBRARY)
        with_library = outcome()
        monkeypatch.setattr(turbojpeg, 'library', lambda: None)
        assert with_library == outcome()
        damaged += isinstance(with_library, str)
    assert 10 < damaged < 50
    assert used
