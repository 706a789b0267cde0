"""Times the training step of a config and PyTorch's, on the same machine in the same run.

    python experiments/benchmarks/train_step.py --config=configs/cifar10_r20.py --json=result.json
    python experiments/benchmarks/train_step.py --config=configs/cifar10_r20.py \
        --variant=model.unroll=False --variant=model.virtual_batch_size=none

Images are synthetic and reside on the device, so that only the step is measured, not the input
pipeline. This program's step includes sampling, cropping and flipping its images; PyTorch gets the
same batch again and again. PyTorch's network is torchvision's if installed and available there, and
our own PyTorch version otherwise, in channels-last layout and, if the config computes in bfloat16,
under autocast; its batch normalisation is over the whole batch. The baseline is the fastest PyTorch
variant.

MFU: two operations per multiply-add of convolutions and dense layers, with the backward pass
counting twice the forward pass, over the device's published bfloat16 peak. Bytes per image: bytes
accessed according to XLA. Peak memory: the largest allocation on an accelerator, and the peak
resident memory of the process on CPU.
"""

import contextlib
import copy
import importlib.util
import json
import resource
import shutil

import turns
from absl import flags

from resnet_jax import cli
from resnet_jax.config import leaves
from resnet_jax.distributed.cores import available_cores
from resnet_jax.errors import UserError

CONFIG = cli.config_flag()
VARIANT = flags.DEFINE_multi_string(
    'variant', [], 'Also time this program with these fields changed, as in '
    '--variant=model.unroll=False,model.depth=20.')
PYTORCH = flags.DEFINE_bool('pytorch', True, 'Also time PyTorch, if it is installed.')
REPEATS = flags.DEFINE_integer('repeats', 5, 'Timed passes of each contender.', 1)
STEPS = flags.DEFINE_integer('steps', 10, 'Steps per pass.', 1)
JSON = flags.DEFINE_string('json', '', 'File for the result.')

# Published peaks in bfloat16 without sparsity, FLOPs a second, by a part of the device's name.
PEAKS = {'H100 80GB HBM3': 989e12, 'H200': 989e12, 'A100': 312e12, 'TPU v4': 275e12,
         'TPU v5 lite': 197e12, 'TPU v5p': 459e12, 'TPU v6 lite': 918e12}
OURS = 'this program'


