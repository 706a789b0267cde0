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
from resnet_jax.config import checks, fields
from resnet_jax.distributed import sharding
from resnet_jax.errors import UserError
from resnet_jax.training import loop, optimizers, schedules, workdir
from resnet_jax.training.costs import summarize
from resnet_jax.training.program import build
from resnet_jax.xla import flags as xla_flags

CONFIGS = sorted(pathlib.Path(__file__).parent.parent.glob('configs/*.py'))


def load(name):
    return runpy.run_path(str(CONFIGS[0].parent / f'{name}.py'))['get_config']()


# What configs leave to the data and to the weights that they start from.
OWN_IMAGES = {'model.num_classes': 5, 'data.image_size': 64, 'batch_size': 64, 'num_steps': 100,
              'eval.batch_size': 64, 'schedule.learning_rate': 0.05, 'schedule.warmup_steps': 5}
FROM_ELSEWHERE = {'folder': OWN_IMAGES, 'bccd_r18': {'model.num_classes': 3},
                  'finetune': OWN_IMAGES | {'model.depth': 50},
                  'imagenette_finetune': {'model.num_classes': 10, 'model.depth': 50}}


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_complete_and_says_how_to_run_it(path):
    config = load(path.stem)
    config.update_from_flattened_dict(FROM_ELSEWHERE.get(path.stem, {}))
    for data_shards in (1, 8, 16):
        config_lib.check(config, data_shards)
    models.create(config.model)
    optimizers.create(config)
    schedules.create(config)
    command = (r'python -m (resnet_jax\.main|experiments\.\w+) '
               rf'--config=configs/{path.stem}\.py[:\s]')
    assert re.search(command, runpy.run_path(str(path))['__doc__'])


def test_the_summary_does_not_depend_on_how_the_network_is_executed():
    config = load('imagenet_r18')
    expected = summarize(config)
    config.model.update(remat='block', unroll=False)
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


@pytest.mark.slow
def test_every_field_is_read_somewhere(tiny_config, tmp_path, monkeypatch):
    # These look at every field by design, so they would hide one that nothing else reads.
    monkeypatch.setattr(config_lib, 'check', lambda *_: None)
    monkeypatch.setattr(config_lib, 'given', lambda _: {})
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
    config.loss.name = 'binary'
    config.eval.recalibrate_batches = 1
    config.profile.update(start_step=1, num_steps=1)
    config.checkpoint.every_steps = None
    loop.train(config, tmp_path)
    for name in ('lars', 'adamax'):
        config.optimizer.name = name
        optimizers.create(config)
    config.num_steps = 200
    for name, warmup in (('plateau', 'error'), ('cosine', 'linear'), ('steps', 'none')):
        config.schedule.update(name=name, warmup=warmup, plateau_window=1)
        schedules.create(config)
    for source in ('folder', 'tfds', 'shards', 'voc', 'coco'):
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


