"""configs/imagenet_pod.py: what it derives, against numbers worked out by hand."""

import types

import pytest

from configs import imagenet_pod, imagenet_r152
from resnet_jax import cli
from resnet_jax.config import check, derived_table, leaves
from resnet_jax.distributed import sharding
from resnet_jax.errors import UserError
from resnet_jax.training import accumulation, loop
from resnet_jax.training.program import build
from resnet_jax.xla import topologies
from tests import tiny

FIELDS = ('batch_size', 'model.virtual_batch_size', 'schedule.learning_rate',
          'schedule.warmup_steps', 'num_steps', 'schedule.plateau_window', 'eval.every_steps',
          'eval.recalibrate_batches', 'checkpoint.every_steps')
# 128 or 256 images per device, at most 4,096: 2048 = 8 x 256 and 4096 = 16 x 256. Warm-up:
# 5 x 1,281,167 / 2048 = 3,127.8 and half of that. The rest is 600,000, 5,000, 10,000 and 1,000
# steps, over 8 or 16, and checkpoints come at measured times.
V5E_16 = (2048, 32, 0.8, 3128, 75_000, 625, 1250, 125, 0)
V5E_256 = (4096, 16, 1.6, 1564, 37_500, 313, 625, 63, 0)
H100_16 = (4096, 32, 1.6, 1564, 37_500, 313, 625, 63, 0)
# 4 x 4 chips are 16. 2 x 16 chips have 128 images each, and 2 x 256 have 8.
TWO_V5E_16 = (4096, 32, 1.6, 1564, 37_500, 313, 625, 63, 0)
TWO_V5E_256 = (4096, 8, 1.6, 1564, 37_500, 313, 625, 63, 0)


@pytest.mark.parametrize('depth', [50, 152])
@pytest.mark.parametrize(('devices', 'topology', 'expected'), [
    ('v5e-16', 'v5e:4x4', V5E_16), ('v5e-256', 'v5e:16x16', V5E_256),
    ('h100-16', 'h100:16', H100_16), ('4*v5e-4', 'v5e:4*2x2', V5E_16),
    ('2*v5e-16', 'v5e:2*4x4', TWO_V5E_16), ('2*v5e-256', 'v5e:2*16x16', TWO_V5E_256)])
def test_everything_follows_from_the_depth_and_the_devices(depth, devices, topology, expected):
    config = imagenet_pod.get_config(f'r{depth},{devices}')
    fields = leaves(config)
    assert tuple(fields[name] for name in FIELDS) == pytest.approx(expected)
    assert (config.model.depth, config.topology) == (depth, topology)
    assert config.optimizer.name == 'sgd' and config.schedule.warmup_from == 0.1
    count = topologies.describe(topology).count
    check(config, count)
    assert accumulation.spanning(config, count) is None


def test_beyond_8192_images_lars_takes_over():
    assert imagenet_pod.get_config('r50,v5e-256,8192').optimizer.name == 'sgd'
    config = imagenet_pod.get_config('r50,v5e-256,32768')
    assert (config.optimizer.name, config.schedule.learning_rate) == ('lars', 32.0)
    assert config.schedule.warmup_steps == 547  # 14 epochs: 14 x 1,281,167 / 32,768 = 547.4


def test_a_batch_is_that_of_all_slices():
    config = imagenet_pod.get_config('r50,2*v5e-16,2048')  # 64 images for each of 32 chips
    fields = leaves(config)
    assert tuple(fields[name] for name in FIELDS) == pytest.approx(V5E_16)
    # 64 slices of 256 chips are 16,384 chips, of which each has one image; 5 epochs of LARS:
    # 5 x 1,281,167 / 16,384 = 391.0.
    config = imagenet_pod.get_config('r50,64*v5e-256')
    assert (config.batch_size, config.schedule.warmup_steps) == (16_384, 391)
    assert ('batch_size', 16_384, 'one per chip') in config.derived


def test_256_images_are_the_recipe_of_the_paper():
    fields = leaves(imagenet_pod.get_config('r50,v5e-4,256'))
    assert tuple(fields[name] for name in FIELDS) == (
        256, 32, 0.1, 0, 600_000, 5000, 10_000, 1000, 0)
    assert fields['schedule.warmup'] == 'none'


