"""Pictures side by side."""

import numpy as np
import pytest
from PIL import Image

from experiments import examples, gallery
from resnet_jax.errors import UserError
from tests.weights.networks import store


def test_rows_have_the_height_of_their_lowest_picture():
    red, blue = (Image.new('RGB', size, color) for size, color in (
        ((40, 40), (255, 0, 0)), ((80, 40), (0, 0, 255))))
    pixels = np.asarray(gallery.tiled([red, blue, red], columns=2, width=20))
    assert pixels.shape == (10 + gallery.GAP + 20, 20 + gallery.GAP + 20, 3)
    assert (pixels[:10, :20] == (255, 0, 0)).all() and (pixels[:10, -20:] == (0, 0, 255)).all()
    assert (pixels[-20:, :20] == (255, 0, 0)).all() and (pixels[-20:, -20:] == 255).all()


def test_a_file_is_written_and_what_is_no_picture_is_told(commands, tmp_path):
    Image.new('RGB', (8, 8)).save(tmp_path / 'a.png')
    (tmp_path / 'b.png').write_text('no picture')
    output = tmp_path / 'both.jpg'
    found = commands.run('experiments.gallery', f'--output={output}', tmp_path / 'a.png')
    assert found.status == 0 and Image.open(output).size == (320, 320)
    output.unlink()
    found = commands.run('experiments.gallery', f'--output={output}', tmp_path / 'a.png',
                         tmp_path / 'b.png')
    assert found.status == 1 and f'{tmp_path}/b.png cannot be read' in found.errors
    assert not output.exists()
    found = commands.run('experiments.gallery', '--output=both.svg', tmp_path / 'a.png')
    assert found.errors.strip() == "error: --output must end with .jpg or .png, got 'both.svg'."


def test_a_single_column_is_as_wide_as_its_pictures():
    assert gallery.tiled([Image.new('L', (4, 2)).convert('RGB')], 3, 10).size == (10, 5)
    with pytest.raises(UserError, match=r'none\.png cannot be read'):
        gallery.opened('none.png')


def test_images_are_chosen_by_their_numbers():
    assert examples.numbers(['0', '7'], 8) == [0, 7]
    for wrong in ('8', '-1', 'a', ''):
        with pytest.raises(UserError, match=r'numbers from 0 to 7, separated by commas; got'):
            examples.numbers(['0', wrong], 8)
    with pytest.raises(UserError, match='--images is empty'):
        examples.numbers([], 8)


def test_only_what_can_be_drawn_is_drawn(commands, tmp_path):
    store(tmp_path / 'digits', channels=1, size=8, plain=False, unroll=False)
    found = commands.run('experiments.examples', f'--checkpoint={tmp_path}/digits',
                         f'--output={tmp_path}/digits.png')
    assert found.errors.strip() == (f'error: the answers of {tmp_path}/digits cannot be drawn: it '
                                    'is no detector or localizer.')
    found = commands.run('experiments.examples', '--output=digits.png')
    assert found.errors.startswith('error: give --checkpoint=DIR, for example: python -m exper')
    found = commands.run('experiments.examples', f'--checkpoint={tmp_path}/digits',
                         f'--output={tmp_path}/nowhere/digits.png')
    assert found.errors.strip() == (
        f'error: {tmp_path}/nowhere/digits.png cannot be written: there is no folder '
        f'{tmp_path}/nowhere; make it first.')
