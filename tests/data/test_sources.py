"""Sources find what is there, and a mistake or damage ends in one sentence that says what to do."""

import io
import json
import os
import re
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from jax.sharding import Mesh
from PIL import Image

from resnet_jax import config as config_lib
from resnet_jax.data import check, create_pipelines, shard_writer, shards
from resnet_jax.data import prepare as prepare_command
from resnet_jax.data.folder import EXTENSIONS, open_folder
from resnet_jax.data.shards import Shards
from resnet_jax.errors import UserError
from resnet_jax.tasks.prediction import find_files
from tests.data.data_helpers import encoded, photograph, write_folder


def test_labels_follow_the_names_of_the_classes_or_the_list(folder, tmp_path):
    source = open_folder(str(folder), 'train')
    assert source.class_names == ('a', 'b', 'c')
    assert source.labels.tolist() == [0] * 10 + [1] * 10 + [2] * 10
    assert source[11].name.endswith('train/b/0001.jpg')
    for text in ('c\na\nb\n', '0\tc\tsee\n1\ta\tay\n2\tb\tbee\n'):
        (tmp_path / 'classes.tsv').write_text(text)
        listed = open_folder(str(folder), 'test', str(tmp_path / 'classes.tsv'))
        assert listed.class_names == ('c', 'a', 'b')
        assert listed[0].name.endswith('test/c/0000.jpg')
        assert listed[0].target == {'label': 0}


def test_images_of_other_formats_are_left_out_with_one_warning_that_counts_them(folder, capsys):
    for name in ('a/x.gif', 'a/y.GIF', 'b/z.tiff', 'a/notes.txt', 'b/.hidden.gif'):
        (folder / 'train' / name).write_bytes(b'x')
    for _ in range(2):  # as a run does
        assert len(open_folder(str(folder), 'train')) == 30
        assert len(open_folder(str(folder), 'test')) == 30
    assert capsys.readouterr().err == (
        f'warning: {folder}/train: left out images that are not .jpg, .jpeg, .jpe, .jfif, '
        '.png or .webp (2 .gif, 1 .tiff); convert them to JPEG, PNG or WebP to use them.\n')


def test_all_suffixes_of_jpeg_png_and_webp_are_read(tmp_path):
    kinds = {suffix: kind for suffix, kind in Image.registered_extensions().items()
             if kind in ('JPEG', 'PNG', 'WEBP')}
    assert {*EXTENSIONS, '.apng'} == set(kinds)  # .apng: animations
    for name in ('train/a', 'train/b'):
        (tmp_path / name).mkdir(parents=True)
        for suffix in EXTENSIONS:
            content = encoded(photograph(20, 20), kinds[suffix])
            for written in (f'x{suffix}', f'y{suffix.upper()}'):
                (tmp_path / name / written).write_bytes(content)
    report = check.check(open_folder(str(tmp_path), 'train'), threads=1)
    assert (report['images'], report['unreadable']) == (24, [])
    assert report['formats'] == {'JPEG': 16, 'PNG': 4, 'WEBP': 4}
    files, failures, warnings = find_files([str(tmp_path)])  # as predict does
    assert (len(files), failures, warnings) == (24, [], [])


@pytest.mark.parametrize('name', ['test', 'val', 'validation'])
def test_the_evaluation_split_has_several_names(folder, name):
    (folder / 'test').rename(folder / name)
    assert len(open_folder(str(folder), 'test')) == 30


@pytest.mark.parametrize('text', ['x1.jpg c\nx0.JPEG a\n', 'x0 0\nx1 2\n', 'a\nc\n', '0\n2\n'])
def test_a_flat_evaluation_folder_takes_its_labels_from_a_file(tmp_path, text):
    write_folder(tmp_path, splits=('train',), images=1)
    (tmp_path / 'val').mkdir()
    for name in ('x0.JPEG', 'x1.JPEG'):
        (tmp_path / 'val' / name).write_bytes(encoded(photograph(20, 20)))
    (tmp_path / 'labels.txt').write_text(text)
    source = open_folder(str(tmp_path), 'test', label_file=str(tmp_path / 'labels.txt'))
    assert source.labels.tolist() == [0, 2]
    (tmp_path / 'labels.txt').write_text('7\n0\n')
    with pytest.raises(UserError, match=r"label '7' of x0.JPEG .* is not one of the 3 classes"):
        open_folder(str(tmp_path), 'test', label_file=str(tmp_path / 'labels.txt'))


