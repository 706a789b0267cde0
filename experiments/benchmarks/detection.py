"""Times a detector's inference or training step, and torchvision's, in turns in one run.

  python experiments/benchmarks/detection.py --train --parts --json=result.json

Faster R-CNN whose last stage runs on every region ("C4"), with the preset 'torchvision'. Beside it:
the same network assembled from torchvision's parts, in PyTorch's usual layout and in channels-last,
with the same weights, image, objects and frozen parts; and torchvision's fasterrcnn_resnet50_fpn,
which is another network, as the number that people know. Weights and image are made up. Networks
are given an image as it enters the first convolution. A training step is losses, gradients and an
SGD update. With --kind=fpn, this program has a feature pyramid too, with the same weights as
torchvision's fasterrcnn_resnet50_fpn, and they are the only contenders. With --parts each part of
the network is timed on its own too, in training with its gradient.
"""

import functools
import os

import detection_inputs as inputs
import numpy as np
import turns
from absl import flags

from resnet_jax import cli
from resnet_jax.distributed.cores import available_cores
from resnet_jax.errors import UserError

KIND = flags.DEFINE_enum('kind', 'c4', ['c4', 'fpn'], "This program's detector.")
TRAIN = flags.DEFINE_bool('train', False, 'Time the training step in place of inference.')
PARTS = flags.DEFINE_bool('parts', False, 'Also time each part of a c4 network on its own.')
HEIGHT = flags.DEFINE_integer('height', 608, 'Of the image, in pixels.', 32)
WIDTH = flags.DEFINE_integer('width', 1008, 'Of the image, in pixels.', 32)
DEPTH = flags.DEFINE_enum('depth', '50', ['18', '34', '50', '101', '152'],
                          'Layers of the residual network.')
STRIDE_IN = flags.DEFINE_enum('stride_in', 'v1.5', ['v1', 'v1.5'],
                              "Where bottlenecks have their stride: torchvision's are v1.5, the "
                              "paper's v1.")
PROPOSALS = flags.DEFINE_integer('proposals', 300, 'Per image, in inference.', 1)
REGIONS = flags.DEFINE_integer('regions', 128, 'Per image, that are trained.', 1)
CLASSES = flags.DEFINE_integer('classes', 80, 'Without background.', 1)
REPEATS = flags.DEFINE_integer('repeats', 5, 'Passes of each contender.', 1)
UNITS = flags.DEFINE_integer('units', 1, 'Images, or steps of one image, in a pass.', 1)
JSON = flags.DEFINE_string('json', '', 'File for the result.')

OURS, C4, FPN = 'this program', 'torchvision C4', 'torchvision FPN'
CHANNELS_LAST = f'{C4}, channels-last'
WHOLE = 'all'
PARTS_OF = {
    False: ('trunk', 'proposal network', 'choice of proposals', 'RoIAlign', 'last stage',
            'choice of detections'),
    True: ('trunk', 'proposal network', 'matching of anchors', 'choice of proposals', 'RoIAlign',
           'last stage'),
}
DIFFERENTIABLE = ('trunk', 'proposal network', 'RoIAlign', 'last stage')


