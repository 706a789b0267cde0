"""Times tracing and compiling the training step by depth: scanned and unrolled, cold and warm.

    python experiments/benchmarks/compile_time.py --config=configs/cifar10_r20.py \
        --depths=20,56,110,1202 --json=result.json

Each measurement runs in its own process. Cold: the compilation cache is empty and is filled; warm:
a second process reads it. The rows are measured in turns. 'initial state' is the time to trace,
compile and run the program that initialises the parameters; 'trace' ends with StableHLO, 'compile'
with an executable. The table also has the processor time of all three together, which depends less
on other load.
"""

import json
import os
import tempfile

import turns
from absl import flags

from resnet_jax import cli
from resnet_jax.errors import UserError

CONFIG = cli.config_flag()
DEPTHS = flags.DEFINE_list('depths', ['20', '56', '110'], 'Depths of the network.')
REPEATS = flags.DEFINE_integer('repeats', 5, 'Measurements of each row.', 1)
LIMIT = flags.DEFINE_float('limit', 600.0, 'Seconds after which a process is stopped and its row '
                           'is skipped.', 0)
JSON = flags.DEFINE_string('json', '', 'File for the result.')
PARTS = ('initial_state', 'trace', 'compile')


def start(config_json: str, cache: str):
    """What a run does before its first step; see `turns.take_turns`."""
    os.environ['JAX_COMPILATION_CACHE_DIR'] = cache
    from ml_collections import ConfigDict

    from resnet_jax.xla import flags as xla_flags

    config = ConfigDict(json.loads(config_json))
    xla_flags.use(config.xla_preset)
    import jax

    from resnet_jax.distributed import sharding
    from resnet_jax.training.program import build
    from resnet_jax.xla import compilation_cache

    compilation_cache.use(cache)
    program = build(config, sharding.create_mesh(config))
    inputs = (next(program.train_data.inputs(0)),)

    def run(_: int) -> dict[str, float]:
        made = {}

        def initial_state():
            made['state'] = jax.block_until_ready(program.initial_state())

        def trace():
            made['step'] = program.lower_train_steps(
                made['state'], inputs, config.steps_per_call)

        times = [turns.timed(part) for part in (
            initial_state, trace, lambda: made['step'].compile())]
        return dict(zip(PARTS, (one['seconds'] for one in times), strict=True)) | {
            'processor': sum(one['processor_seconds'] for one in times)}

    return {}, run


def measure(config_json: str, cache: str) -> dict[str, float]:
    """One start in a process of its own."""
    process = turns.Process('this program', start, (config_json, cache), ())
    try:
        process.receive(LIMIT.value)
        return process.take_turn(1, LIMIT.value)
    finally:
        process.close()


def measure_all(configs: dict[str, str]) -> dict[str, dict[str, turns.Outcome]]:
    """Row: 'cold' and 'warm', the rows taking turns."""
    outcomes = {name: {'cold': turns.Outcome(), 'warm': turns.Outcome()} for name in configs}
    for i in range(REPEATS.value):
        for name, config_json in configs.items():
            if outcomes[name]['cold'].not_run:
                continue
            with tempfile.TemporaryDirectory() as cache:
                for kind, outcome in outcomes[name].items():
                    try:
                        outcome.passes.append(measure(config_json, cache))
                    except turns.NotRun as reason:
                        outcomes[name] = dict.fromkeys(
                            ('cold', 'warm'), turns.Outcome(not_run=str(reason)))
                        break
                    turns.progress(f'{name}, {kind}, {i + 1} of {REPEATS.value}')
    return outcomes


def rows(outcomes: dict[str, dict[str, turns.Outcome]]) -> dict[str, dict]:
    """What the JSON says: medians and every measurement."""
    return {name: {kind: {'not_run': outcome.not_run} if outcome.not_run else {
        **{part: outcome.median(part) for part in (*PARTS, 'processor')},
        'passes': outcome.passes} for kind, outcome in kinds.items()}
        for name, kinds in outcomes.items()}


def table(made: dict[str, dict]) -> str:
    def cells(kind: dict) -> list[str]:
        if 'not_run' in kind:
            return [f'not run ({kind["not_run"]})', *[''] * len(PARTS)]
        return [f'{kind[part]:.2f}' for part in (*PARTS, 'processor')]

    header = [f'{kind}: {part.replace("_", " ")}' for kind in ('cold', 'warm')
              for part in (*PARTS, 'processor')]
    return turns.table(['seconds', *header], [
        [name, *cells(kinds['cold']), *cells(kinds['warm'])] for name, kinds in made.items()])


def main(_) -> None:
    configs = {}
    for depth in DEPTHS.value:
        if not depth.isdigit():
            raise UserError(f'--depths must be numbers such as 20,56,110; got {depth!r}.')
        for unroll in (False, True):
            config = turns.with_made_up_images(CONFIG.value)
            config.model.depth, config.model.unroll = int(depth), unroll
            configs[f'depth {depth}, {"unrolled" if unroll else "scanned"}'] = config.to_json()
    made = rows(measure_all(configs))
    print(table(made))
    turns.write_json(JSON.value, {'repeats': REPEATS.value, 'unit': 'seconds', 'rows': made})


if __name__ == '__main__':
    cli.run(main, needs=['--config=FILE'])
