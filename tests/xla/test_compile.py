"""Compiling for devices that are not there, and what the compiled step is found to cost."""

import dataclasses
import importlib.util
import json
import re

import jax
import numpy as np
import pytest

from configs import imagenet_r50
from resnet_jax import data
from resnet_jax.distributed import sharding
from resnet_jax.errors import UserError
from resnet_jax.training import compiled
from resnet_jax.training.costs import summarize
from resnet_jax.training.program import build
from resnet_jax.xla import hlo, networks, topologies
from tests import tiny, xla_options

PARAMETERS = 19_218


def host_config():
    """The tiny network on colour images of a folder that is not there."""
    config = tiny.config()
    config.mesh.data = -1
    config.data.source = 'folder'
    config.data.path = '/nowhere'
    config.data.pipeline = 'host'
    config.data.image_size = 16
    config.data.channels = 3
    config.eval.batch_size = 64
    return config


@pytest.fixture(scope='module')
def cpus():
    return topologies.create('cpu:8')


@pytest.fixture(scope='module')
def replicated(cpus):
    return compiled.report(host_config(), cpus)


def test_sizes_are_those_of_the_network(replicated):
    assert replicated['parameters'] == summarize(host_config())['parameters'] == PARAMETERS
    assert replicated['devices'] == 8 and replicated['fits']
    # Parameters, momentum and batch statistics in float32, 8 images of bytes, and small change.
    memory = replicated['memory']
    assert memory['arguments'] == pytest.approx(2 * 4 * PARAMETERS + 8 * 16 * 16 * 3, rel=0.05)
    assert memory['outputs'] < 1000  # the state is donated
    assert memory['temporaries'] > memory['arguments']
    assert memory['total'] == sum(memory[name] for name in (
        'arguments', 'outputs', 'temporaries', 'code')) < memory['capacity']


def test_flops_of_a_step_are_three_forward_passes_over_the_batch(replicated):
    forward = 2 * 64 * summarize(host_config())['multiply_adds']
    assert replicated['model_flops'] == 3 * forward
    # XLA leaves out the products with padding and the gradient of the images, and counts sums.
    assert replicated['flops'] == pytest.approx(3 * forward, rel=0.15)
    assert replicated['bytes'] > 8 * replicated['memory']['arguments']


def test_gradients_are_added_up_in_one_go_and_batch_statistics_not_at_all(replicated):
    assert set(replicated['collectives']) == {'all-reduce'}
    total = replicated['collectives']['all-reduce']
    assert total['count'] == 1
    assert 4 * PARAMETERS < total['bytes'] < 4 * PARAMETERS * 1.05
    assert replicated['notes'] == []


@pytest.mark.slow
def test_virtual_batches_that_span_devices_communicate_in_every_layer(replicated, cpus):
    config = host_config()
    config.model.virtual_batch_size = 64
    spanning = compiled.report(config, cpus)
    count = spanning['collectives']['all-reduce']['count']
    # Seven layers of batch normalisation, forward and backward, and the gradients.
    assert count >= 2 * 7 + 1
    assert 'virtual_batch_size=8 would avoid this' in spanning['notes'][0]


def test_fsdp_gathers_parameters_and_keeps_an_eighth(replicated, cpus):
    config = host_config()
    config.mesh.parameters = 'fsdp'
    split = compiled.report(config, cpus)
    gathered = split['collectives']['all-gather']
    assert gathered['count'] >= 7 and gathered['bytes'] > 0.9 * 4 * PARAMETERS
    # Of all the state, only what is smaller than 1024 numbers is whole everywhere.
    images = 8 * 16 * 16 * 3
    assert split['memory']['arguments'] - images < (
        replicated['memory']['arguments'] - images) / 4


@pytest.mark.slow
def test_loops_count_as_often_as_they_go_round(cpus):
    config = host_config()
    config.model.depth, config.model.unroll = 26, False  # 3 of the 4 blocks of a stage are scanned
    scanned = compiled.report(config, cpus)
    assert scanned['flops'] == pytest.approx(scanned['model_flops'], rel=0.15)
    # Gradients and running statistics of a scanned block are added up when its turn is done, those
    # of three stages and three turns; those of all other layers together.
    assert scanned['collectives']['all-reduce']['count'] == 2 * 3 * 3 + 1


