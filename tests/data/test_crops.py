"""Pixels and coordinates of an image are moved alike, on the host and on the device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from resnet_jax.data import crops, transforms
from resnet_jax.data.augment import Augmentation
from resnet_jax.data.crops import Crop
from resnet_jax.data.decode import Region
from resnet_jax.data.types import Item
from resnet_jax.data.views import Views
from resnet_jax.errors import UserError
from tests.data.data_helpers import encoded, photograph


def painted(height, width, box):
    """A black image with a white box."""
    image = np.zeros((height, width, 3), np.uint8)
    x1, y1, x2, y2 = box
    image[y1:y2, x1:x2] = 255
    return image


def seen(image):
    """The box around what is more white than black, or None."""
    rows, columns = np.nonzero(image[..., 0] >= 128)
    if not len(rows):
        return None
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float32)


def clipped(box, size):
    return np.clip(box, 0, [size[1], size[0]] * 2)


@st.composite
def boxes(draw, height, width, least=1):
    y1, x1 = draw(st.integers(0, height - least)), draw(st.integers(0, width - least))
    return x1, y1, draw(st.integers(x1 + least, width)), draw(st.integers(y1 + least, height))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_the_moved_box_is_where_the_painted_box_is_seen(data):
    """Cropped, scaled either way, padded on any side, mirrored; to a pixel."""
    height, width = data.draw(st.integers(30, 80)), data.draw(st.integers(30, 80))
    box = data.draw(boxes(height, width, 12))
    region = Region(
        data.draw(st.floats(-20, height - 15)), data.draw(st.floats(-20, width - 15)),
        data.draw(st.floats(15, 100)), data.draw(st.floats(15, 100)), data.draw(st.booleans()))
    if region.closed:  # as random crops are: whole pixels
        region = Region(*map(round, region[:4]), closed=True)
    size = (data.draw(st.integers(20, 60)), data.draw(st.integers(20, 60)))
    crop = Crop(region, size, data.draw(st.booleans()))
    moved = clipped(crop.boxes(np.array([box], np.float32))[0], size)
    found = seen(transforms.cut(Item(painted(height, width, box), {}, 'x'), crop, reduce=False))
    if min(moved[2:] - moved[:2]) < 4:  # a sliver may vanish between pixels
        return
    np.testing.assert_allclose(found, moved, atol=1.01)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_without_scaling_the_moved_box_is_exact(data):
    height, width = data.draw(st.integers(5, 30)), data.draw(st.integers(5, 30))
    box = data.draw(boxes(height, width))
    size = (data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40)))
    crop = Crop(Region(data.draw(st.integers(-9, 9)), data.draw(st.integers(-9, 9)), *size, True),
                size, data.draw(st.booleans()))
    moved = clipped(crop.boxes(np.array(box, np.float32)), size)
    found = seen(transforms.cut(Item(painted(height, width, box), {}, 'x'), crop, reduce=False))
    if min(moved[2:] - moved[:2]) <= 0:
        assert found is None
    else:
        np.testing.assert_array_equal(found, moved)


def test_points_follow_the_pixels_in_numpy_and_in_jax():
    crop = Crop(Region(10, 20, 40, 60, True), (80, 30), True)
    corner, middle = [20, 10], [50, 30]
    points = np.array([[corner, middle]], np.float32)
    expected = np.array([[[30, 0], [15, 40]]], np.float32)
    np.testing.assert_array_equal(crop.points(points), expected)
    traced = jax.jit(lambda mirrored: crop._replace(mirrored=mirrored).points(jnp.asarray(points)))
    np.testing.assert_array_equal(traced(np.bool_(True)), expected)
    assert crop.points(points).dtype == traced(np.bool_(True)).dtype == np.float32


def test_boxes_follow_the_images_on_the_device():
    """Random padded crops and flips of 64 images, each with two boxes; exact to the pixel."""
    rng, images, places = np.random.default_rng(0), [], []
    for _ in range(64):
        x, y = rng.integers(4, 9, 2)
        place = (x, y, x + rng.integers(3, 7), y + rng.integers(3, 7))
        images.append(painted(16, 20, place))
        places.append([place, (0, 0, 20, 16)])
    examples = {'image': np.stack(images), 'boxes': np.array(places, np.float32),
                'count': np.arange(64)}
    augment = Augmentation(4, True, 0.0, 0.0, 0.0)
    batch = jax.device_get(jax.jit(augment.__call__)(
        examples, jax.random.key(7), {'mean': np.zeros(3, np.float32),
                                      'std': np.ones(3, np.float32)}))
    np.testing.assert_array_equal(batch['count'], examples['count'])
    assert batch['image'].shape == (64, 16, 20, 3)
    for image, (box, whole) in zip(batch['image'] * 255, batch['boxes'], strict=True):
        np.testing.assert_array_equal(seen(image), clipped(box, (16, 20)))
        np.testing.assert_array_equal(whole[2:] - whole[:2], [20, 16])
    moves = batch['boxes'][:, 1, :2]
    assert len(np.unique(moves, axis=0)) > 30
    assert np.abs(moves).max() == 4


TRAIN = {'crop_scale': (0.3, 1.0), 'crop_ratio': (0.75, 1.33), 'jitter_sides': (40, 60),
         'flip': True, 'randaugment_layers': 0, 'randaugment_magnitude': 9}


@pytest.mark.parametrize('crop', ['pad', 'random_resized', 'scale_jitter'])
@pytest.mark.parametrize('is_encoded', [False, True])
def test_the_transform_of_training_moves_boxes_and_leaves_the_rest_alone(crop, is_encoded):
    transform = transforms.TrainTransform((32, 48), crop, **TRAIN)
    image = painted(90, 100, (30, 20, 70, 60))
    target = {'boxes': np.array([[30, 20, 70, 60]], np.float32), 'count': 3, 'share': 0.5,
              'more': {'flag': True}}
    item = Item(encoded(image, 'PNG') if is_encoded else image, target, 'x')
    moved = set()
    for position in range(20):
        example = transform(item, crops.generator(0, position))
        assert example['image'].shape == (32, 48, 3)
        np.testing.assert_allclose(
            seen(example['image']), clipped(example['boxes'][0], (32, 48)), atol=1.01)
        moved.add(tuple(example['boxes'][0].tolist()))
        assert (example['count'], example['count'].dtype) == (3, np.int32)
        assert (example['share'], example['share'].dtype) == (0.5, np.float32)
        assert example['more']['flag'].dtype == bool
    assert len(moved) == (1 if crop == 'pad' else 20)


def test_what_cannot_move_with_the_pixels_is_refused():
    item = Item(painted(40, 40, (5, 5, 20, 20)), {'points': np.zeros((1, 2), np.float32)}, 'x')
    transform = transforms.TrainTransform(32, 'random_resized',
                                          **TRAIN | {'randaugment_layers': 2})
    with pytest.raises(UserError, match='randaugment_layers must be 0 for images with boxes'):
        transform(item, crops.generator(0, 0))
    batch = {'image': np.zeros((2, 8, 8, 3), np.uint8), 'target': np.zeros(2)}
    with pytest.raises(UserError, match=r'mixup_alpha and data\.cutmix_alpha must be 0'):
        Augmentation(0, False, 0.0, 0.2, 0.0)(batch, jax.random.key(0), {
            'mean': np.zeros(3), 'std': np.ones(3)})


@settings(max_examples=100, deadline=None)
@given(*[st.integers(10, 300)] * 4, st.floats(1, 3), st.integers(0, 99))
def test_crops_of_any_shape_lie_in_images_of_any_shape(height, width, rows, columns, more, seed):
    shorter = round(min(rows, columns) * more)
    rng = np.random.default_rng(seed)
    for region in (crops.center_crop(height, width, shorter, (rows, columns)),
                   crops.scale_jitter(height, width, rng, (shorter, shorter + 9),
                                      (rows, columns))):
        assert region.top >= 0 and region.left >= 0
        assert region.top + region.height <= height + 1e-6
        assert region.left + region.width <= width + 1e-6
        # Both sides are scaled alike, but for the rounding of the longer one to whole pixels.
        by = region.height / rows, region.width / columns
        assert abs(by[0] / by[1] - 1) < 1.5 / min(rows, columns)


@pytest.mark.parametrize('shape', [(100, 150), (150, 100), (90, 90)])
def test_the_views_of_a_network_that_is_not_square(shape):
    """The centre, and each of the ten crops, are what Pillow scales to cover and cuts."""
    pixels, (height, width) = photograph(*shape), (40, 60)
    box = (44, 66)
    scale = max(box[0] / shape[0], box[1] / shape[1])
    whole = np.asarray(Image.fromarray(pixels).resize(
        (int(shape[1] * scale + 1e-9), int(shape[0] * scale + 1e-9)), Image.Resampling.BILINEAR))
    bottom, right = whole.shape[0] - height, whole.shape[1] - width
    item = Item(encoded(pixels, 'PNG'), {}, 'x')
    top, left = round(bottom / 2), round(right / 2)
    middle = whole[top:top + height, left:left + width].astype(int)
    [center] = Views('center_crop', (height, width), 44)(item)
    assert center.shape == (1, height, width, 3)
    assert np.abs(center[0] - middle).max() <= 2
    [ten] = Views('ten_crop', (height, width), 44)(item)
    assert ten.shape == (10, height, width, 3)
    assert np.abs(ten[4] - middle).max() <= 2
    assert np.abs(ten[3].astype(int) - whole[bottom:, right:]).max() <= 2
    np.testing.assert_array_equal(ten[5:], ten[:5, :, ::-1])
    scales = Views('multi_scale', (height, width), 44, (32, 64))(item)
    assert [min(view.shape[1:3]) for view in scales] == [32, 64]