@pytest.mark.parametrize(('changed', 'sentence'), [
    ({'batch_size': None}, r'batch_size is not set; pass --config\.batch_size='),
    ({'num_steps': 0}, 'num_steps must be at least 1, got 0'),
    ({'model.virtual_batch_size': 48}, 'virtual_batch_size=48 must divide the 64 images'),
    ({'optimizer.accumulation_steps': 3},
     r'batch_size=64 must be a multiple of 3, .* \(1\) times optimizer.accumulation_steps \(3\)'),
    ({'mesh.data': 8, 'batch_size': 68},
     'batch_size=68 must be a multiple of 8, the number of data-parallel devices'),
    ({'mesh.data': 8, 'eval.batch_size': 300}, 'eval.batch_size=300 must be a multiple of 8'),
    ({'optimizer.ema_decay': 1.0}, 'optimizer.ema_decay must be at least 0 and below 1'),
    ({'seed': 99999999999999999999}, 'seed must be at most 4294967295, got 9999999999'),
    ({'num_steps': 2**31}, 'num_steps must be at most 2147483647, got 2147483648'),
    ({'eval.batch_size': 10**9}, 'eval.batch_size must be at most 1048576, got 1000000000'),
    ({'loss.label_smoothing': 1.0}, 'loss.label_smoothing must be at least 0 and below 1'),
    ({'optimizer.momentum': 1.5}, 'optimizer.momentum must be at least 0 and below 1'),
    ({'schedule.factor': 1.5}, 'schedule.factor must be at least 0 and below 1'),
    ({'loss.target_threshold': 0.2}, "loss.target_threshold needs loss.name 'binary'"),
    ({'data.eval_resize': 9, 'data.eval_crop_share': 0.9}, 'eval_crop_share cannot both be set'),
    ({'data.eval_size': 12, 'data.normalization': 'per_pixel_mean'},
     'data.image_size=8 must be data.eval_size=12'),
    ({'optimizer.name': 'adamxx'}, r'one of sgd, lars, lamb, adamw, .* Did you mean adamax'),
    ({'optimizer.name': 'lbfgs'}, 'optimizer.name=lbfgs .* cannot be used: '),
    ({'optimizer.name': 'adamax', 'optimizer.arguments': (('beta', 0.9),)},
     "adamax has no argument 'beta'; it takes b1, b2, eps"),
    ({'optimizer.arguments': (('b1', 0.9),)}, "sgd has no argument 'b1'; it takes no arguments"),
    ({'optimizer.name': 'lamb', 'optimizer.arguments': (('b1', 'x'),)},
     'optimizer.name=lamb .* cannot be used: '),
    ({'optimizer.name': 'adamaxw', 'optimizer.arguments': (('b1', 2.0, 3),)},
     'optimizer.arguments must be pairs of a name and a value'),
    ({'schedule.boundaries': ('a', 'b')}, 'schedule.boundaries must be numbers of steps'),
    ({'schedule.boundaries': (5, 3)}, 'numbers of steps in ascending order, got'),
    ({'schedule.name': 'plateau'}, 'schedule.plateau_window must be set'),
    ({'schedule.name': 'cosine', 'schedule.warmup': 'linear', 'schedule.warmup_steps': 20},
     r'schedule.warmup_steps \(20\) must be below num_steps \(20\)'),
    ({'optimizer.weight_decay': -1.0}, 'optimizer.weight_decay must be at least 0'),
    ({'mesh.rules': (('head',),)}, 'mesh.rules must be pairs'),
    ({'mesh.rules': (('head(', ('data',)),)}, 'mesh.rules must be pairs'),
    ({'model.depth': 21}, r'6n \+ 2 .* the nearest is 20'),
    ({'model.num_classes': 7}, 'digits has 10 classes, but model.num_classes is 7'),
    ({'data.channels': 3}, 'digits has images of shape'),
    ({'data.source': 'mnist'}, 'data.source must be'),
    ({'data.normalization': 'pixels'}, 'data.normalization must be'),
    ({'steps_per_call': 0}, 'steps_per_call must be at least 1, got 0'),
    ({'model.remat': 'all'}, 'model.remat must be one of none, conv, block'),
    ({'model.family': 'vgg', 'model.depth': 16}, 'VGG needs images of at least 224 pixels'),
])
def test_mistakes_are_named_before_anything_is_compiled(tiny_config, changed, sentence):
    tiny_config.update_from_flattened_dict(changed)
    with pytest.raises(UserError, match=sentence):
        build(tiny_config, sharding.create_mesh(tiny_config))


@pytest.mark.parametrize(('field', 'value', 'sentence'), [
    ('data', 0, 'mesh.data must be -1 or at least 1, got 0'),
    ('data', -2, 'mesh.data must be -1 or at least 1, got -2'),
    ('model', 0, 'mesh.model must be at least 1, got 0')])
