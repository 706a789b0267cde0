"""Configs: every file builds, every field is read, and mistakes are named."""

import json
import pathlib
import re
import runpy

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from resnet_jax import config as config_lib
from resnet_jax import data, models
from resnet_jax.distributed import sharding
from resnet_jax.errors import UserError
from resnet_jax.training import loop as train
from resnet_jax.training import optim, workdir
from resnet_jax.training.costs import summarize
from resnet_jax.training.program import build
from resnet_jax.xla import flags as xla_flags

CONFIGS = sorted(pathlib.Path(__file__).parent.parent.glob('configs/*.py'))


def load(name):
    return runpy.run_path(str(CONFIGS[0].parent / f'{name}.py'))['get_config']()


# What configs leave to the data and to the weights that they start from.
FROM_ELSEWHERE = {'folder': {'model.num_classes': 5},
                  'finetune': {'model.num_classes': 5, 'model.depth': 50, 'data.image_size': 224}}


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_complete_and_says_how_to_run_it(path):
    config = load(path.stem)
    config.update_from_flattened_dict(FROM_ELSEWHERE.get(path.stem, {}))
    for data_shards in (1, 8, 16):
        config_lib.check(config, data_shards)
    models.create(config.model)
    optim.create_optimizer(config)
    optim.create_schedule(config)
    command = rf'python -m (resnet_jax\.main|experiments\.\w+) --config=configs/{path.stem}\.py\s'
    assert re.search(command, runpy.run_path(str(path))['__doc__'])


def test_the_summary_does_not_depend_on_how_the_network_is_executed():
    config = load('imagenet_r18')
    expected = summarize(config)
    config.model.update(stem_space_to_depth=True, remat='block', unroll=False)
    assert summarize(config) == expected


def test_a_misspelt_field_in_a_config_file_is_an_error():
    config = load('digits_r20')
    with pytest.raises(AttributeError, match='depth'):
        config.model.dept = 56


def test_with_a_cosine_the_number_of_steps_cannot_change():
    config = load('digits_r20')
    stored = config_lib.leaves(config)
    config.num_steps += 1
    assert config_lib.differences(config, stored) == ['num_steps: 450 -> 451']
    config.schedule.name = stored['schedule.name'] = 'constant'
    assert config_lib.differences(config, stored) == []


def test_every_field_is_read_somewhere(tiny_config, tmp_path, monkeypatch):
    # These look at every field by design, so they would hide one that nothing else reads.
    monkeypatch.setattr(config_lib, 'check', lambda *_: None)
    monkeypatch.setattr(workdir, 'describe', lambda *_: None)
    reads = set()
    getitem = ConfigDict.__getitem__

    def spy(self, key):
        reads.add((id(self), key))
        return getitem(self, key)

    monkeypatch.setattr(ConfigDict, '__getitem__', spy)
    config = tiny_config
    config.num_steps = 3
    config.optimizer.ema_decay = 0.9
    config.eval.recalibrate_batches = 1
    config.profile.update(start_step=1, num_steps=1)
    config.checkpoint.every_steps = None
    train.train(config, tmp_path)
    for name in ('lars', 'adamw'):
        config.optimizer.name = name
        optim.create_optimizer(config)
    config.num_steps = 200
    for name, warmup in (('plateau', 'error'), ('cosine', 'linear'), ('steps', 'none')):
        config.schedule.update(name=name, warmup=warmup, plateau_window=1)
        optim.create_schedule(config)
    for source in ('folder', 'tfds', 'shards'):
        config.data.source = source
        with pytest.raises(UserError):  # there is no such data
            data.create_source(config, 'train')
    config.data.update(source='digits', pipeline='host', holdout=100, eval_split='holdout')
    data.create_pipelines(config, sharding.create_mesh(config))
    config.model.update(family='vgg', depth=16)
    models.create(config.model)
    xla_flags.use(config.xla_preset)

    def unread(section, prefix=''):
        for key in section:
            value = getitem(section, key)
            if isinstance(value, ConfigDict):
                yield from unread(value, f'{prefix}{key}.')
            elif (id(section), key) not in reads:
                yield prefix + key

    assert list(unread(config)) == []
    assert list((tmp_path / 'profile').rglob('*.trace.json.gz')) != []


