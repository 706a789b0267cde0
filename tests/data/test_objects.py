"""Images with objects on canvases: boxes follow the pixels, and batches have one canvas each."""

import collections

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh

from resnet_jax import config as config_lib
from resnet_jax import data
from resnet_jax.data import Item, objects, scenes
from resnet_jax.data.objects import Canvas, EvalTransform, TrainTransform
from resnet_jax.data.order import group_of_step
from resnet_jax.data.sources import hold_out
from resnet_jax.errors import UserError
from resnet_jax.tasks.detection import task


def item(height, width, boxes):
    """White rectangles on black."""
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    image = np.zeros((height, width, 3), np.uint8)
    for x1, y1, x2, y2 in boxes.astype(int):
        image[y1:y2, x1:x2] = 255
    n = len(boxes)
    return Item(image, {
        'boxes': boxes, 'classes': np.arange(n, dtype=np.int32), 'ignore': np.zeros(n, bool),
        'areas': np.ones(n, np.float32), 'id': np.int32(7)}, 'made up')


@given(st.data())
def test_the_box_is_where_the_painted_pixels_are(draws):
    height, width = (draws.draw(st.integers(20, 120)) for _ in range(2))
    x1, y1 = draws.draw(st.integers(0, width - 10)), draws.draw(st.integers(0, height - 10))
    box = (x1, y1, draws.draw(st.integers(x1 + 8, width)), draws.draw(st.integers(y1 + 8, height)))
    canvas = Canvas(((64, 96), (96, 64)), 1, 2, draws.draw(st.none() | st.integers(20, 90)),
                    draws.draw(st.none() | st.integers(30, 120)))
    flip, rng = draws.draw(st.booleans()), np.random.default_rng(draws.draw(st.integers(0, 99)))
    example = TrainTransform(canvas, flip, draws.draw(st.sampled_from([(), (20, 60)])))(
        item(height, width, [box]), rng)
    assert example['image'].shape[:2] in canvas.sizes
    # The white pixels, each counted by its brightness, have the box's centre and area.
    ink = example['image'][..., 0] / 255.0
    rows, columns = (np.arange(side) + 0.5 for side in ink.shape)
    moved = example['boxes'][0]
    assert ink.sum() == pytest.approx(np.prod(moved[2:] - moved[:2]), rel=0.12, abs=3)
    found = (ink.sum(0) @ columns, ink.sum(1) @ rows) / ink.sum()
    np.testing.assert_allclose(found, (moved[:2] + moved[2:]) / 2, atol=0.7)
    # Nothing beyond the image's size, in which the box lies.
    height, width = example['size']
    assert not example['image'][height:].any() and not example['image'][:, width:].any()
    assert (moved >= -1e-3).all() and (moved <= [width + 1e-3, height + 1e-3] * 2).all()


@pytest.mark.parametrize(('short', 'long', 'size'), [
    (None, None, (750, 1000)),  # as large as the canvas allows
    (600, None, (600, 800)), (600, 700, (525, 700)), (800, 1333, (750, 1000))])
def test_the_shorter_side_is_scaled_unless_the_longer_one_gets_too_long(short, long, size):
    canvas = Canvas(((1000, 1000),), 3, 1, short, long)
    assert canvas.place(480, 640) == (0, size)
    assert canvas.place(640, 480) == (0, size[::-1])


def test_an_image_gets_the_canvas_on_which_it_is_largest():
    canvas = Canvas(((608, 1008), (1008, 608)), 3, 1, 600, 1000)
    assert canvas.place(480, 640) == (0, (600, 800))
    assert canvas.place(640, 480) == (1, (800, 600))
    assert canvas.place(500, 500) == (0, (600, 600))  # the first of both
    assert canvas.place(300, 900)[0] == 0


def test_an_example_has_places_for_objects_and_says_where_the_image_came_from():
    canvas = Canvas(((40, 50),), 3, 3)
    example = EvalTransform(canvas)(item(80, 80, [(0, 0, 40, 80), (8, 8, 9, 9)]))
    assert example['image'].shape == (40, 50, 3) and example['image'].dtype == np.uint8
    assert (example['size'].tolist(), example['original'].tolist()) == ([40, 40], [80, 80])
    assert example['boxes'].tolist() == [[0, 0, 20, 40], [4, 4, 4.5, 4.5], [0, 0, 0, 0]]
    assert example['present'].tolist() == [True, True, False] and example['id'] == 7
    # In training, an object of less than a pixel is no object.
    example = TrainTransform(canvas, False)(item(80, 80, [(0, 0, 40, 80), (8, 8, 9, 9)]),
                                            np.random.default_rng(0))
    assert example['present'].tolist() == [True, False, False]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=4).filter(any), st.integers(0, 400))
