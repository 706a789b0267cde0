"""Masks: run lengths, crops that follow scale, flip and window, and the sources that have them."""

import json

import numpy as np
import pytest
from PIL import Image

from resnet_jax import config as config_lib
from resnet_jax.data import Item, create_source, masks, scenes
from resnet_jax.data.objects import Canvas, TrainTransform
from resnet_jax.errors import UserError
from tests.data import test_coco, test_voc
from tests.data.data_helpers import encoded, photograph


def ellipse(height, width, box):
    """The pixels whose centres lie in the ellipse within a box, cut off above its diagonal."""
    y, x = np.mgrid[:height, :width] + 0.5
    u, v = (x - box[0]) / (box[2] - box[0]), (y - box[1]) / (box[3] - box[1])
    return ((u - 0.5) ** 2 + (v - 0.5) ** 2 < 0.25) & (u + v > 0.6)


def runs(bitmap):
    return masks.of_instances(bitmap.astype(np.uint8), [1])[0]


def item(height, width, boxes):
    """White shapes on black."""
    shapes = [ellipse(height, width, box) for box in boxes]
    n = len(boxes)
    return Item(np.repeat(255 * np.any(shapes, 0)[..., None].astype(np.uint8), 3, 2), {
        'boxes': np.array(boxes, np.float32), 'classes': np.zeros(n, np.int32),
        'ignore': np.zeros(n, bool), 'areas': np.ones(n, np.float32), 'id': np.int32(0),
        'masks': [runs(shape) for shape in shapes]}, 'made up')


@pytest.mark.parametrize('fill', [0, 0.3, 0.9, 1])
def test_run_lengths_are_those_of_pycocotools(fill):
    reference = pytest.importorskip('pycocotools.mask', reason='compares with pycocotools')
    bitmap = np.random.default_rng(0).random((13, 17)) < fill
    encoded_there = reference.encode(np.asfortranarray(bitmap.astype(np.uint8)))
    assert runs(bitmap) == {'size': [13, 17], 'counts': encoded_there['counts'].decode()}
    np.testing.assert_array_equal(masks.decode(runs(bitmap)), bitmap)


def test_a_crop_gives_back_the_mask_of_an_object_of_at_most_112_pixels():
    rng = np.random.default_rng(0)
    for side in (1, 2, 7, 16, 31, 100, 112):
        bitmap = np.zeros((130, 140), bool)
        bitmap[9:9 + side, 5:5 + side] = rng.random((side, side)) < 0.5
        box = np.float32([5, 9, 5 + side, 9 + side])
        crop = masks.crop(runs(bitmap), box)
        assert crop.shape == (112, 112) and crop.dtype == np.uint8
        assert masks.restore(crop, box, 130, 140) == runs(bitmap)


@pytest.mark.parametrize('seed', range(6))
def test_masks_lie_where_the_painted_pixels_are_at_any_scale_flip_and_window(seed):
    canvas = Canvas(((64, 96),), 1, 3, masks=True, window=(48, 40) if seed % 2 else None)
    example = TrainTransform(canvas, True, (64,) if seed < 3 else (40, 50, 60))(
        item(90, 120, [(10, 20, 60, 70), (70, 5, 110, 80)]), np.random.default_rng(seed))
    painted = example['image'][..., 0] > 127
    pasted = np.zeros_like(painted)
    assert example['present'].sum() >= 1 and not example['masks'][~example['present']].any()
    for crop, box in zip(example['masks'][example['present']],
                         example['boxes'][example['present']], strict=True):
        pasted |= masks.decode(masks.restore(crop, box, *painted.shape))
    assert painted.sum() > 100
    assert (pasted & painted).sum() / (pasted | painted).sum() > 0.93
    assert (example['boxes'] <= np.tile(example['size'][::-1], 2) + 1e-3).all()


def test_a_window_leaves_out_what_it_does_not_show():
    boxes = [(2, 2, 12, 12), (100, 60, 118, 88), (20, 20, 30, 30)]
    whole = Canvas(((90, 120),), 1, 3, masks=True)
    seen = whole._replace(window=(40, 50), max_objects=1).example(item(90, 120, boxes))
    assert seen['image'].shape == (40, 50, 1) and seen['size'].tolist() == [40, 50]
    np.testing.assert_array_equal(seen['boxes'], [boxes[0]])  # there is no place for another one
    last = whole._replace(window=(40, 50)).example(item(90, 120, boxes), corner=(0.999, 0.999))
    assert last['present'].tolist() == [True, False, False]
    np.testing.assert_allclose(last['boxes'][0], np.array(boxes[1]) - [70, 50, 70, 50])
    assert last['image'][..., 0].any()


def test_data_without_masks_is_refused():
    plain = item(20, 20, [(1, 1, 9, 9)])
    del plain.target['masks']
    with pytest.raises(UserError, match=r'made up has no masks, which model\.detector'):
        Canvas(((20, 20),), 1, 3, masks=True).example(plain)


