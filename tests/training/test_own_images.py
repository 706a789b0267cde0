"""A path is enough to train on a folder of images, from random or from trained weights."""

import contextlib
import io
import json
import pathlib
from typing import NamedTuple

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import finetune, folder
from experiments import grid
from resnet_jax import config as config_lib
from resnet_jax import data
from resnet_jax.distributed import sharding
from resnet_jax.errors import UserError
from resnet_jax.training import choices, loop
from resnet_jax.training.costs import summarize
from resnet_jax.training.program import build, completed
from resnet_jax.training.writers import read_rows
from resnet_jax.weights import stored
from tests.data.data_helpers import write_folder
from tests.weights.networks import store

SIZE = (24, 28)  # height and width
# Of all runs here, so that their steps are one program, compiled once.
SHORT = {'num_steps': 2, 'batch_size': 8, 'eval.batch_size': 8, 'model.virtual_batch_size': 8,
         'schedule.warmup_steps': 1, 'schedule.learning_rate': 0.01, 'log.every_steps': 1,
         'mesh.data': 1, 'compilation_cache': '', 'data.cache': ''}


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp('own') / 'images',
                        classes=('cat', 'dog', 'emu', 'fox'), images=3,
                        size=(30, 40), splits=('train', 'val'))


class Run(NamedTuple):
    """What a run was given and what came of it."""

    config: ConfigDict
    folder: pathlib.Path
    values: dict
    out: str
    err: str
    damaged: pathlib.Path


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Two steps on a folder of images, of which one is damaged."""
    root = tmp_path_factory.mktemp('run')
    images = write_folder(root / 'images', classes=('cat', 'dog', 'emu', 'fox'), images=3,
                          size=(30, 40), splits=('train', 'val'))
    damaged = images / 'train' / 'dog' / '0001.jpg'
    damaged.write_bytes(damaged.read_bytes()[:700])
    config = folder.get_config()
    config.update_from_flattened_dict({
        **SHORT, 'data.path': str(images), 'model.width': 4, 'model.family': 'cifar',
        'model.depth': 8, 'model.shortcut': 'A', 'data.image_size': SIZE, 'data.eval_resize': 28,
        'data.eval_crop_share': None, 'data.on_unreadable': 'skip'})
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        values = loop.train(config, root / 'run')
    return Run(config, root / 'run', values, out.getvalue(), err.getvalue(), damaged)


def test_a_folder_is_trained_on_by_its_path_and_its_classes_are_counted(run):
    assert run.values['eval/count'] == 12
    assert '12 training and 12 test images' in run.out
    assert run.config.model.num_classes is None  # it is the caller's
    assert stored.config_of(run.folder).model.num_classes == 4
    loop.train(run.config, run.folder)  # the same command again: nothing is left to do


def fine_tuning(images, weights):
    store(weights, width=4, size=SIZE)
    config = finetune.get_config()
    config.update_from_flattened_dict({
        **SHORT, 'data.path': str(images), 'init.checkpoint': str(weights)})
    return config


def test_fine_tuning_takes_architecture_and_size_from_the_weights_and_says_so(
        images, tmp_path, capsys):
    config = fine_tuning(images, tmp_path / 'weights')
    program = build(config, sharding.create_mesh(config))
    state = program.initial_state()
    weights = stored.read(tmp_path / 'weights')
    arrays = len(jax.tree.leaves(weights.variables)) - 2
    assert (f'loaded {arrays} arrays of ResNet-8 from {tmp_path / "weights"}; not '
            'loaded: head\n') in capsys.readouterr().out
    assert program.config.model.width == 4
    assert data.image_size(program.config.data) == program.train_data.image_shape[:2] == SIZE
    for part in ('mean', 'std'):
        assert state.normalization[part].tolist() == weights.normalization[part].tolist()
    stem = state.params['stem'], weights.variables['params']['stem']
    jax.tree.map(np.testing.assert_array_equal, *stem)


def test_fine_tuning_resumes_with_the_crop_of_the_weights(images, tmp_path):
    config, file = fine_tuning(images, tmp_path / 'weights'), tmp_path / 'weights' / 'config.json'
    fields = json.loads(file.read_text())
    fields['data'] |= {'eval_size': 48, 'eval_crop_share': 0.95}
    file.write_text(json.dumps(fields))
    begun = completed(config)
    assert (begun.data.eval_size, begun.data.eval_crop_share) == (48, 0.95)
    again = completed(choices.as_begun(config, begun)[0])
    assert config_lib.leaves(again) == config_lib.leaves(begun)


@pytest.mark.slow
def test_a_fine_tuned_network_is_trained_and_keeps_the_normalisation_of_the_weights(
        images, tmp_path):
    values = loop.train(fine_tuning(images, tmp_path / 'weights'), tmp_path / 'run')
    assert values['eval/count'] == 12
    found = stored.read(tmp_path / 'run')
    assert (found.config.model.width, data.image_size(found.config.data)) == (4, SIZE)
    weights = stored.read(tmp_path / 'weights')
    assert found.normalization['mean'].tolist() == weights.normalization['mean'].tolist()


def test_summaries_and_sweeps_count_the_classes_too(images):
    config = folder.get_config()
    config.data.path = str(images)
    assert summarize(config)['stages'][-1] == {'name': 'head', 'shape': [4]}
    grid.check([grid.Cell({}, (), config)], 1)


def test_fine_tuning_without_weights_asks_for_them(images):
    config = finetune.get_config()
    config.data.path = str(images)
    with pytest.raises(UserError, match=r'model.depth=N, or --config.init.checkpoint='):
        completed(config)
    for checkpoint in ('', str(images / 'weights')):  # of several mistakes, the data comes first
        config.init.checkpoint = checkpoint
        for path, told in (('', r'^data\.path is not set; '),
                           (f'{images}/none', r'/none is not a folder; correct the path\.$'),
                           ('gs://images/own', r'^gs://images/own is in a bucket, ')):
            config.data.path = path
            with pytest.raises(UserError, match=told):
                completed(config)


def test_a_fork_of_a_fine_tuned_run_needs_no_more_fields_than_the_run(images, tmp_path):
    store(tmp_path / 'weights', width=8, size=24)
    config = finetune.get_config()
    config.update_from_flattened_dict({
        'data.path': str(images), 'init.resume_from': str(tmp_path / 'weights')})
    found = completed(config)
    assert (found.model.depth, found.model.width, found.data.image_size) == (8, 8, 24)


def test_what_is_not_left_empty_stays_as_it_is(tmp_path):
    config = finetune.get_config()
    config.update_from_flattened_dict({
        'init.checkpoint': str(tmp_path / 'nothing'), 'model.num_classes': 7, 'model.depth': 50,
        'data.image_size': 64})
    assert completed(config) is config
    config.data.image_size = None
    with pytest.raises(UserError, match='there is no folder'):
        completed(config)


def test_images_that_are_skipped_are_counted_in_each_row_and_line_of_the_log(run):
    counts = [row['train/skipped_images'] for row in read_rows(run.folder / 'metrics.jsonl')
              if 'train/loss' in row]
    # 16 of 12 images in turn, and those that are decoded ahead.
    assert len(counts) == 2
    assert 1 <= counts[-1] <= 5
    assert f'  skipped {counts[-1]} unreadable images\n' in run.out
    sentence = f'warning: skipped an image: {run.damaged} cannot be read: it is truncated.'
    assert run.err.splitlines().count(sentence) >= 2  # for the statistics, then in training


def test_a_missing_evaluation_split_says_how_to_hold_out_images(tmp_path):
    config = folder.get_config()
    config.data.path = str(write_folder(tmp_path, images=2, splits=('train',)))
    config.data.eval_split = 'test'
    with pytest.raises(UserError, match=(
            r'has no folder test or val or validation or valid: move some images of each class '
            r'there, or hold out training images with --config.data.eval_split=auto')):
        loop.train(config, tmp_path / 'run')
