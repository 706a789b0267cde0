"""Stands in for `python -m resnet_jax.main`: the same files and signals, without a network.

It logs and saves every step, so that a test can stop it anywhere. A run of seed 13 fails as long as
there is no file called 'mended' beside its folder.
"""

import json
import pathlib
import signal
import sys
import time

values = dict(arg.lstrip('-').split('=', 1) for arg in sys.argv[1:])
folder = pathlib.Path(values['workdir'])
seed, steps = int(values['config.seed']), int(values['config.num_steps'])
with (folder / 'starts').open('a') as file:
    file.write('started\n')
if seed == 13 and not (folder.parent / 'mended').exists():
    print('error: the loss became nan in step 7.', flush=True)
    sys.exit(1)

stop = []
signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
metrics, saved = folder / 'metrics.jsonl', folder / 'saved'
step = int(saved.read_text()) if saved.exists() else 0
while step < steps:
    if stop:
        sys.exit(128 + stop[0])
    step += 1
    row = {'step': step, 'train/loss': 1 / (step + seed), 'train/top1_error': 50 / step,
           'train/images_per_second': 1000 + step}
    if step == steps:
        row |= {'eval/top1_error': seed + 0.5}
    with metrics.open('a') as file:
        file.write(json.dumps(row) + '\n')
    saved.with_suffix('.part').write_text(str(step))
    saved.with_suffix('.part').replace(saved)  # whole at any moment
    time.sleep(0.1)
(folder / 'checkpoints' / str(steps)).mkdir(parents=True)
