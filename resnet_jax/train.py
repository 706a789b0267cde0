"""The training loop: restore, step, log, evaluate, save."""

import contextlib
import functools
import itertools
import json
import math
import pathlib
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from resnet_jax import compilation_cache, data, sharding
from resnet_jax import config as config_lib
from resnet_jax.checkpoint import ERROR, Checkpoints
from resnet_jax.errors import UserError
from resnet_jax.metrics import Meter, Metrics
from resnet_jax.program import Program, build
from resnet_jax.state import TrainState, recalibrate
from resnet_jax.steps import StepReport
from resnet_jax.writers import MetricsWriter, duration, read_rows, say, write_whole

# Steps that the host may be ahead of the devices: enough to hide its own work, few enough that a
# request to stop is answered within a step or two.
IN_FLIGHT = 2


class Diverged(UserError):  # noqa: N818
    """The loss, the gradient or the parameters are no longer finite."""


class Stopped(Exception):  # noqa: N818
    """A signal asked the run to stop, and its state has been saved.

    Attributes:
      signal: the signal.
    """

    def __init__(self, message: str, number: signal.Signals):
        super().__init__(message)
        self.signal = number


def train(config: ConfigDict, workdir: pathlib.Path) -> dict[str, float]:
    """Trains until `config.num_steps`, from the newest checkpoint in the workdir if there is one.

    Args:
      config: see `resnet_jax.config`.
      workdir: made if it is not there. Afterwards it holds config.json, data.json (fingerprints
        of the data), metrics.jsonl, TensorBoard files, and checkpoints/<step>/.

    Returns:
      The values of the last evaluation, under their TensorBoard tags.

    Raises:
      UserError: the config is wrong, the data is not there, or the workdir holds another run.
      Diverged: the loss is no longer finite; the last good checkpoint stays in place.
      Stopped: SIGTERM or SIGINT came; the state has been saved.
    """
    compilation_cache.use(config.compilation_cache)
    program = build(config, sharding.create_mesh(config))
    workdir.mkdir(parents=True, exist_ok=True)
    _check_workdir(program, workdir)
    with StopRequest() as stop:
        return Run(program, workdir, stop).to_the_end()


def _check_workdir(program: Program, workdir: pathlib.Path) -> None:
    """Compares config and data with those of the checkpoints in the workdir, and notes them."""
    config_path, data_path = workdir / 'config.json', workdir / 'data.json'
    sources = {'the training data': program.train_data.source,
               'the evaluation data': program.eval_data.source}
    if any((workdir / 'checkpoints').glob('[0-9]*')):
        try:
            stored = config_lib.leaves(ConfigDict(json.loads(config_path.read_text())))
            fingerprints = json.loads(data_path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f'{workdir} holds checkpoints, but not what they were made from '
                            f'({error}); choose another --workdir.') from error
        changed = config_lib.differences(program.config, stored)
        if changed:
            raise UserError(
                f'{workdir} holds a run of another config ({"; ".join(changed)}); choose another '
                '--workdir, or give the same config to go on.')
        for name, source in sources.items():
            data.check_unchanged(fingerprints[name], source, name)
    if jax.process_index() == 0:
        write_whole(config_path, program.config.to_json(indent=2) + '\n')
        write_whole(data_path, json.dumps(
            {name: source.fingerprint for name, source in sources.items()}, indent=2) + '\n')


class StopRequest:
    """Notes SIGTERM and SIGINT while it is entered, for the loop to ask after.

    Attributes:
      signal: the one that came, or None.
    """

    def __init__(self):
        self.signal: signal.Signals | None = None
        self._previous = {}

    def __enter__(self) -> 'StopRequest':
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def _note(self, number, frame):
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # the second Ctrl-C does not wait
        self.signal = signal.Signals(number)

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)