@pytest.mark.parametrize(('fields', 'sentence'), [
    ({'batch_size': None}, r'batch_size is not set; pass --config\.batch_size='),
    ({'num_steps': 0}, 'num_steps must be at least 1, got 0'),
    ({'model.virtual_batch_size': 48}, 'virtual_batch_size=48 must divide the 64 images'),
    ({'optimizer.accumulation_steps': 3},
     r'batch_size=64 must be a multiple of 3, .* \(1\) times optimizer.accumulation_steps \(3\)'),
    ({'mesh.data': 8, 'batch_size': 68},
     'batch_size=68 must be a multiple of 8, the number of data-parallel devices'),
    ({'mesh.data': 8, 'eval.batch_size': 300}, 'eval.batch_size=300 must be a multiple of 8'),
    ({'optimizer.ema_decay': 1.0}, 'optimizer.ema_decay must be at least 0 and below 1'),
    ({'seed': 99999999999999999999}, r'seed must be from 0 to 2\*\*32 - 1, got 9999999999'),
    ({'seed': -1}, 'seed must be from 0'),
    ({'loss.label_smoothing': 1.0}, 'loss.label_smoothing must be at least 0 and below 1'),
    ({'optimizer.momentum': 1.5}, 'optimizer.momentum must be at least 0 and below 1'),
    ({'schedule.factor': 1.5}, 'schedule.factor must be at least 0 and below 1'),
    ({'schedule.boundaries': ('a', 'b')}, 'schedule.boundaries must be numbers of steps'),
    ({'optimizer.weight_decay': -1.0}, 'optimizer.weight_decay must be at least 0'),
    ({'mesh.rules': (('head',),)}, 'mesh.rules must be pairs'),
    ({'mesh.rules': (('head(', ('data',)),)}, 'mesh.rules must be pairs'),
    ({'model.depth': 21}, r'6n \+ 2 .* the nearest is 20'),
    ({'model.num_classes': 7}, 'the data has 10 classes, and model.num_classes is 7'),
    ({'data.channels': 3}, 'digits has images of shape'),
    ({'data.source': 'mnist'}, 'data.source must be'),
    ({'data.normalization': 'pixels'}, 'data.normalization must be'),
    ({'steps_per_call': 0}, 'steps_per_call must be at least 1, got 0'),
    ({'model.remat': 'all'}, 'model.remat must be one of none, conv, block'),
    ({'model.stem_space_to_depth': True}, 'stem_space_to_depth is for the imagenet family only'),
    ({'model.family': 'vgg', 'model.depth': 16}, 'VGG needs images of at least 224 pixels'),
])
def test_mistakes_are_named_before_anything_is_compiled(tiny_config, fields, sentence):
    tiny_config.update_from_flattened_dict(fields)
    with pytest.raises(UserError, match=sentence):
        build(tiny_config, sharding.create_mesh(tiny_config))


@pytest.mark.parametrize('number', [float('nan'), float('inf')])
def test_every_field_of_floats_must_be_finite(number):
    fields = config_lib.leaves(load('digits_r20'))
    config_lib.check_ranges(fields)
    floats = [name for name, value in fields.items()
              if any(isinstance(part, float) for part in (
                  value if isinstance(value, list) else [value]))]
    assert len(floats) > 20 and {'schedule.learning_rate', 'data.crop_scale'} <= set(floats)
    for name in floats:
        wrong = [0.5, number] if isinstance(fields[name], list) else number
        with pytest.raises(UserError, match=f'{name} must be finite'):
            config_lib.check_ranges(fields | {name: wrong})


@given(st.sampled_from(sorted(config_lib.leaves(load('digits_r20')))))
def test_a_run_goes_on_unless_a_field_changes_what_it_computes(name):
    config = load('cifar10')
    config.optimizer.ema_decay = 0.999  # without it, the field of its warm-up means nothing
    stored = json.loads(json.dumps(config_lib.leaves(config)))
    assert config_lib.differences(config, stored) == []
    stored[name] = 'other'
    free = any(name == field or name.startswith(field + '.')
               for field in config_lib.EXECUTION_FIELDS)
    assert bool(config_lib.differences(config, stored)) != free
