"""What a run chooses from the images and the machine, and that it stays chosen."""

import contextlib
import io
import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import finetune, folder
from resnet_jax import config as config_lib
from resnet_jax.errors import UserError
from resnet_jax.training import choices, loop
from resnet_jax.training.choices import Machine
from resnet_jax.training.program import completed
from tests.data.data_helpers import write_folder

CLASSES = ('cat', 'dog', 'emu', 'fox', 'gnu')
CPU = Machine(1, 'cpu')


def own_images(root, config=folder, **fields):
    config = config.get_config()
    config.update_from_flattened_dict({'data.path': str(root), 'data.cache': '',
                                       'compilation_cache': '', 'mesh.data': 1, **fields})
    return config


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """Five classes of 12 images without splits."""
    return write_folder(tmp_path_factory.mktemp('own'), CLASSES, 12, (90, 100), splits=('.',))


def choose(config, machine=CPU):
    return config_lib.leaves(choices.choose(completed(config), machine)[0])


def test_from_a_folder_of_classes_all_else_is_chosen(images):
    found = choose(own_images(images))
    assert {name: found[name] for name in (*choices.SPLIT, *choices.FIELDS)} == {
        'data.eval_split': 'holdout', 'data.holdout': 12, 'data.image_size': 72,
        'batch_size': 8, 'eval.batch_size': 32, 'num_steps': 600, 'eval.every_steps': 60,
        'schedule.learning_rate': 0.00625, 'schedule.warmup_steps': 30}
    assert found['model.num_classes'] == 5
    on_gpus = choose(own_images(images), Machine(4, 'gpu'))
    assert (on_gpus['batch_size'], on_gpus['eval.batch_size']) == (4 * 2, 4 * 64)


def test_what_is_set_stays_and_counts_for_the_rest(images):
    found = choose(own_images(images, batch_size=16, num_epochs=10, **{'data.holdout': 20}))
    assert (found['batch_size'], found['num_steps']) == (16, 10 * 40 // 16)
    assert found['schedule.learning_rate'] == 0.0125
    assert choose(own_images(images, num_steps=7))['num_steps'] == 7


def test_an_evaluation_split_is_used_where_there_is_one(tmp_path):
    split = write_folder(tmp_path, CLASSES[:2], 4, splits=('train', 'val'))
    found = choose(own_images(split))
    assert (found['data.eval_split'], found['data.holdout'], found['num_steps']) == ('test', 0, 100)


def test_nothing_is_chosen_without_epochs(images):
    config = own_images(images, num_epochs=None)
    with pytest.raises(UserError, match=r'batch_size is not set; pass --config\.batch_size='):
        loop.train(config, images / 'never')


def test_folders_of_neither_splits_nor_classes_are_refused(tmp_path):
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'photos' / 'cat').mkdir()
    how = 'as train/CLASS/IMAGE and val/CLASS/IMAGE, or as CLASS/IMAGE'
    with pytest.raises(UserError, match='has no folder train or training, nor images .* in '
                       f'folders of classes; arrange them {how}'):
        completed(own_images(tmp_path))
    (tmp_path / 'photos' / 'x.tiff').write_bytes(b'x')
    with pytest.raises(UserError, match=r'\(1 .tiff\); convert them to JPEG, PNG or WebP'):
        completed(own_images(tmp_path))
    (tmp_path / 'val').mkdir()
    with pytest.raises(UserError, match=('has no folder train or training: arrange the images '
                                         f'{how}')):
        completed(own_images(tmp_path))


def test_a_single_class_and_a_folder_without_images_are_refused(tmp_path):
    write_folder(tmp_path, CLASSES[:1], 2, splits=('.',))
    with pytest.raises(UserError, match='has a single class; classification needs at least two'):
        completed(own_images(tmp_path))
    (tmp_path / 'notes').mkdir()
    with pytest.raises(UserError, match=r'notes holds no images \(JPEG, PNG or WebP\); add some'):
        completed(own_images(tmp_path))


@given(st.integers(1, 10**7), st.integers(1, 512), st.sampled_from(['cpu', 'gpu', 'tpu']),
       st.integers(1, 4), st.none() | st.integers(1, 256))