def test_of_several_steps_a_call_the_costs_are_those_of_one(replicated, cpus):
    config = host_config()
    config.steps_per_call = 3
    several = compiled.report(config, cpus)
    assert several['collectives'] == replicated['collectives']
    for name in ('flops', 'bytes'):
        assert several[name] == pytest.approx(replicated[name], rel=0.1), name
    # The images of two more steps, and the reports.
    assert several['memory']['arguments'] - replicated['memory']['arguments'] == pytest.approx(
        2 * 8 * 16 * 16 * 3, abs=200)


@pytest.mark.slow
def test_images_on_the_devices_need_no_communication(cpus):
    config = tiny.config()
    config.mesh.data = -1
    report = compiled.report(config, cpus)
    assert set(report['collectives']) == {'all-reduce'}
    assert report['collectives']['all-reduce']['count'] == 1  # of the gradients


MODULE = '''\
HloModule example, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %s = f32[] add(%x, %y)
}

%body (state: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %state = (s32[], f32[4,8]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %a = f32[4,8]{1,0} get-tuple-element(%state), index=1
  %w = f32[8,8]{1,0} constant({...})
  %dot = f32[4,8]{1,0} dot(%a, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %sum = f32[4,8]{1,0} all-reduce(%dot), replica_groups={{0,1}}, to_apply=%add
  ROOT %next = (s32[], f32[4,8]{1,0}) tuple(%i, %sum)
}

%condition (state.1: (s32[], f32[4,8])) -> pred[] {
  %state.1 = (s32[], f32[4,8]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %bound = s32[] constant(5)
  ROOT %less = pred[] compare(%i.1, %bound), direction=LT
}

ENTRY %main (p: f32[4,8], q: bf16[16]) -> f32[4,8] {
  %p = f32[4,8]{1,0} parameter(0)
  %q = bf16[16]{0:T(256)(128)(2,1)S(1)} parameter(1)
  %start = (bf16[16]{0}, bf16[32]{0}) all-gather-start(%q), dimensions={0}
  %zero = s32[] constant(0)
  %first = (s32[], f32[4,8]{1,0}) tuple(%zero, %p)
  %loop = (s32[], f32[4,8]{1,0}, /*index=2*/f32[]) while(%first), condition=%condition, body=%body
  %both = (f32[2]{0}, f32[3]{0}) all-reduce(%p, %p), to_apply=%add, metadata={op_name="f(x)"}
  %all = bf16[32]{0} all-gather-done(%start)
  %conv = f32[4,8]{1,0} convolution(%p, %all), dim_labels=bf_io->bf
  ROOT %result = f32[4,8]{1,0} get-tuple-element(%loop), index=1
}
'''


def test_kernels_are_what_runs_by_itself_with_the_bytes_in_and_out_of_it():
    counted = {instruction.name: (moved, times)
               for instruction, moved, times in hlo.kernels(hlo.parse(MODULE))}
    # A matrix [4, 8] of float32 takes 128 bytes, one of [8, 8] 256.
    assert counted['dot'] == (128 + 256 + 128, 5) and counted['sum'] == (2 * 128, 5)
    assert counted['both'] == (4 * (2 + 3) + 2 * 128, 1)
    assert 's' not in counted  # how an all-reduce adds
    assert 'loop' not in counted and 'p' not in counted


def test_collectives_are_read_from_loops_tuples_and_asynchronous_pairs():
    module = hlo.parse(MODULE)
    assert module.entry == 'main' and module.open_loops == 0
    assert module.runs['main'] == 1 and module.runs['body'] == 5
    assert hlo.collectives(module) == {
        'all-reduce': {'count': 5 + 1, 'bytes': 5 * 4 * 8 * 4 + (2 + 3) * 4},
        'all-gather': {'count': 1, 'bytes': 32 * 2}}


SLICES = '''\
HloModule slices

ENTRY %main (g: f32[256,256]) -> f32[256,256] {
  %g = f32[256,256]{1,0} parameter(0)
  %part = f32[64,256]{1,0} reduce-scatter(%g), replica_groups={{0,1,2,3}}, dimensions={0}
  %after = token[] after-all()
  %send = (f32[16,8,128]{2,1,0}, u32[], token[]) send(%part, %after), is_host_transfer=true, \
frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv = (f32[16,8,128]{2,1,0}, u32[], token[]) recv(%after), is_host_transfer=true, \
frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %done = (f32[16,8,128]{2,1,0}, token[]) recv-done(%recv), is_host_transfer=true
  %sum = f32[64,256]{1,0} get-tuple-element(%done), index=0
  ROOT %all = f32[256,256]{1,0} all-gather(%sum), replica_groups={{0,1,2,3}}, dimensions={0}
}
'''