def test_empty_and_unknown_classes_are_named(folder):
    (folder / 'test' / 'd').mkdir()
    with pytest.raises(UserError, match=r"holds the class 'd', which is not among the 3 classes"):
        open_folder(str(folder), 'test')
    (folder / 'train' / 'd').mkdir()
    with pytest.raises(UserError, match=r"the class 'd' has no images \(JPEG, PNG or WebP\) in"):
        open_folder(str(folder), 'train')
    (folder / 'list').write_text('a\nb\nc\nd\ne\n')
    listed = open_folder(str(folder), 'train', class_list=str(folder / 'list'))
    assert (listed.num_classes, set(listed.labels)) == (5, {0, 1, 2})


@pytest.mark.parametrize('path', ['gs://images/photos', 's3://images/photos'])
def test_folders_of_images_in_a_bucket_are_refused_with_what_to_do_instead(path):
    with pytest.raises(UserError, match=rf'{path} is in a bucket, from which only shards are read; '
                                        r'write them with `python -m resnet_jax.data.prepare` .* '
                                        r'and set data.source to shards\.'):
        open_folder(path, 'train')


def prepare(folder, output, **changes):
    options = {'shorter_side': 32, 'quality': 92, 'images_per_shard': 8, 'processes': 1,
               'skip_unreadable': False} | changes
    return shard_writer.prepare(open_folder(str(folder), 'train'), 'train', output, **options)


def test_shards_hold_the_same_images_smaller(folder, tmp_path):
    info = prepare(folder, tmp_path / 'out')
    assert (info['num_images'], len(info['shards'])) == (30, 4)
    source, original = Shards(str(tmp_path / 'out'), 'train'), open_folder(str(folder), 'train')
    assert len(source) == 30
    for i in (0, 7, 8, 29):
        assert source[i].target == original[i].target
        assert original[i].name in source[i].name
        small = Image.open(io.BytesIO(source[i].image))
        large = Image.open(io.BytesIO(original[i].image))
        assert small.size == (44, 32)
        difference = np.asarray(small, int) - np.asarray(large.resize((44, 32), 2))
        assert np.abs(difference).mean() < 4


def test_files_that_are_small_enough_stay_as_they_are(folder, tmp_path):
    prepare(folder, tmp_path / 'out', shorter_side=0)
    source, original = Shards(str(tmp_path / 'out'), 'train'), open_folder(str(folder), 'train')
    assert all(source[i].image == original[i].image for i in range(30))