def ours(settings: dict, part: str):
    """This program; a contender of `turns.take_turns`."""
    from resnet_jax.xla import flags as xla_flags

    config = inputs.config_of(settings)
    xla_flags.use(config.xla_preset)
    import jax
    import jax.numpy as jnp

    from resnet_jax.models import rcnn
    from resnet_jax.tasks.detection import inference, losses
    from resnet_jax.training.optimizers import stop_frozen
    from resnet_jax.xla import cpu

    cpu.compute_in_main_thread()
    cpu.keep_memory()
    model = rcnn.create(config).clone(bn_frozen=True)
    batch, train = jax.device_put(inputs.batch_of(settings)), settings['train']
    image, sizes = batch['image'], batch['size']
    variables = jax.device_put(inputs.tree(inputs.weights_of(settings)))
    if part == WHOLE and train:
        return turns.passes(_training(config, model, variables, batch))
    if part == WHOLE:
        detect = jax.jit(functools.partial(inference.detect, model))
        return turns.passes(lambda: float(detect(variables, image, sizes).scores.sum()))

    def apply(method, params, *arguments, **options):
        params = stop_frozen(params, config.init.freeze)
        return model.apply({**variables, 'params': params}, *arguments, method=method, **options)

    params = variables['params']
    trunk = functools.partial(apply, 'trunk', train=train)
    rpn = functools.partial(apply, lambda module, x: module.rpn(x))
    features = jax.jit(trunk)(params, image)
    scores, deltas = jax.jit(rpn)(params, features)
    levels = rcnn.anchors_of(model, features)
    anchors = jnp.concatenate(levels)
    choose = functools.partial(rcnn.propose, model, train=train)
    regions = jax.jit(choose)(scores, deltas, levels, sizes).boxes
    if train:
        regions = regions[:, :settings['regions']]
    last = functools.partial(apply, 'describe', train=train)

    def pool(params, x):
        return apply('pool', params, x, regions, train=train)

    pooled = jax.jit(pool)(params, features)
    outputs = apply(lambda module, x: module.box(x), params, jax.jit(last)(params, pooled))
    found = rcnn.predicted(model, *outputs, regions, sizes)
    function, arguments = {
        'trunk': (trunk, (params, image)),
        'proposal network': (rpn, (params, features)),
        'matching of anchors': (lambda batch: losses.draw_anchors(
            model.settings, anchors, batch)[0].positive, (batch,)),
        'choice of proposals': (lambda *arguments: choose(*arguments).valid,
                                (scores, deltas, levels, sizes)),
        'RoIAlign': (pool, (params, features)),
        'last stage': (last, (params, pooled)),
        'choice of detections': (lambda *found: rcnn.select(
            model, *found, jnp.ones(regions.shape[:2], bool)).scores, found),
    }[part]

    @jax.jit
    def call(*arguments):
        if not (train and part in DIFFERENTIABLE):
            return function(*arguments), ()
        varied = arguments[:1] if part == 'trunk' else arguments  # an image needs no gradient
        y, pullback = jax.vjp(lambda *varied: function(*varied, *arguments[len(varied):]), *varied)
        return y, pullback(jax.tree.map(jnp.ones_like, y))

    def work():
        y, _ = jax.block_until_ready(call(*arguments))
        return float(sum(jnp.abs(x.astype(jnp.float32)).sum() for x in jax.tree.leaves(y)))

    return turns.passes(work)


def _training(config, model, variables, batch):
    """A function that does a training step and returns the loss."""
    import jax

    from resnet_jax.tasks.detection import task
    from resnet_jax.training import optimizers, schedules
    from resnet_jax.training.state import TrainState
    from resnet_jax.training.step import train_step

    optimizer, schedule = optimizers.create(config), schedules.create(config)
    state = TrainState(
        step=np.int32(0), **variables, opt_state=optimizer.init(variables['params']),
        schedule_state=schedule.init(), ema=None, normalization={})
    step = jax.jit(functools.partial(
        train_step, task=task.TASK, model=model, optimizer=optimizer, schedule=schedule,
        config=config), donate_argnums=0)

    def work():
        nonlocal state
        state, report = step(state, batch, np.uint32(0))
        return float(report.metrics['loss'])

    return work


