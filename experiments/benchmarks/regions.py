"""Times the operations on boxes and regions that a detector needs: suppression and RoIAlign.

  python experiments/benchmarks/regions.py --json=result.json

The contenders take turns, each in its own process: this program; the obvious JAX, which suppresses
box by box in a loop, and gathers the four neighbours of every sampling point; and torchvision, if
it is installed. The boxes lie around a few centres, as proposals do; the features are those of a
COCO image of 800x1344 pixels at stride 16, with a quarter of the channels of ResNet-50.
"""

import itertools

import numpy as np
import turns
from absl import flags

from resnet_jax import cli

REPEATS = flags.DEFINE_integer('repeats', 5, 'Passes of each contender.', 1)
UNITS = flags.DEFINE_integer('units', 3, 'Calls of RoIAlign in a pass; ten times as many of '
                             'suppression.', 1)
REGIONS = flags.DEFINE_integer('regions', 128, 'Regions for RoIAlign.', 1)
JSON = flags.DEFINE_string('json', '', 'File for the result.')
NMS = ((1000, 300), (1000, 1000), (2000, 1000), (2000, 2000), (6000, 1000))  # boxes, kept at most
THRESHOLD, BINS, SCALE, MAP = 0.7, 14, 1 / 16, (50, 84, 256)
OURS, OBVIOUS, TORCHVISION = 'this program', 'the obvious JAX', 'torchvision'


def proposals(n: int):
    """Boxes [n, 4] and scores [n] of an image of 1344x800 pixels."""
    rng = np.random.default_rng(0)
    which = rng.integers(0, max(n // 20, 1), n)
    centre = rng.uniform(0, (1344, 800), (n, 2))[which]
    side = rng.uniform(30, 300, (n, 2))[which]
    centre = centre + rng.normal(size=(n, 2)) * side * 0.15
    side = side * np.exp(rng.normal(size=(n, 2)) * 0.15)
    boxes = np.concatenate([centre - side / 2, centre + side / 2], -1).clip(0, (1344, 800) * 2)
    return boxes.astype(np.float32), rng.uniform(size=n).astype(np.float32)


def features():
    return np.random.default_rng(1).normal(size=(1, *MAP)).astype(np.float32)


def suppress(contender: str, n: int, number: int):
    """A contender of `turns.take_turns`."""
    boxes, scores = proposals(n)
    if contender == TORCHVISION:
        torch, ops = torchvision()
        arguments = torch.tensor(boxes), torch.tensor(scores)
        return turns.passes(lambda: len(ops.nms(*arguments, THRESHOLD)[:number]))
    import jax
    import jax.numpy as jnp

    from resnet_jax.regions import boxes as boxes_lib
    from resnet_jax.regions import nms

    @jax.jit
    def ours(boxes, scores):
        return nms.nms(boxes, scores, jnp.ones(n, bool), THRESHOLD, number).valid.sum()

    @jax.jit
    def obvious(boxes, scores):
        boxes = boxes[jnp.argsort(-scores)]
        overlaps = boxes_lib.iou(boxes, boxes) > THRESHOLD
        later = jnp.arange(n)

        def row(i, kept):
            return kept & ~(kept[i] & overlaps[i] & (later > i))

        return jnp.minimum(jax.lax.fori_loop(0, n, row, jnp.ones(n, bool)).sum(), number)

    function = ours if contender == OURS else obvious
    return turns.passes(lambda: int(function(boxes, scores)))


def pool(contender: str, regions: int, gradient: bool):
    """A contender of `turns.take_turns`."""
    boxes, x = proposals(regions)[0], features()
    if contender == TORCHVISION:
        torch, ops = torchvision()
        x = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=gradient)

        def work():
            y = ops.roi_align(x, [torch.tensor(boxes)], BINS, SCALE, 2, True)
            if gradient:
                x.grad = None
                y.backward(torch.ones_like(y))
            return float(y.detach().square().mean())

        return turns.passes(work)
    import jax
    import jax.numpy as jnp

    from resnet_jax.regions.roi_align import roi_align

    def ours(x):
        return roi_align(x, boxes[None], bins=BINS, scale=SCALE)

    def obvious(x):
        start, side = boxes[:, :2] * SCALE - 0.5, (boxes[:, 2:] - boxes[:, :2]) * SCALE / BINS
        points = jnp.arange(2 * BINS) / 2 + 0.25
        place = jnp.clip(start[:, None] + points[:, None] * side[:, None], 0,
                         np.array([MAP[1] - 1, MAP[0] - 1]))
        low = jnp.minimum(place.astype(int), np.array([MAP[1] - 2, MAP[0] - 2]))
        part = place - low
        total = 0
        for i, j in itertools.product((0, 1), repeat=2):
            weight = (jnp.where(i, part[..., 1], 1 - part[..., 1])[:, :, None]
                      * jnp.where(j, part[..., 0], 1 - part[..., 0])[:, None])
            total += weight[..., None] * x[0][(low[..., 1] + i)[:, :, None],
                                              (low[..., 0] + j)[:, None]]
        return total.reshape(1, regions, BINS, 2, BINS, 2, -1).mean((3, 5))

    function = ours if contender == OURS else obvious

    @jax.jit
    def call(x):
        if not gradient:
            return jnp.square(function(x)).mean(), ()
        y, pullback = jax.vjp(function, x)
        return jnp.square(y).mean(), pullback(jnp.ones_like(y))

    return turns.passes(lambda: float(jax.block_until_ready(call(x))[0]))


def torchvision():
    try:
        import torch
        from torchvision import ops
    except ImportError as error:
        raise turns.NotRun('torchvision is not installed') from error
    return torch, ops


def main(_) -> None:
    tasks = {f'suppression, {n} boxes, at most {number} kept': (suppress, n, number)
             for n, number in NMS}
    for gradient in (False, True):
        tasks[f'RoIAlign, {REGIONS.value} regions' + ', with gradient' * gradient] = (
            pool, REGIONS.value, gradient)
    rows, lines = {}, []
    for task, (function, *arguments) in tasks.items():
        turns.progress(task)
        outcomes = turns.take_turns(
            {name: (function, name, *arguments) for name in (OURS, OBVIOUS, TORCHVISION)},
            REPEATS.value, UNITS.value * (10 if function is suppress else 1))
        rows[task] = {name: {'not_run': one.not_run} if one.not_run else {
            **one.facts, 'seconds': one.median('seconds'),
            'processor_seconds': one.median('processor_seconds'), 'passes': one.passes}
            for name, one in outcomes.items()}
        results = [row['result'] for row in rows[task].values() if 'result' in row]
        if not np.allclose(results, results[0], rtol=1e-3):
            raise RuntimeError(f'{task}: the contenders differ: {results}')
        lines.append([task, *(
            one.not_run or f'{1000 * one.median("processor_seconds"):.1f}'
            for one in outcomes.values()), *(
            one.not_run or f'{turns.ratio(outcomes[OURS], one, "processor_seconds"):.2f}'
            for name, one in outcomes.items() if name != OURS)])
    print(turns.table(['processor ms', OURS, OBVIOUS, TORCHVISION,
                       f'relative to {OBVIOUS}', f'relative to {TORCHVISION}'], lines))
    turns.write_json(JSON.value, {'repeats': REPEATS.value, 'units': UNITS.value, 'rows': rows})


if __name__ == '__main__':
    cli.run(main)