class Run:
    """One run of a program in its workdir: what is compiled, written to and waited for."""

    def __init__(self, program: Program, workdir: pathlib.Path, stop: StopRequest):
        self.program = program
        self.config = program.config
        self.workdir = workdir
        self.stop = stop
        options = self.config.checkpoint
        self.checkpoints = Checkpoints(
            workdir / 'checkpoints', options.keep_last, options.keep_best)
        self.start_step = self.checkpoints.latest_step or 0
        rows = read_rows(workdir / 'metrics.jsonl')
        self.evaluated = {row['step']: row for row in rows
                          if ERROR in row and row['step'] <= self.start_step}
        self.writer = MetricsWriter(workdir, self.start_step)
        self._eval_step: Callable | None = None  # compiled for the first evaluation

    def to_the_end(self) -> dict[str, float]:
        """Restores or creates the state, and trains; see `train`."""
        try:
            self._announce()
            state = self._initial_state()
            if self.start_step >= self.config.num_steps and self.start_step in self.evaluated:
                say(f'the run is finished: {self.start_step} steps are done.')
            else:
                self._loop(state)
        finally:
            self.checkpoints.close()
            self.writer.close()
        last = self.evaluated[max(self.evaluated)]
        say(f'done: top-1 error {last[ERROR]:.2f} % on {last["eval/count"]} images; '
            f'everything is in {self.workdir}')
        return last

    def _announce(self) -> None:
        program, config = self.program, self.config
        parameters = sum(leaf.size for leaf in jax.tree.leaves(program.state.params))
        device = program.mesh.devices.flat[0].device_kind
        say(f'{config.model.family} network of depth {config.model.depth}'
            f'{", plain" if config.model.plain else ""}: {parameters:,} parameters; '
            f'{config.data.source}: {program.train_data.num_images:,} training and '
            f'{program.eval_data.num_images:,} test images; '
            f'{program.mesh.size} x {device}, mesh {dict(program.mesh.shape)}')

    def _initial_state(self) -> TrainState:
        if self.start_step:
            say(f'going on from step {self.start_step} in {self.workdir}')
            return self.checkpoints.restore(self.program.state)
        return self.program.initial_state()

    def _compile(self, name: str, function: Callable, *args, donate: tuple[int, ...] = (),
                 out_shardings=None) -> Callable:
        """Compiles ahead of time: a second compilation cannot slip in later."""
        start = time.perf_counter()
        compiled = jax.jit(function, donate_argnums=donate,
                           out_shardings=out_shardings).lower(*args).compile()
        say(f'compiled the {name} in {time.perf_counter() - start:.1f} s')
        return compiled

    def _loop(self, state: TrainState) -> None:
        with contextlib.closing(self.program.train_data.inputs(self.start_step)) as feed:
            self._steps(state, feed)

    def _steps(self, state: TrainState, feed: Iterator[Any]) -> None:
        config, step = self.config, self.start_step
        inputs = next(feed)
        train_step = self._compile('training step', self.program.train_step, state, inputs,
                                   donate=(0,), out_shardings=(self.program.shardings, None))
        log = StepLog(config, step)
        profiler = Profiler(config, self.workdir)
        if step and self._is_due(step, config.eval.every_steps) and step not in self.evaluated:
            state = self._evaluate_and_save(state, step)  # a signal came before it was done
        log.meter.start()
        while step < config.num_steps and self.stop.signal is None:
            profiler.before(step)
            with jax.transfer_guard('disallow'):
                state, report = train_step(state, inputs)
                step += 1
                log.add(report)
                asked = time.perf_counter()
                inputs = next(feed) if step < config.num_steps else None
                log.meter.waited(time.perf_counter() - asked)
            profiler.after(step, report)
            if self._is_due(step, config.log.every_steps):
                self._write_log(log, step)
            evaluate = self._is_due(step, config.eval.every_steps)
            if evaluate or self._is_due(step, config.checkpoint.every_steps):
                log.settle(self.checkpoints.latest_step)
                log.meter.pause()
                if evaluate:
                    state = self._evaluate_and_save(state, step)
                else:
                    self.checkpoints.save(state, step)
                log.meter.start()
        profiler.close()
        log.settle(self.checkpoints.latest_step)
        if self.stop.signal is not None:
            self._stop(state, step)

    def _is_due(self, step: int, every: int | None) -> bool:
        return step == self.config.num_steps or bool(every and step % every == 0)

    def _stop(self, state: TrainState, step: int) -> None:
        if step:
            self.checkpoints.save(state, step)
        raise Stopped(
            f'stopped by {self.stop.signal.name} after step {step}'
            + (', which is saved; the same command goes on from there.' if step else '.'),
            self.stop.signal)

    def _write_log(self, log: 'StepLog', step: int) -> None:
        log.settle(self.checkpoints.latest_step)
        row = log.read()
        self.writer.write(step, row)
        left = (self.config.num_steps - step) * self.config.batch_size
        say(f'step {step:>7,}/{self.config.num_steps:,}  loss {row["train/loss"]:.4f}  '
            f'top-1 error {row["train/top1_error"]:6.2f} %  rate {row["train/learning_rate"]:.3g}  '
            f'{row["train/images_per_second"]:,.0f} images/s  '
            f'waiting for data {100 * row["train/data_wait_fraction"]:.1f} %  '
            f'ETA {duration(left / row["train/images_per_second"])}')

    def _evaluate_and_save(self, state: TrainState, step: int) -> TrainState:
        """Evaluates, logs, and saves if the step is due or the best so far."""
        if step == self.config.num_steps and self.config.eval.recalibrate_batches:
            state = self._recalibrate(state)
        values = self._evaluate(state)
        if values is None:  # a signal came; the loop saves
            return state
        self.evaluated[step] = values
        self.writer.write(step, values)
        say(f'evaluation at step {step:,}: loss {values["eval/loss"]:.4f}  '
            f'top-1 error {values[ERROR]:.2f} %  top-5 error {values["eval/top5_error"]:.2f} %  '
            f'on {values["eval/count"]:,} images')
        best = self.config.checkpoint.keep_best and values[ERROR] < self.checkpoints.best_error
        if best or self._is_due(step, self.config.checkpoint.every_steps):
            self.checkpoints.save(state, step, values[ERROR])
        return state

    def _evaluate(self, state: TrainState) -> dict[str, float] | None:
        """The metrics over every image of the evaluation split, or None if a signal comes."""
        index, sums = self.program.no_sums()
        evaluation = self.program.eval_data
        with contextlib.closing(evaluation.inputs(0)) as feed:
            for _ in range(math.ceil(evaluation.num_images / evaluation.batch_size)):
                if self.stop.signal is not None:
                    return None
                inputs = next(feed)
                if self._eval_step is None:
                    self._eval_step = self._compile(
                        'evaluation step', self.program.eval_step, state, inputs, index, sums,
                        donate=(2, 3), out_shardings=self.program.everywhere)
                with jax.transfer_guard('disallow'):
                    index, sums = self._eval_step(state, inputs, index, sums)
        return {f'eval/{name}': value for name, value in sums.report().items()}

    def _recalibrate(self, state: TrainState) -> TrainState:
        """Running statistics as a strict average over the training batches that would follow."""
        batches = self.config.eval.recalibrate_batches

        def collect(feed):
            index, compiled = jnp.copy(state.step), None
            for inputs in itertools.islice(feed, batches):
                compiled = compiled or self._compile(
                    'recalibration', self.program.batch_statistics, state, inputs, index,
                    out_shardings=self.program.everywhere)
                index, result = compiled(state, inputs, index)
                yield result

        with contextlib.closing(self.program.train_data.inputs(self.config.num_steps)) as feed:
            batch_stats = recalibrate(collect(feed))
        say(f'running statistics recalibrated over {batches} batches')
        if state.ema is None:
            return state.replace(batch_stats=batch_stats)
        return state.replace(ema={**state.ema, 'batch_stats': batch_stats})