def test_a_mesh_of_no_devices_is_refused_before_it_is_made(
        tiny_config, tmp_path, field, value, sentence):
    tiny_config.mesh[field] = value
    with pytest.raises(UserError, match=sentence):
        loop.train(tiny_config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


LEAVES = config_lib.leaves(load('digits_r20'))
FREE = {*fields.FREE, *fields.OF_MODELS, *fields.OF_DATA}


def test_every_field_has_a_range_or_is_free():
    ranges = {*fields.CHOICES, *fields.LEAST, *fields.SHARES, *fields.POSITIVE, *checks.FORMS}
    switches = {name for name, value in LEAVES.items() if isinstance(value, bool)}
    named = [*ranges, *FREE, *switches]
    assert sorted(named) == sorted(LEAVES)  # each once: those with an upper bound have a lower one
    assert set(fields.MOST) <= set(fields.LEAST)
    assert set(fields.OPTIONAL_FIELDS) <= set(named)


def below(bound):
    return st.integers(max_value=bound - 1) | st.floats(max_value=bound, exclude_max=True,
                                                        allow_infinity=False)


def above(bound):
    return st.integers(min_value=bound + 1) | st.floats(min_value=bound, exclude_min=True,
                                                        allow_infinity=False)


OUT_OF_RANGE = [
    *((name, st.text().filter(lambda value, known=known: value not in known))
      for name, known in fields.CHOICES.items()),
    *((name, below(least)) for name, least in fields.LEAST.items()),
    *((name, above(most)) for name, most in fields.MOST.items()),
    *((name, below(0) | above(1) | st.just(1)) for name in fields.SHARES),
    *((name, below(0) | st.just(0)) for name in fields.POSITIVE),
    ('mesh.data', below(-1) | st.just(0)),
    ('mesh.rules', st.sampled_from([[['head']], [['(', ['data']]], [['head', 'data']], ['head']])),
    ('schedule.boundaries', st.sampled_from([[2, 1], [1, 1], ['1'], [1.5]])),
    ('optimizer.arguments', st.sampled_from([['b1'], [['b1', 1, 2]], [[1, 2]], [['b 1', 2]]])),
    ('init.freeze', st.sampled_from([['('], [1]])),
]


@given(st.sampled_from(OUT_OF_RANGE).flatmap(
    lambda entry: st.tuples(st.just(entry[0]), entry[1])))
def test_a_value_out_of_its_range_is_refused_by_name(wrong):
    name, value = wrong
    config_lib.check_ranges(LEAVES)
    with pytest.raises(UserError) as refused:
        config_lib.check_ranges(LEAVES | {name: value})
    assert str(refused.value).startswith(f'{name} must be ')


@given(st.sampled_from(sorted(set(fields.LEAST) & set(fields.MOST))), st.booleans())
def test_the_bounds_themselves_are_allowed(name, most):
    config_lib.check_ranges(LEAVES | {name: (fields.MOST if most else fields.LEAST)[name]})


@pytest.mark.parametrize('number', [float('nan'), float('inf')])
def test_every_field_of_floats_must_be_finite(number):
    floats = [name for name, value in LEAVES.items()
              if any(isinstance(part, float) for part in (
                  value if isinstance(value, list) else [value]))]
    assert len(floats) > 15 and {'schedule.learning_rate', 'data.crop_scale'} <= set(floats)
    for name in floats:
        wrong = [0.5, number] if isinstance(LEAVES[name], list) else number
        with pytest.raises(UserError, match=f'{name} must be finite'):
            config_lib.check_ranges(LEAVES | {name: wrong})


@given(st.sampled_from(sorted(LEAVES)))
def test_a_run_goes_on_unless_a_field_changes_what_it_computes(name):
    config = load('cifar10')
    # Without these, others mean nothing.
    config.optimizer.ema_decay, config.data.randaugment_layers = 0.999, 2
    config.model.detector.masks = True
    stored = json.loads(json.dumps(config_lib.leaves(config)))
    assert config_lib.differences(config, stored) == []
    stored[name] = 'other'
    free = any(name == field or name.startswith(field + '.')
               for field in config_lib.EXECUTION_FIELDS)
    assert bool(config_lib.differences(config, stored)) != free