def test_an_interrupted_preparation_goes_on_where_it_stopped(folder, tmp_path, monkeypatch):
    write, written = shard_writer.write_shard, []

    def interrupted(path, *rest):
        if len(written) == 2:
            path.with_name(shard_writer.UNFINISHED + path.name).write_bytes(b'half')
            raise KeyboardInterrupt
        written.append(path.name)
        return write(path, *rest)

    monkeypatch.setattr(shard_writer, 'write_shard', interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(folder, tmp_path / 'out')
    with pytest.raises(UserError, match=r"holds no prepared split 'train'"):
        Shards(str(tmp_path / 'out'), 'train')
    again = []
    monkeypatch.setattr(shard_writer, 'write_shard',
                        lambda path, *rest: again.append(path.name) or write(path, *rest))
    info = prepare(folder, tmp_path / 'out')
    assert len(again) == 2
    assert not set(again) & set(written)
    assert info == prepare(folder, tmp_path / 'out')
    assert len(again) == 2
    assert sorted(x.name for x in (tmp_path / 'out').iterdir()) == [
        *(shards.shard_name('train', i, 4) for i in range(4)), 'train.json']


def test_damaged_shards_are_named(folder, tmp_path):
    info = prepare(folder, tmp_path / 'out', shorter_side=0)
    file = tmp_path / 'out' / info['shards'][1]['name']
    whole = bytearray(file.read_bytes())
    # A single flipped bit in the middle of an image is found, which no JPEG decoder would see.
    item = open_folder(str(folder), 'train')[10].image
    at = whole.index(item[-100:-50])
    damaged = whole.copy()
    damaged[at] ^= 4
    file.write_bytes(damaged)
    source = Shards(str(tmp_path / 'out'), 'train')
    with pytest.raises(UserError, match=r'00001-of-00004.array_record\[2\] cannot be read'):
        source[10]
    file.write_bytes(whole[:5000])
    with pytest.raises(UserError, match=r'has 5000 bytes instead of .* it was truncated'):
        Shards(str(tmp_path / 'out'), 'train')
    with pytest.raises(UserError, match=r'00001-of-00004.*were deleted: run'):
        shard_writer.verify(info, 'train', tmp_path / 'out', 2)
    prepare(folder, tmp_path / 'out', shorter_side=0)
    assert bytes(file.read_bytes()) == bytes(whole)


def test_classes_whose_names_are_not_utf_8_can_be_printed(folder):
    before = open_folder(str(folder), 'train').fingerprint
    for split in ('train', 'test'):
        os.rename(folder / split / 'b', os.fsencode(folder / split) + b'/b\xe9')
    source = open_folder(str(folder), 'test')
    assert source.class_names == ('a', 'b\\xe9', 'c')
    assert open_folder(str(folder), 'train').fingerprint != before
    assert len(source[len(source) // 2].image) > 0


def test_files_whose_names_are_not_utf_8_are_read_reported_and_prepared(folder, tmp_path):
    name = os.fsencode(folder) + b'/train/a/caf\xe9.jpg'
    with open(name, 'wb') as file:
        file.write(b'damaged')
    source = open_folder(str(folder), 'train')
    [error] = check.check(source, threads=1)['unreadable']
    assert error == (f'{folder}/train/a/caf\\xe9.jpg cannot be read: it is not a JPEG, PNG or WebP '
                     'image.')
    with open(name, 'wb') as file:
        file.write(encoded(photograph(20, 20)))
    prepare(folder, tmp_path / 'out')
    assert Shards(str(tmp_path / 'out'), 'train')[10].name.endswith('/train/a/caf\\xe9.jpg)')


def test_a_label_out_of_range_is_an_error(folder, tmp_path):
    info = prepare(folder, tmp_path / 'out')
    description = tmp_path / 'out' / 'train.json'
    info['num_classes'] = 2
    description.write_text(json.dumps(info))
    with pytest.raises(UserError, match=r'has the label 2, which is not in \[0, 2\)'):
        Shards(str(tmp_path / 'out'), 'train')[25]


def test_check_reports_what_is_there_and_names_the_damage(folder):
    file = folder / 'train' / 'c' / '0004.jpg'
    file.write_text('hello')
    report = check.check(open_folder(str(folder), 'train'), threads=2)
    assert report['images'] == 30
    assert report['formats'] == {'JPEG': 29}
    assert report['images_per_class'] == {'least': 10, 'most': 10}
    assert report['width'] == {'least': 56, 'median': 56.0, 'most': 56}
    assert report['unreadable'] == [f'{file} cannot be read: it is not a JPEG, PNG or WebP image.']


def test_the_commands(folder, tmp_path, capsys):
    flags.FLAGS.mark_as_parsed()
    with flagsaver.as_parsed(path=str(folder), output=f'{tmp_path}/out', shorter_side='32',
                             images_per_shard='16', processes='1'):
        prepare_command.main([])
    told = capsys.readouterr().out
    assert re.search(r'train: 30 images in 2 shards, .* MB, 3 classes of 10 to 10 images, '
                     r'0 skipped; verified\.', told)
    with flagsaver.as_parsed(path=f'{tmp_path}/out', source='shards', splits='test', json='true'):
        check.main([])
    assert json.loads(capsys.readouterr().out)['test']['images'] == 30
    with (flagsaver.as_parsed(path='/nowhere'),
          pytest.raises(UserError, match=r'data\.path must be the folder')):
        check.main([])
    (folder / 'test').rename(folder / 'more')
    with flagsaver.as_parsed(path=str(folder), output=f'{tmp_path}/more'):
        for command in (check, prepare_command):
            with pytest.raises(UserError, match='has no evaluation split; pass --splits=train'):
                command.main([])
    assert capsys.readouterr() == ('', '') and not (tmp_path / 'more').exists()
    with (flagsaver.as_parsed(path=''),
          pytest.raises(UserError, match=r'give --path=FOLDER, or --source=tfds')):
        check.main([])
    with flagsaver.as_parsed(source='digits', json='true'):
        check.main([])  # a source that needs no path
    assert json.loads(capsys.readouterr().out)['test']['classes'] == 10


@pytest.mark.slow
def test_several_processes_write_the_same_shards(folder, tmp_path):
    infos = [prepare(folder, tmp_path / str(processes), processes=processes)
             for processes in (1, 2)]
    assert infos[0] == infos[1]


TFDS_BUILDER = '''
import io, sys
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

class TinyImages(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('1.0.0')
    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
            'image': tfds.features.Image(shape=(None, None, 3)),
            'label': tfds.features.ClassLabel(names=['a', 'b', 'c'])}))
    def _split_generators(self, downloads):
        return {'train': self._generate_examples(12), 'validation': self._generate_examples(6)}
    def _generate_examples(self, count):
        for i in range(count):
            file = io.BytesIO()
            Image.fromarray(np.full((20 + i, 24, 3), 10 * i, np.uint8)).save(file, 'PNG')
            file.seek(0)
            yield i, {'image': file, 'label': i % 3}

TinyImages(data_dir=sys.argv[1], file_format='array_record').download_and_prepare()

import pathlib
from resnet_jax.data import decode, shard_writer
from resnet_jax.data.shards import Shards
from resnet_jax.data.tfds import Tfds
from resnet_jax.data.tfds_builder import Builder
for split, count in (('train', 12), ('test', 6)):
    source = Tfds(Builder('tiny_images', sys.argv[1]), split)
    assert len(source) == count and source.class_names == ('a', 'b', 'c')
    shard_writer.prepare(source, split, pathlib.Path(sys.argv[2]), shorter_side=0, quality=90,
                         images_per_shard=5, processes=1, skip_unreadable=False)
    copy = Shards(sys.argv[2], split)
    for i in range(count):
        assert copy[i].image == source[i].image and copy[i].target == source[i].target
    assert sorted(decode.decode(source[i].image, 'x')[0, 0, 0] for i in range(count)) == [
        10 * i for i in range(count)]
assert 'tensorflow' not in sys.modules
print('done')
'''


@pytest.mark.slow
def test_tfds_is_prepared_and_read_without_tensorflow(tmp_path):
    pytest.importorskip('tensorflow_datasets', reason='TensorFlow Datasets is not installed')
    done = subprocess.run(
        [sys.executable, '-c', TFDS_BUILDER, str(tmp_path / 'tfds'), str(tmp_path / 'shards')],
        capture_output=True, text=True, timeout=120)
    assert done.stdout.endswith('done\n'), done.stderr


def test_a_tfds_dataset_that_is_not_prepared_names_the_command(tmp_path):
    pytest.importorskip('tensorflow_datasets', reason='TensorFlow Datasets is not installed')
    from resnet_jax.data.tfds_builder import Builder

    with pytest.raises(UserError, match=r'run `tfds build cifar10 --file_format=array_record'):
        Builder('cifar10', str(tmp_path))


@pytest.mark.slow
def test_cifar10_is_ready_quickly(real_data, tmp_path):
    """Under 20 s from 60,000 files, under 3 s from the cache; images are counted exactly."""
    config = config_lib.default()
    config.batch_size, config.eval.batch_size = 128, 384
    data = config.data
    data.source, data.cache = 'folder', str(tmp_path)
    data.path = str(real_data('cifar10_jpeg.tar.xz'))
    data.image_size, data.crop_padding, data.flip = 32, 4, True
    data.normalization = 'per_pixel_mean'
    for limit in (20, 3):
        begin = time.process_time()  # of two cores; other tests run beside this one
        train, test, norm = create_pipelines(config, Mesh(jax.devices()[:1], 'data'))
        jax.block_until_ready(next(train.inputs(0)))
        assert time.process_time() - begin < limit
    assert (train.num_images, test.num_images, train.source.num_classes) == (50_000, 10_000, 10)
    assert norm['mean'].shape == (32, 32, 3)
    make = jax.jit(test.batch)
    count = sum(float(make(x, step, norm)['mask'].sum())
                for step, x in zip(range(27), test.inputs(0), strict=False))
    assert count == 10_000