def test_the_digits_of_scenes_cover_each_other_and_fill_their_boxes():
    rng = np.random.default_rng(0)
    scene = scenes.scene(*scenes.ink('train'), rng, 64, (6, 6))
    for number, box in enumerate(scene.boxes.astype(int), 1):
        mine = scene.instances == number
        assert mine.sum() > 20
        inside = np.zeros_like(mine)
        inside[box[1]:box[3], box[0]:box[2]] = True
        assert not (mine & ~inside).any()
    last = scene.boxes[-1].astype(int)  # nothing covers the last one
    rows, columns = np.nonzero(scene.instances == len(scene.boxes))
    assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == last.tolist()


def opened(source, path, split='train'):
    config = config_lib.default()
    config.data.source, config.data.path = source, str(path)
    config.model.detector.masks = True
    return create_source(config, split)


def instance_maps(root):
    """Three images, the last one for validation; the map of the first skips a number."""
    for name in ('images', 'labels'):
        (root / name).mkdir(parents=True)
    rows = ['name\tnuclei\tsplit']
    for i, name in enumerate('abc'):
        instances = np.zeros((30, 40), np.uint16)
        instances[2:9, 4:10] = 1
        if i < 2:
            instances[5:20, 8:30] = 300 if i == 0 else 2
        Image.fromarray(instances).save(root / f'labels/{name}.png')
        (root / f'images/{name}.png').write_bytes(encoded(photograph(30, 40, i), 'PNG'))
        rows.append(f'{name}\t2\t{"val" if name == "c" else "train"}')
    (root / 'index.tsv').write_text('\n'.join(rows) + '\n')
    return root


def test_maps_of_instances_are_boxes_and_masks(tmp_path):
    source = opened('instances', instance_maps(tmp_path / 'cells'))
    assert (len(source), source.most_objects, source.class_names) == (2, 2, ('cells',))
    target = source[0].target
    np.testing.assert_array_equal(target['boxes'], [[4, 2, 10, 9], [8, 5, 30, 20]])
    np.testing.assert_array_equal(target['areas'], [42 - 8, 330])  # the second one lies on top
    assert [masks.decode(mask).sum() for mask in target['masks']] == [34, 330]
    assert len(opened('instances', tmp_path / 'cells', 'test')) == 1
    (tmp_path / 'cells' / 'labels' / 'a.png').write_bytes(b'no image')
    with pytest.raises(UserError, match=r'a\.png is missing, or not a PNG file'):
        opened('instances', tmp_path / 'cells')


def test_coco_has_polygons_and_run_lengths(tmp_path):
    reference = pytest.importorskip('pycocotools.mask', reason='compares with pycocotools')
    root = test_coco.write(tmp_path / 'coco')
    shape = [[11, 6, 29.5, 7, 25, 19], [12, 12, 14, 12, 14, 15, 12, 15]]
    content = test_coco.content()
    content['annotations'][0]['segmentation'] = shape
    content['annotations'][1]['segmentation'] = {'counts': [100, 300, 2000], 'size': [40, 60]}
    (root / test_coco.TRAIN).write_text(json.dumps(content))
    found = opened('coco', root)[0].target['masks']
    expected = reference.merge(reference.frPyObjects(shape, 40, 60))
    assert found[0] == {'size': [40, 60], 'counts': expected['counts'].decode()}
    assert masks.decode(found[1]).T.ravel().nonzero()[0].tolist() == list(range(100, 400))
    for segmentation, sentence in (([[1, 2]], 'neither polygons nor run lengths'),
                                   ({'counts': [4], 'size': [2, 2]}, r'is of the size \[2, 2\]')):
        content['annotations'][0]['segmentation'] = segmentation
        (root / test_coco.TRAIN).write_text(json.dumps(content))
        with pytest.raises(UserError, match=sentence):
            opened('coco', root)[0]
    del content['annotations'][0]['segmentation']
    (root / test_coco.TRAIN).write_text(json.dumps(content))
    with pytest.raises(UserError, match='annotation 1 has no mask; add it, or set'):
        opened('coco', root)


def test_voc_numbers_its_masks_as_the_objects_of_the_file(tmp_path):
    root = test_voc.write(tmp_path / 'voc')
    instances = np.zeros((40, 60), np.uint8)
    instances[:20], instances[5:15, 10:20], instances[20] = 1, 2, 255  # 255: the border
    (root / 'SegmentationObject').mkdir()
    Image.fromarray(instances).convert('P').save(root / 'SegmentationObject/a1.png')
    source = opened('voc', root)
    assert [masks.decode(mask).sum() for mask in source[0].target['masks']] == [1100, 100]
    with pytest.raises(UserError, match=r'SegmentationObject/a2\.png is missing or damaged'):
        source[1]