def test_a_batch_fits_the_devices_and_the_groups_of_batch_norm(
        images, devices, platform, parts, virtual):
    machine = Machine(devices, platform)
    size = choices.batch_size(images, machine, parts, virtual)
    config = folder.get_config()
    config.update_from_flattened_dict({
        'batch_size': size, 'optimizer.accumulation_steps': parts, 'num_steps': 100,
        'model.virtual_batch_size': virtual, 'model.num_classes': 2, 'data.image_size': 64,
        'eval.batch_size': devices * machine.most_images, 'schedule.learning_rate': 0.1,
        'schedule.warmup_steps': 1})
    config_lib.check(config, devices)
    if virtual is None:
        assert size <= devices * parts * machine.most_images
        assert size <= max(choices.LEAST_BATCH, images / choices.STEPS_PER_EPOCH, devices * parts)
    if devices == parts == 1 and images >= 64 * 8:
        assert size % 32 == 0 or virtual


@given(st.integers(1, 10_000))
def test_crops_are_seven_eighths_of_the_images_within_bounds(side):
    size = choices.crop_side(side)
    assert size % 8 == 0 and 64 <= size <= 224
    if 64 < size < 224:
        assert 7 / 8 * side - 8 < size <= 7 / 8 * side
    assert choices.crop_side(side + 1) >= size


TINY = {'model.family': 'cifar', 'model.depth': 8, 'model.width': 4, 'model.shortcut': 'A',
        'data.image_size': 16, 'num_epochs': 1}


def train(config, workdir):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        loop.train(config, workdir)
    return out.getvalue(), json.loads((workdir / 'config.json').read_text())


def test_a_run_says_what_it_chose_and_keeps_it_on_another_machine(images, tmp_path, monkeypatch):
    config = own_images(images, **TINY)
    out, first = train(config, tmp_path)
    assert ('chosen for this run; set any of them with --config.FIELD=VALUE:\n'
            '  model.num_classes             5  counted in the data\n'
            '  data.eval_split         holdout  the data has no evaluation split; 12 training '
            'images are held out\n'
            '  data.holdout                 12  a fifth of the training images, up to 5,000\n'
            '  batch_size                    8  for 48 training images on 1 x cpu\n') in out
    assert (first['num_steps'], first['eval']['every_steps']) == (6, 1)
    assert '48 training and 12 test images' in out
    monkeypatch.setattr(choices, 'IMAGES_PER_DEVICE', {'cpu': 4})
    assert choose(config)['batch_size'] == 4
    out, second = train(config, tmp_path)
    assert second == first
    assert '  batch_size                    8  as when the run began\n' in out
    assert 'nothing to do: all 6 steps are complete.' in out
    config.num_epochs = 2
    with pytest.raises(UserError, match='num_epochs: 1 -> 2'):
        loop.train(config, tmp_path)


@pytest.mark.slow
def test_a_fork_keeps_what_its_origin_chose(images, tmp_path, monkeypatch):
    config = own_images(images, **TINY, batch_size=16)
    train(config, tmp_path / 'origin')
    fork = own_images(images, **TINY, **{'init.resume_from': str(tmp_path / 'origin')})
    _, stored = train(fork, tmp_path / 'fork')
    assert (stored['batch_size'], stored['num_steps']) == (16, 3)
    assert math.isclose(stored['schedule']['learning_rate'], 0.0125)


@pytest.mark.slow
def test_three_commands_lead_from_a_folder_of_five_classes_to_names(images, tmp_path, commands):
    """Training, fine-tuning and predicting, with nothing but paths but for the size of it all."""
    tiny = [f'--config.{name}={value}' for name, value in TINY.items()]
    own = [f'--config.data.path={images}', '--config.data.cache=', '--config.compilation_cache=']
    root = finetune.__file__.removesuffix('finetune.py')
    first = commands.run('resnet_jax.main', f'--config={root}folder.py', *own, *tiny, cwd=tmp_path)
    assert first.status == 0, first.errors
    assert first.output.startswith('workdir: runs/folder\n')
    second = commands.run('resnet_jax.main', f'--config={root}finetune.py', *own,
                          '--config.init.checkpoint=runs/folder', cwd=tmp_path)
    assert second.status == 0, second.errors
    assert re.search(r'  data\.image_size +16  as the weights that the run starts from\n',
                     second.output), second.output
    assert 'arrays of ResNet-8 from runs/folder; not loaded: head\n' in second.output
    assert second.output.endswith('everything is in runs/finetune\n')
    third = commands.run('resnet_jax.predict', '--checkpoint=runs/finetune', '--json',
                         images / 'emu' / '0000.jpg', cwd=tmp_path)
    assert third.status == 0, third.errors
    assert sorted(one['name'] for one in json.loads(third.output)['classes']) == sorted(CLASSES)