def test_what_crosses_slices_is_told_from_what_stays_in_one():
    """As libtpu 0.0.42 compiles the sum of 256 KiB over two slices of four chips."""
    found = hlo.collectives(hlo.parse(SLICES))
    assert found == {
        'reduce-scatter': {'count': 1, 'bytes': 2**16}, 'all-gather': {'count': 1, 'bytes': 2**18},
        'all-reduce (DCN)': {'count': 1, 'bytes': 2**16}}
    # As an all-reduce over all of them takes by the formula, but for the latencies.
    levels = [dataclasses.replace(level, latency=0.0)
              for level in topologies.describe('v5e:2*2x2').network]
    assert networks.total_seconds(found, levels) == pytest.approx(
        networks.seconds('all-reduce', 1, 2**18, levels))


def test_names_of_collectives_of_any_length_keep_the_columns():
    result = {'topology': 'v5e:2*2x2', 'device': 'chip', 'devices': 8, 'parameters': 1,
              'compile_seconds': None, 'fits': True, 'memory': dict.fromkeys((
                  'arguments', 'outputs', 'temporaries', 'code', 'total', 'capacity'), 2**20),
              'collectives': {name: {'count': 2, 'bytes': 1_000_000}
                              for name in ('all-reduce', 'reduce-scatter (DCN)')},
              'flops': 1, 'model_flops': 1, 'bytes': 1, 'mfu': None,
              'communication_seconds': None, 'notes': []}
    lines = compiled.table(result).splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith('collectives'))
    assert len({len(line) for line in lines[first:first + 3]}) == 1
    assert lines[first + 2].split()[-2:] == ['2', '1,000,000']


def test_loops_of_unknown_length_are_counted_once_and_told():
    module = hlo.parse(MODULE.replace('constant(5)', 'parameter(1)'))
    assert module.open_loops == 1 and module.runs['body'] == 1


def test_loops_multiply_what_lies_in_them():
    text = '\n'.join(line for line in MODULE.splitlines() if 'convolution' not in line)
    assert hlo.loop_factors(hlo.parse(text))[0] == 5  # all products are in the loop
    # %dot: 4 * 8 * 8 multiply-adds, %conv: 4 * 8 * 32 / 8 with a kernel of 8 x 4 channels.
    text = MODULE.replace('bf16[32]', 'bf16[8,4]').replace('f32[4,8]{1,0} conv', 'f32[4,4] conv')
    assert hlo.loop_factors(hlo.parse(text))[0] == pytest.approx(
        (5 * 256 + 128) / (256 + 128))


@pytest.mark.parametrize(('shapes', 'attributes', 'count'), [
    # Two products [128 * 7, 84] x [84, 50 * 1024], as a TPU computes them.
    (('2,128,7,84,1', '2,50,84,1024,1', '2,128,7,50,1024'),
     'window={size=2x1x50 pad=0_0x0_0x49_49 lhs_dilate=2x1x1 rhs_reversal=0x0x1}, '
     'dim_labels=0b1f2_02io1->0b12f', 2 * (128 * 7) * 84 * (50 * 1024)),
    # 3x3 on 5x5 with padding: 3 rows of 5 have all 3 taps, the outer ones 2.
    (('4,5,5,8', '3,3,8,16', '4,5,5,16'),
     'window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f', 4 * 13 * 13 * 8 * 16),
    # Its gradient with stride 2: the zeros between the values are not counted.
    (('4,3,3,16', '3,3,8,16', '4,5,5,8'),
     'window={size=3x3 pad=1_1x1_1 lhs_dilate=2x2 rhs_reversal=1x1}, dim_labels=b01f_01oi->b01f',
     4 * 7 * 7 * 8 * 16)])
def test_padding_and_dilation_of_a_convolution_are_no_work(shapes, attributes, count):
    lhs, rhs, out = (f'f32[{shape}]' for shape in shapes)
    text = MODULE.replace('f32[4,8]{1,0} dot(%a, %w), lhs_contracting_dims={1}, '
                          'rhs_contracting_dims={0}', f'{out} convolution(%a, %w), {attributes}')
    text = text.replace('%a = f32[4,8]', f'%a = {lhs}').replace('%w = f32[8,8]', f'%w = {rhs}')
    text = text.replace('bf16[32]', 'bf16[8,4]').replace('f32[4,8]{1,0} conv', 'f32[4,4] conv')
    assert hlo.loop_factors(hlo.parse(text))[0] == pytest.approx(
        (5 * count + 128) / (count + 128), rel=1e-12)


