"""TFDS's datasets with objects are read as VOC's and COCO's own files are."""

import pathlib
import pickle
import types

import numpy as np
import pytest

from resnet_jax import config as config_lib
from resnet_jax.data import create_source, decode
from resnet_jax.data.registry import count_classes, find
from resnet_jax.errors import UserError
from tests.data.data_helpers import encoded, photograph

tfds = pytest.importorskip('tensorflow_datasets',
                           reason='TensorFlow Datasets is not installed')
HEIGHT, WIDTH = 333, 500
# Corners as in VOC's files, or as COCO's continuous pixels; class, and whether to ignore it.
OBJECTS = [[((8, 12, 352, 333), 1, False), ((1, 1, 500, 7), 0, True)], [],
           [((499, 1, 500, 333), 2, False)]]


def write(folder, name, objects=None, splits=('train', 'validation')):
    """A dataset with features as those of TFDS's `voc` or `coco`."""
    features = tfds.features
    inclusive, images = name == 'voc', OBJECTS if objects is None else objects
    parts = {'bbox': features.BBoxFeature(), 'label': features.ClassLabel(names=['a', 'b', 'c'])}
    parts |= ({'is_difficult': np.bool_, 'pose': features.ClassLabel(names=['x'])} if inclusive
              else {'is_crowd': np.bool_, 'area': np.int64, 'id': np.int64})

    def entry(box, label, ignore):
        x1, y1, x2, y2 = (float(np.float32(x)) for x in box)
        bbox = features.BBox(y1 / HEIGHT, x1 / WIDTH, y2 / HEIGHT, x2 / WIDTH)
        more = ({'is_difficult': ignore, 'pose': 0} if inclusive else
                {'is_crowd': ignore, 'area': 1234, 'id': 5})
        return {'bbox': bbox, 'label': label, **more}

    def build(self):
        return tfds.core.DatasetInfo(builder=self, features=features.FeaturesDict({
            'image': features.Image(shape=(None, None, 3), encoding_format='jpeg'),
            'image/filename': features.Text(), 'objects': features.Sequence(parts),
            **({} if inclusive else {'image/id': np.int64})}))

    def generate(count):
        for i in range(count):
            image = folder / f'{i}.jpg'
            image.write_bytes(encoded(photograph(HEIGHT, WIDTH, i)))
            yield i, {'image': str(image), 'image/filename': f'{i}.jpg',
                      'objects': [entry(*x) for x in images[i]],
                      **({} if inclusive else {'image/id': 70 + i})}

    folder.mkdir(exist_ok=True)
    kind = types.new_class(name, (tfds.core.GeneratorBasedBuilder,), {
        'skip_registration': True}, lambda names: names.update({
        'VERSION': tfds.core.Version('1.0.0'), '_info': build,
        'pkg_dir_path': folder, '_split_generators': lambda self, downloads: {
            split: generate(len(images)) for split in splits},
        '_generate_examples': lambda self: None}))
    builder = kind(data_dir=str(folder), file_format='array_record')
    builder.download_and_prepare()
    return config_of(folder, builder.data_path, name)


def config_of(folder, path, name):
    config = config_lib.default()
    config.data.update(source='tfds', tfds_name=name, path=str(path),
                       cache=str(folder / 'cache'))
    return config


def in_order(source):
    """The items, which TFDS has shuffled, by the number of objects: 0, 1 and 2."""
    items = [source[i] for i in range(len(source))]
    return sorted(items, key=lambda item: len(item.target['boxes']))


def test_fractions_of_pixels_from_1_become_the_boxes_of_voc(tmp_path):
    config = write(tmp_path / 'data', 'voc')
    source = create_source(config, 'train')
    items = in_order(source)
    assert [item.target['boxes'].tolist() for item in items] == [
        [], [[498, 0, 500, 333]], [[7, 11, 352, 333], [0, 0, 500, 7]]]
    assert items[2].target['classes'].tolist() == [1, 0]
    assert items[2].target['ignore'].tolist() == [False, True]
    assert items[2].target['areas'].tolist() == [345 * 322, 3500]
    assert sorted(int(item.target['id']) for item in items) == [0, 1, 2]
    assert {name: value.dtype.name for name, value in items[0].target.items()} == {
        'boxes': 'float32', 'classes': 'int32', 'ignore': 'bool', 'areas': 'float32',
        'id': 'int32'}
    assert decode.image_size(items[0].image, '') == (HEIGHT, WIDTH)
    assert (source.most_objects, source.num_classes, source.class_names) == (
        2, 3, ('a', 'b', 'c'))
    assert (len(source), count_classes(config)) == (3, 3)


def test_boxes_ids_areas_and_crowds_of_coco(tmp_path):
    box = (10.25, 5.5, 300.75, 20.25)
    config = write(tmp_path / 'data', 'coco', [[(box, 1, True)]], ('train', 'validation', 'test'))
    source = create_source(config, 'test')
    assert source[0].name == 'coco/1.0.0/validation[0]'  # whose test split has no objects
    target = source[0].target
    np.testing.assert_allclose(target['boxes'], [box], atol=1e-4)
    assert (target['areas'].tolist(), target['ignore'].tolist(), target['id']) == (
        [1234], [True], 70)


def test_all_records_are_read_once_and_then_cached(tmp_path, monkeypatch):
    config = write(tmp_path / 'data', 'voc')
    first = create_source(config, 'train')
    monkeypatch.setattr(decode, 'image_size', None)  # without which no record can be parsed
    again = pickle.loads(pickle.dumps(create_source(config, 'train')))
    assert again.fingerprint == first.fingerprint
    np.testing.assert_equal(again[1].target, first[1].target)
    [file] = (tmp_path / 'data/cache').iterdir()
    file.unlink()
    with pytest.raises(TypeError):
        create_source(config, 'train')


def test_splits_are_named_by_the_lists(tmp_path):
    config = write(tmp_path / 'data', 'voc')
    config.data.train_list = 'train+validation'
    assert len(create_source(config, 'train')) == 6
    config.data.train_list = 'trainval'
    with pytest.raises(UserError, match=r"'voc' has no split 'trainval', only train, validation, "
                                        r'which may be joined by \+'):
        create_source(config, 'train')


def test_boxes_of_no_area_and_splits_without_objects_are_refused(tmp_path):
    config = write(tmp_path / 'data', 'voc', [[((5, 5, 5, 9), 1, False), ((1, 1, 9, 9), 0, False)]])
    with pytest.raises(UserError, match=r'train\[0\]: object 1 \(b; 4, 4, 5, 9\) has no area'):
        create_source(config, 'train')
    config.data.bad_boxes = 'skip'
    assert create_source(config, 'train')[0].target['classes'].tolist() == [0]
    config = write(tmp_path / 'none', 'voc', [[]])
    with pytest.raises(UserError, match=r'voc/1.0.0/train lists 1 images without a single object'):
        create_source(config, 'train')


def test_the_target_is_known_without_the_data():
    config = config_of(pathlib.Path('/nowhere'), '', 'coco/2017')
    assert set(find('tfds').example_target(config)) == {'boxes', 'classes', 'ignore', 'areas', 'id'}
    config.data.tfds_name = 'cifar10'
    assert set(find('tfds').example_target(config)) == {'label'}