def this_program(config_json: str):
    """The compiled step of this program; see `turns.take_turns`."""
    from ml_collections import ConfigDict

    from resnet_jax.xla import flags as xla_flags

    config = ConfigDict(json.loads(config_json))
    xla_flags.use(config.xla_preset)
    import jax

    from resnet_jax.distributed import sharding
    from resnet_jax.training.costs import summarize
    from resnet_jax.training.program import build
    from resnet_jax.xla import compilation_cache, cpu

    cpu.compute_in_main_thread()
    cpu.keep_memory()
    compilation_cache.use(config.compilation_cache)
    program = build(config, sharding.create_mesh(config))
    state, inputs = program.initial_state(), (next(program.train_data.inputs(0)),)
    call = program.lower_train_steps(state, inputs, config.steps_per_call).compile()
    device = program.mesh.devices.flat[0]
    images_a_call = config.batch_size * config.steps_per_call
    facts = {'device': device.device_kind, 'devices': program.mesh.size,
             'multiply_adds_an_image': summarize(config)['multiply_adds'],
             'bytes_an_image':
                 call.cost_analysis().get('bytes accessed', 0) / images_a_call or None}

    def steps(count: int) -> None:
        nonlocal state
        for _ in range(count // config.steps_per_call):
            state, report = call(state, inputs)
        jax.block_until_ready((state, report))

    def run(count: int) -> dict[str, float]:
        measured = turns.timed(lambda: steps(count))
        stats = device.memory_stats() or {}
        return measured | {'peak_bytes': stats.get('peak_bytes_in_use', _resident_bytes())}

    return facts, run


def pytorch(config_json: str, compiled: bool, num_threads: int):
    """The step in PyTorch; see `turns.take_turns`."""
    config = json.loads(config_json)
    network, name = _pytorch_network(config)
    if compiled and not shutil.which('g++') and not shutil.which('c++'):
        raise turns.NotRun('torch.compile needs a C++ compiler')
    import torch
    from torch.nn import functional

    from resnet_jax.data.sizes import pair

    torch.set_num_threads(num_threads)
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = True  # as JAX does by default
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    network = network.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        network.parameters(), 0.01, config['optimizer']['momentum'],
        weight_decay=config['optimizer']['weight_decay'])
    batch_size, size = config['batch_size'], config['data']['image_size']
    images = torch.randn(batch_size, config['data']['channels'], *pair(size), device=device).to(
        memory_format=torch.channels_last)
    labels = torch.randint(config['model']['num_classes'], (batch_size,), device=device)
    autocast = torch.autocast(device, torch.bfloat16,
                              enabled=config['model']['dtype'] == 'bfloat16')
    forward = torch.compile(network) if compiled else network

    def steps(count: int) -> None:
        for _ in range(count):
            with autocast:
                loss = functional.cross_entropy(forward(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if device == 'cuda':
            torch.cuda.synchronize()

    def run(count: int) -> dict[str, float]:
        measured = turns.timed(lambda: steps(count))
        return measured | {'peak_bytes': torch.cuda.max_memory_allocated() if device == 'cuda'
                           else _resident_bytes()}

    steps(2)
    return {'network': name, 'device': torch.cuda.get_device_name() if device == 'cuda'
            else 'cpu'}, run


def _pytorch_network(config: dict):
    """The network and where it comes from: torchvision where that has it."""
    if not importlib.util.find_spec('torch'):
        raise turns.NotRun(turns.NO_PYTORCH)
    model = config['model']
    import torch_twin

    if model['family'] not in torch_twin.FAMILIES or model['shortcut'] == 'D' or any(
            model[field] != value for field, value in torch_twin.WITHOUT.items()):
        raise turns.NotRun("the PyTorch twin has the paper's residual networks only")
    theirs = (model['family'] == 'imagenet' and model['shortcut'] == 'B' and not model['plain']
              and model['width'] == 64 and model['stem_width'] in (None, 64)
              and config['data']['channels'] == 3
              and (model['depth'] < 50 or model['stride_in'] == 'v1.5'))
    if theirs and importlib.util.find_spec('torchvision'):
        import torchvision

        name = f'resnet{model["depth"]}'
        return torchvision.models.get_model(name, num_classes=model['num_classes']), (
            f'torchvision {name}')
    return torch_twin.ResNet(model, config['data']['channels']), 'torch_twin.py'


def _resident_bytes() -> int:
    """The most of this process that was in memory at a time."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def variant(config, changes: str):
    """The config with some fields changed: 'model.unroll=False,model.depth=20'.

    Raises:
      UserError: there is no such field.
    """
    config = copy.deepcopy(config)
    values, now = {}, leaves(config)
    for change in changes.split(','):
        name, _, value = change.partition('=')
        values[name] = value
        if not isinstance(now.get(name), str):
            words = {'True': 'true', 'False': 'false', 'none': 'null'}
            with contextlib.suppress(json.JSONDecodeError):
                values[name] = json.loads(words.get(value, value))
    try:
        config.update_from_flattened_dict(values)
    except (KeyError, TypeError) as error:
        raise UserError(f'--variant={changes}: {error}') from error
    return config


def rows(outcomes: dict, batch_size: int) -> dict[str, dict]:
    """What the table and the JSON say of each contender."""
    run = {name: outcome for name, outcome in outcomes.items() if outcome.not_run is None}
    theirs = [name for name in run if not name.startswith(OURS)]
    baseline = min(theirs, key=lambda name: run[name].median('seconds'), default=None)
    made = {}
    for name, outcome in outcomes.items():
        if outcome.not_run is not None:
            made[name] = {'not_run': outcome.not_run}
            continue
        seconds = outcome.median('seconds')
        row = made[name] = {
            'images_per_second': batch_size / seconds, 'milliseconds': 1e3 * seconds,
            'processor_milliseconds': 1e3 * outcome.median('processor_seconds'),
            'peak_bytes': max(one['peak_bytes'] for one in outcome.passes), **outcome.facts,
            'passes_milliseconds': [1e3 * one['seconds'] for one in outcome.passes]}
        if baseline:
            row['speed_over_pytorch'] = turns.ratio(run[baseline], outcome, 'seconds')
            row['processor_speed_over_pytorch'] = turns.ratio(
                run[baseline], outcome, 'processor_seconds')
        row['speed_over_first'] = turns.ratio(run[OURS], outcome, 'seconds')
        peak = next((peak for part, peak in PEAKS.items() if part in outcome.facts['device']), None)
        multiply_adds = run[OURS].facts['multiply_adds_an_image']
        devices = outcome.facts.get('devices', 1)
        row['mfu'] = peak and 6 * multiply_adds * row['images_per_second'] / (devices * peak)
    return made


def table(made: dict[str, dict]) -> str:
    def cells(name, row):
        if 'not_run' in row:
            return [name, f'not run ({row["not_run"]})', *[''] * 7]
        return [name, f'{row["images_per_second"]:,.0f}', f'{row["milliseconds"]:.1f}',
                f'{row["processor_milliseconds"]:.1f}',
                f'{row["speed_over_first"]:.2f}',
                _number(row.get('speed_over_pytorch'), '.2f', 'not run'),
                _number(row['mfu'] and 100 * row['mfu'], '.1f'),
                _number(row.get('bytes_an_image') and row['bytes_an_image'] / 1e6, '.1f'),
                f'{row["peak_bytes"] / 1e9:.2f}']

    return turns.table(
        ['', 'images/s', 'ms per step', 'processor ms', 'speed over the first',
         'speed over PyTorch', 'MFU %', 'MB per image', 'peak GB'],
        [cells(name, row) for name, row in made.items()])


def _number(value: float | None, form: str, otherwise: str = 'not known') -> str:
    return otherwise if value is None else format(value, form)


def main(_) -> None:
    config = turns.with_made_up_images(CONFIG.value)
    contenders = {OURS: (this_program, config.to_json())}
    for changes in VARIANT.value:
        contenders[f'{OURS}, {changes}'] = (this_program, variant(config, changes).to_json())
    if PYTORCH.value:
        cores = available_cores()
        for compiled in (False, True):
            contenders[f'PyTorch {"torch.compile" if compiled else "eager"}'] = (
                pytorch, config.to_json(), compiled, cores)
    for name, (_, config_json, *_) in contenders.items():
        if STEPS.value % (count := json.loads(config_json)['steps_per_call']):
            raise UserError(f'--steps={STEPS.value} must be a multiple of {count}, the '
                            f'steps_per_call of {name}.')
    outcomes = turns.take_turns(contenders, REPEATS.value, STEPS.value)
    for outcome in outcomes.values():
        for one in outcome.passes:
            one['seconds'] /= STEPS.value
            one['processor_seconds'] /= STEPS.value
    made = rows(outcomes, config.batch_size)
    print(table(made))
    turns.write_json(JSON.value, {
        'config': json.loads(config.to_json()), 'repeats': REPEATS.value,
        'steps_a_pass': STEPS.value, 'rows': made})


if __name__ == '__main__':
    cli.run(main, needs=['--config=FILE'])