@pytest.mark.parametrize('pipeline', ['resident', 'host'])
def test_the_shapes_compiled_for_are_those_of_real_batches(tiny_config, pipeline):
    tiny_config.mesh.data = 8
    tiny_config.data.pipeline = pipeline
    mesh = sharding.create_mesh(tiny_config)
    real = build(tiny_config, mesh)
    inputs = next(real.train_data.inputs(0))
    blank = build(tiny_config, mesh, blank=True)

    def described(tree):
        return jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype), x.sharding), tree)

    assert described(blank.train_data.input_shapes) == described(inputs)
    assert described(blank.state) == described(real.state)


def test_imagenet_and_cifar_are_not_needed():
    config = imagenet_r50.get_config()
    train, _, normalization = data.blank_pipelines(config, jax.make_mesh((8,), ('data',)))
    assert train.input_shapes['image'].shape == (256, 224, 224, 3)
    assert normalization['mean'].shape == (224, 224, 3)
    config.data.tfds_name, config.data.train_crop = 'cifar10', 'pad'
    config.data.image_size = config.data.eval_resize = 32
    config.data.holdout = 5000
    train, _, _ = data.blank_pipelines(config, jax.make_mesh((8,), ('data',)))
    assert train.input_shapes['image'].shape == (45_000, 32, 32, 3)


@pytest.mark.parametrize(('name', 'sentence'), [
    ('v5e', 'such as v5e:4x4'), ('v5e-16', 'the topology v5e-16 is written v5e:4x4'),
    ('2*v5e-16', r'the topology 2\*v5e-16 is written v5e:2\*4x4'),
    ('v9:2x2', "no topology 'v9:2x2': those of v3"),
    ('v5e:32x32', 'from 1 to 256 chips'), ('v4:4x4', 'has 3 dimensions'),
    ('v5e:3x4', 'must be even'), ('cpu:0', 'no topology'), ('cpu:64', 'started with 8')])
def test_a_topology_that_does_not_exist_is_named(name, sentence, monkeypatch, cpus):
    monkeypatch.setattr(topologies.importlib.util, 'find_spec', lambda name: True)
    with pytest.raises(UserError, match=sentence):
        topologies.create(name)


def test_without_libtpu_the_sentence_tells_how_to_get_it(monkeypatch):
    monkeypatch.setattr(topologies.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '.\[tpu\]'"):
        topologies.create('v5e:4x4')


@pytest.mark.parametrize(('message', 'gib'), [
    ('RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries '
     '(23.84G) exceeds available HBM (15.75G).', 23.84),
    ('RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. '
     'Used 33.94G of 15.75G hbm. Exceeded hbm capacity by 18.19G.', 33.94)])
def test_memory_that_a_tpu_does_not_have_is_told(cpus, monkeypatch, message, gib):
    def fail(lowered, compiler_options):
        raise jax.errors.JaxRuntimeError(message)

    monkeypatch.setattr(jax.stages.Lowered, 'compile', fail)
    result = compiled.report(host_config(), cpus)
    assert not result['fits']
    assert result['memory']['total'] == pytest.approx(gib * 2**30, rel=1e-4)
    assert result['memory']['arguments'] == pytest.approx(
        2 * 4 * PARAMETERS + 8 * 16 * 16 * 3, rel=0.05)
    assert re.search(rf'total +{int(gib * 1024):,}', compiled.table(result))
    with pytest.raises(UserError, match=f'needs {gib} GiB per simulated device, but'):
        compiled.check_memory(result)


def test_other_failures_of_the_compiler_are_shown(cpus, monkeypatch):
    def fail(lowered, compiler_options):
        raise jax.errors.JaxRuntimeError('INTERNAL: something else')

    monkeypatch.setattr(jax.stages.Lowered, 'compile', fail)
    with pytest.raises(UserError, match=r'cannot compile the training step .* INTERNAL: something'):
        compiled.report(host_config(), cpus)


def test_a_batch_that_the_devices_do_not_divide_is_an_error(cpus):
    config = host_config()
    config.batch_size = 60
    with pytest.raises(UserError, match='batch_size=60 must be a multiple of 8'):
        compiled.report(config, cpus)


def test_the_roofline_is_the_slower_of_arithmetic_and_memory(replicated, cpus):
    for peak, bandwidth in ((1e12, 1e9), (1e9, 1e12)):
        chips = dataclasses.replace(cpus, peak=peak, bandwidth=bandwidth)
        result = compiled._roofline(replicated, chips, 64)
        slower = (replicated['bytes'] / 8 / bandwidth if peak > bandwidth
                  else replicated['flops'] / 8 / peak)
        assert result['roofline_seconds'] == pytest.approx(slower)
        assert result['mfu'] == pytest.approx(replicated['model_flops'] / slower / 8 / peak)


def test_the_command_prints_json(commands):
    process = commands.run(
        'resnet_jax.compile', '--topology=cpu:2', '--json', '--config=configs/digits_r20.py',
        '--config.model.depth=8', '--config.model.width=8',
        env={'XLA_FLAGS': ' '.join(xla_options.QUICK)})
    assert process.status == 0, process.errors
    printed = json.loads(process.output)
    assert printed['devices'] == 2 and printed['fits'] and printed['mfu'] is None
    assert set(printed['memory']) >= {'arguments', 'temporaries', 'code', 'capacity'}
    assert set(printed) >= {
        'parameters', 'devices', 'memory', 'fits', 'flops', 'bytes', 'collectives',
        'compile_seconds', 'roofline_seconds', 'mfu'}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None,
                    reason="libtpu is not installed: pip install -e '.[tpu]'")