def test_groups_take_turns_by_their_share(sizes, steps):
    seen = collections.Counter()
    for step in range(steps):
        group, before = group_of_step(step, sizes)
        assert before == seen[group]  # the batches of a group follow one another
        seen[group] += 1
    for group, size in enumerate(sizes):
        assert abs(seen[group] - steps * size / sum(sizes)) < len(sizes)


@pytest.mark.slow
def test_scenes_are_the_same_on_every_machine_and_their_boxes_hold_the_ink():
    source = scenes.scenes('test')
    assert (len(source), source.num_classes, source.most_objects) == (256, 10, 8)
    assert source.fingerprint == '7a6fb45a9a1fb6dfe1d39a2f81c54156'
    boxes = np.concatenate([source[i].target['boxes'] for i in range(256)])
    assert len(boxes) == 1503 and boxes.min() >= 0 and boxes.max() <= 64
    assert ((boxes[:, 2:] - boxes[:, :2]) >= 2).all()
    # Training and test scenes show different digits.
    for i in range(8):
        made = scenes.scene(*scenes.ink('train'), scenes.generator('train', i), 64, scenes.OBJECTS)
        assert made.image.shape == source.images[i].shape and (made.image != source.images[i]).any()
    assert not {x.tobytes() for x in scenes.ink('train')[0]} & {
        x.tobytes() for x in scenes.ink('test')[0]}


class Photographs:
    """Images of two orientations, each of one colour, which tells its index."""

    num_classes, class_names, most_objects, fingerprint = 2, ('a', 'b'), 1, 'photographs'

    def __init__(self, landscapes, portraits):
        self.sizes = np.array([(30, 40)] * landscapes + [(40, 30)] * portraits)

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        made = item(*self.sizes[index], [(2, 2, 20, 20)])
        return made._replace(image=np.full_like(made.image, index), target=made.target | {
            'id': np.int32(index)})


def create(config, split):
    """This module as a source."""
    del config
    return Photographs(13, 6) if split == 'train' else Photographs(5, 4)


@pytest.fixture
def oriented():
    config = config_lib.default()
    config.task = 'detection'
    config.batch_size, config.eval.batch_size, config.num_steps = 4, 8, 10
    config.model.num_classes = 2
    config.data.update(source='tests.data.test_objects', image_size=(30, 40),
                       canvases=((40, 30),), normalization='none')
    return config


def pipelines(config, devices=1):
    mesh = Mesh(jax.devices()[:devices], 'data')
    return data.create_pipelines(config, mesh, **task.transforms(config))


def test_a_batch_has_one_canvas_and_an_epoch_every_image(oriented):
    train, test, norm = pipelines(oriented)
    make, feed, ids = jax.jit(train.batch), train.inputs(0), collections.Counter()
    for step in range(19):  # four epochs of 19 images
        batch = jax.device_get(make(next(feed), np.int32(step), norm))
        portrait = batch['image'].shape[1:3] == (40, 30)
        assert portrait or batch['image'].shape[1:3] == (30, 40)
        assert all((index >= 13) == portrait for index in batch['id'])
        np.testing.assert_allclose(batch['image'][:, 0, 0, 0], batch['id'] / 255, atol=1e-6)
        ids.update(batch['id'].tolist())
        if step == 7:  # a batch is a function of the step
            again = jax.device_get(make(next(train.inputs(7)), np.int32(7), norm))
            jax.tree.map(np.testing.assert_array_equal, again, batch)
    feed.close()
    assert set(ids) == set(range(19)) and max(ids.values()) <= 5
    assert test.num_batches == 2
    counted = [index for inputs in test.inputs(0)
               for index in np.asarray(inputs['id'])[np.asarray(inputs['mask']) > 0]]
    assert sorted(counted) == list(range(9))


def test_several_canvases_need_known_sizes(oriented):
    canvas = objects.canvas_of(oriented.data)
    with pytest.raises(UserError, match=r"data\.canvases is for data whose images have known"):
        objects.groups(canvas, [])
    part = hold_out(Photographs(4, 2), 3, True)  # a part of a source knows its sizes as well
    assert sorted(np.concatenate(objects.groups(canvas, part))) == [0, 1, 2]