class StepLog:
    """The reports of the steps since the last line of the log.

    Attributes:
      meter: times the steps.
    """

    def __init__(self, config: ConfigDict, step: int):
        self.meter = Meter()
        self._batch_size = config.batch_size
        self._settled_step = step
        self._pending: list[StepReport] = []  # on the devices
        self._reports: list[StepReport] = []  # on the host

    def add(self, report: StepReport) -> None:
        self._pending.append(report)
        if len(self._pending) > IN_FLIGHT:
            jax.block_until_ready(self._pending[-IN_FLIGHT - 1])

    def settle(self, last_checkpoint: int | None) -> None:
        """Waits for the pending steps and sees that they went well.

        Raises:
          Diverged: a step did not.
        """
        reports = jax.device_get(self._pending)
        for report in reports:
            self._settled_step += 1
            measured = {'loss': report.metrics.loss.total, 'gradient': report.gradient_norm,
                        'norm of the parameters': report.parameter_norm}
            for name, value in measured.items():
                if not math.isfinite(value):
                    kept = (f'the checkpoint of step {last_checkpoint} is intact'
                            if last_checkpoint is not None else 'no checkpoint had been written')
                    raise Diverged(
                        f'the {name} became {value} in step {self._settled_step}; {kept}. Lower '
                        'schedule.learning_rate, warm up, or set optimizer.clip_norm, with another '
                        '--workdir.')
        self._reports += reports
        self._pending = []

    def read(self) -> dict[str, float]:
        """A row for the log; starts anew. To be called when all is settled."""
        metrics = functools.reduce(Metrics.merge, (r.metrics for r in self._reports)).report()
        last = self._reports[-1]
        self._reports = []
        return {
            'train/loss': metrics['loss'],
            'train/top1_error': metrics['top1_error'],
            'train/learning_rate': float(last.learning_rate),
            'train/gradient_norm': float(last.gradient_norm),
            'train/parameter_norm': float(last.parameter_norm),
            **self.meter.read(self._batch_size),
        }


class Profiler:
    """Traces a range of steps into workdir/profile, for TensorBoard or Perfetto."""

    def __init__(self, config: ConfigDict, workdir: pathlib.Path):
        self._first = config.profile.start_step
        self._last = self._first + config.profile.num_steps
        self._folder = workdir / 'profile'
        self._running = False

    def before(self, step: int) -> None:
        if self._first <= step < self._last and not self._running:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def after(self, step: int, report: StepReport) -> None:
        if self._running and step >= self._last:
            jax.block_until_ready(report)
            self.close()

    def close(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            say(f'wrote a trace of steps up to {self._last} to {self._folder}')
            self._running = False