@pytest.mark.parametrize(('argument', 'sentence'), [
    ('r151,v5e-16', 'there is no r151: the depths are 18, 34, 50, 101, 152'),
    ('r50,v5e-3', 'no slice v5e-3: the number of chips must be a power of two from 4 to 256'),
    ('r50,v9-16', "no accelerator 'v9'; known are v3, v4, v5e"),
    ('r50,h100-12', 'must be a multiple of 8'),
    ('r50,0*v5e-16', r'number of slices must be at least 1; got 0\*v5e-16'),
    ('r50,2*v5e-3', 'no slice v5e-3: the number of chips must be a power of two from 4 to 256'),
    ('r50,2*h100-16', r'no slices of GPUs: give .* h100-32, instead of 2\*h100-16'),
    ('r50,2*v5e-16,100', 'cannot be divided among 32 devices; the nearest are 96 and 128'),
    ('2*r50,v5e-16', r'imagenet_pod takes DEPTH,DEVICES or .* r152,2\*v5e-256 for two slices'),
    ('r50,v5e-16,100', 'cannot be divided among 16 devices; the nearest are 96 and 112'),
    ('r50,v5e-16,8', r'a batch of 8 cannot .* 16 devices; the smallest is 16\.'),
    ('r50,v5e-16,0', r'a batch of 0 cannot .* 16 devices; the smallest is 16\.'),
    ('r50,h100-0', 'number of GPUs must be at least 1; got h100-0'),
    ('r152,v5litepod-256', 'what Google Cloud calls v5litepod-256 is called v5e-256 here'),
    ('r50', 'imagenet_pod takes DEPTH,DEVICES or')])
def test_a_wrong_argument_is_one_sentence(argument, sentence):
    with pytest.raises(UserError, match=sentence):
        cli.read_config([f'--config=configs/imagenet_pod.py:{argument}'])


def test_a_wrong_argument_ends_the_command_in_one_line(commands):
    process = commands.run('resnet_jax.main', '--config=configs/imagenet_pod.py:r50,v5e-3')
    assert process.status == 1
    assert process.errors.startswith('error: there is no slice v5e-3')
    assert process.errors.count('\n') == 1


def test_the_table_says_where_each_value_comes_from_and_what_a_flag_has_changed():
    config = imagenet_pod.get_config('r152,v5e-256')
    lines = derived_table(config).splitlines()
    assert [line.split()[0] for line in lines] == [field for field, *_ in config.derived]
    assert set(FIELDS) <= {line.split()[0] for line in lines}
    assert lines[0].split(maxsplit=2) == ['topology', 'v5e:16x16', '256 chips']
    assert lines[5].split(maxsplit=2) == [
        'schedule.learning_rate', '1.6', '0.1 per 256 images, Goyal et al., section 2.1']
    config.schedule.learning_rate = 2.0
    changed = derived_table(config).splitlines()
    assert changed[5].split(maxsplit=2) == [
        'schedule.learning_rate', '2', 'set by a flag; derived: 1.6']
    assert len(changed) == len(lines) + 1
    assert changed[-1].startswith('note: fields set by a flag change no other field')
    assert derived_table(tiny.config()) == ''
    lines = derived_table(imagenet_pod.get_config('r152,2*v5e-256')).splitlines()
    assert lines[:2] == [
        'topology                    v5e:2*16x16  512 chips: 2 slices of v5e-256',
        'batch_size                        4,096  at most 128 per chip and 4,096 in all']


def test_the_batch_alone_lets_virtual_batches_span_chips_and_the_warning_says_what_would_not():
    config = imagenet_r152.get_config()
    config.batch_size = 4096
    assert '--config.model.virtual_batch_size=16 would avoid this' in accumulation.spanning(
        config, 256)


def test_main_warns_of_virtual_batches_that_span_devices(capsys):
    config = tiny.config()
    config.mesh.data, config.model.virtual_batch_size = 8, 32
    program = build(config, sharding.create_mesh(config))
    loop.Run._announce(types.SimpleNamespace(program=program, config=config))
    errors = capsys.readouterr().err
    assert errors.startswith('warning: batch-norm statistics are taken over 32 images')
    assert 'virtual_batch_size=8' in errors and errors.count('\n') == 1


def test_a_run_on_other_devices_than_those_of_the_config_is_warned_of():
    assert topologies.difference('v5e:16x16', 256) is None
    assert topologies.difference('v3:2x2', 8) is None  # JAX sees two devices in a chip
    assert topologies.difference('v5e:16x16', 1) == (
        'the config is for 256 chips (v5e:16x16), but this run has 1; the batch stays the same. To '
        'derive another one, name the devices of this run in the argument of --config.')


def test_main_warns_of_other_devices_before_it_looks_for_the_data(commands, tmp_path):
    process = commands.run(
        'resnet_jax.main', '--config=configs/imagenet_pod.py:r152,v5e-256',
        '--config.data.source=shards', f'--config.data.path={tmp_path}',
        f'--workdir={tmp_path}/run')
    assert process.status == 1
    warning, error = process.errors.splitlines()
    assert warning.startswith('warning: the config is for 256 chips (v5e:16x16), but this run has')
    assert error.startswith('error: ') and 'holds no prepared split' in error