def test_a_tpu_slice_is_compiled_for_without_a_tpu(replicated):
    result = compiled.report(host_config(), topologies.create('v5e:2x2'))
    assert result['devices'] == 4 and result['fits']
    assert result['parameters'] == replicated['parameters']
    assert result['memory']['capacity'] == 16 * 2**30
    assert result['collectives']['all-reduce']['count'] <= 2
    assert result['flops'] == pytest.approx(result['model_flops'], rel=0.25)
    assert 0 < result['mfu'] < 1 and result['roofline_seconds'] > 0


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None,
                    reason="libtpu is not installed: pip install -e '.[tpu]'")
def test_two_slices_are_compiled_for_and_only_gradients_cross_them():
    config, topology = host_config(), topologies.create('v5e:2*2x2')
    mesh = sharding.create_mesh(config, list(topology.devices))
    assert [device.slice_index for device in mesh.devices.flat] == [0] * 4 + [1] * 4
    result = compiled.report(config, topology)
    assert result['devices'] == 8 and result['fits']
    crossing = {kind: total for kind, total in result['collectives'].items() if 'DCN' in kind}
    assert list(crossing) == ['all-reduce (DCN)']
    # A chip sends its quarter of the gradients, in tiles of 4 KiB per array and little more.
    arrays = len(jax.tree.leaves(build(config, mesh, blank=True).state.params))
    assert PARAMETERS < crossing['all-reduce (DCN)']['bytes'] < PARAMETERS + 4096 * (arrays + 5)
    assert 'all-reduce (DCN)' in compiled.table(result)
    assert result['communication_seconds'] > crossing['all-reduce (DCN)']['bytes'] / 3.125e9


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec('jax_plugins') is None,
                    reason="JAX's plugin for CUDA is not installed: pip install -e '.[cuda]'")
def test_two_machines_of_gpus_are_compiled_for_without_a_gpu(commands):
    process = commands.run(
        'resnet_jax.compile', '--topology=h100:16', '--json', '--config=configs/digits_r20.py',
        '--config.model.depth=8', '--config.model.width=8', '--config.batch_size=64',
        '--config.model.virtual_batch_size=4')
    assert process.status == 0, process.errors
    result = json.loads(process.output)
    assert (result['devices'], result['device']) == (16, 'GPU') and result['notes']
    # Gradients, and statistics, losses and counts.
    assert 4 * result['parameters'] < result['collectives']['all-reduce']['bytes'] < (
        4.2 * result['parameters'])
    assert result['flops'] == result['model_flops'] and result['communication_seconds'] > 0


def test_the_topology_may_follow_from_the_config(commands):
    process = commands.run(
        'resnet_jax.compile', '--json', '--config=configs/digits_r20.py',
        '--config.topology=v9:2x2')
    assert process.errors.splitlines()[-1].startswith("error: there is no topology 'v9:2x2'")
    process = commands.run('resnet_jax.compile', '--config=configs/digits_r20.py')
    assert process.errors.startswith('error: give --topology=NAME, for example: python -m')