def torchvision(settings: dict, part: str, name: str, threads: int):
    """torchvision's network of this name; a contender of `turns.take_turns`."""
    try:
        import torch
        import torch_detector as twin
    except ImportError as error:
        raise turns.NotRun('torchvision is not installed') from error
    if name == FPN and (settings['depth'] != 50 or settings['stride_in'] != 'v1.5'):
        raise turns.NotRun('torchvision has it with ResNet-50 v1.5 only')
    torch.set_num_threads(threads)
    train, weights = settings['train'], inputs.weights_of(settings)
    network = twin.fpn(
        weights, settings['classes'], settings['proposals'], settings['regions'],
    ) if name == FPN else twin.faster_rcnn(
        weights, settings['depth'], settings['classes'], settings['stride_in'],
        settings['proposals'], settings['regions'])
    layout = torch.channels_last if name == CHANNELS_LAST else torch.contiguous_format
    network = network.train(train).to(memory_format=layout)
    batch = inputs.batch_of(settings)
    image = torch.tensor(batch['image']).permute(0, 3, 1, 2).contiguous(memory_format=layout)
    targets = [{'boxes': torch.tensor(boxes), 'labels': torch.tensor(classes).long() + 1}
               for boxes, classes in zip(batch['boxes'], batch['classes'], strict=True)]
    if part == WHOLE and train:
        trained = [x for x in network.parameters() if x.requires_grad]
        optimizer = torch.optim.SGD(trained, inputs.RATE, 0.9, weight_decay=1e-4)

        def work():
            loss = sum(twin.run(network, image, targets)[1].values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return float(loss.detach())

        return turns.passes(work)

    with torch.set_grad_enabled(train):
        if part == WHOLE:
            function, arguments = (lambda: sum(
                x['scores'].sum() for x in twin.run(network, image)[0])), ()
        else:
            function, arguments = twin.part(network, part, image, targets, settings['regions'])
    differentiable = train and part in DIFFERENTIABLE

    def work():
        with torch.set_grad_enabled(differentiable):
            outputs = function(*arguments)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            if differentiable:
                torch.autograd.backward(outputs, [torch.ones_like(x) for x in outputs])
        return float(sum(x.detach().float().abs().sum() for x in outputs))

    return turns.passes(work)


def main(_) -> None:
    if PARTS.value and KIND.value == 'fpn':
        raise UserError('--parts is for --kind=c4.')
    settings = {'kind': KIND.value, 'train': TRAIN.value, 'height': HEIGHT.value,
                'width': WIDTH.value, 'depth': int(DEPTH.value), 'stride_in': STRIDE_IN.value,
                'proposals': PROPOSALS.value, 'regions': REGIONS.value, 'classes': CLASSES.value}
    rows, lines = {}, []
    for part in (WHOLE, *PARTS_OF[TRAIN.value] * PARTS.value):
        turns.progress(part)
        contenders = {OURS: (ours, settings, part)}
        for name in (*[C4, CHANNELS_LAST] * (KIND.value == 'c4'), *[FPN] * (part == WHOLE)):
            contenders[name] = torchvision, settings, part, name, available_cores()
        outcomes = turns.take_turns(contenders, REPEATS.value, UNITS.value)
        rows[part] = {name: row(one, outcomes[OURS]) for name, one in outcomes.items()}
        lines += [[part, name, *cells(values)] for name, values in rows[part].items()]
    print(turns.table(['part', 'program', 'ms', 'processor ms', "this program's speed",
                       'by processor time'], lines))
    turns.write_json(JSON.value, {**settings, 'repeats': REPEATS.value, 'units': UNITS.value,
                                  'load': os.getloadavg(), 'rows': rows})


def row(one: turns.Outcome, first: turns.Outcome) -> dict:
    """What is reported of a contender; ratios are this program's speed over the contender's."""
    if one.not_run:
        return {'not_run': one.not_run}
    return {**one.facts, 'seconds': one.median('seconds'),
            'processor_seconds': one.median('processor_seconds'),
            'speed_of_ours': turns.ratio(one, first, 'seconds'),
            'speed_by_processor_time': turns.ratio(one, first, 'processor_seconds'),
            'passes': one.passes}


def cells(values: dict) -> list[str]:
    if 'not_run' in values:
        return [values['not_run'], '', '', '']
    return [f'{1000 * values["seconds"]:.0f}', f'{1000 * values["processor_seconds"]:.0f}',
            f'{values["speed_of_ours"]:.2f}', f'{values["speed_by_processor_time"]:.2f}']


if __name__ == '__main__':
    cli.run(main)
