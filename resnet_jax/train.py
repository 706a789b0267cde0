"""The training loop: restore, step, log, evaluate, save."""

import collections
import contextlib
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

from resnet_jax import compilation_cache, data, processes, sharding
from resnet_jax import config as config_lib
from resnet_jax.checkpoint import Checkpoints
from resnet_jax.errors import UserError
from resnet_jax.monitor import IN_FLIGHT, Profiler, StepLog, StopRequest
from resnet_jax.program import Program, build, completed
from resnet_jax.state import TrainState, recalibrate
from resnet_jax.writers import MetricsWriter, duration, read_rows, say, write_whole

ERROR = 'eval/top1_error'  # what the best checkpoint has the lowest of


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
    config = completed(config)
    program = build(config, sharding.create_mesh(config))
    processes.check_alike({
        **config_lib.common_fields(config),
        'training data': program.train_data.source.fingerprint,
        'evaluation data': program.eval_data.source.fingerprint})
    _make_folder(workdir)
    processes.check_shared(workdir)
    _check_workdir(program, workdir)
    with StopRequest() as stop:
        return Run(program, workdir, stop).to_the_end()


def _make_folder(workdir: pathlib.Path) -> None:
    if '://' in str(workdir) or ':/' in str(workdir):
        raise UserError(f'--workdir must be a folder of a file system, got {workdir}: mount the '
                        'bucket, for example with Cloud Storage FUSE.')
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'--workdir={workdir} cannot be made a folder: {error.strerror}.') from (
            error)


def _check_workdir(program: Program, workdir: pathlib.Path) -> None:
    """Compares config and data with those of the checkpoints in the workdir, and notes them."""
    config_path, data_path = workdir / 'config.json', workdir / 'data.json'
    sources = {'the training data': program.train_data.source,
               'the evaluation data': program.eval_data.source}
    if any(path.name.isdigit() for path in (workdir / 'checkpoints').glob('*')):
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


def steps_of_next_call(config: ConfigDict, step: int) -> int:
    """`steps_per_call` where nothing is due before its end, otherwise 1; 0 at the end of the run.

    So only two programs are compiled, whatever the fields are.

    Args:
      config: the fields `every_steps`, `num_steps` and `steps_per_call` are read.
      step: steps done.
    """
    dues = (config.log.every_steps, config.eval.every_steps, config.checkpoint.every_steps)
    left = min(config.num_steps - step, *(every - step % every for every in dues if every))
    return config.steps_per_call if config.steps_per_call <= left else min(1, left)


class Run:
    """One run of a program in its workdir: what is compiled, written to and waited for."""

    def __init__(self, program: Program, workdir: pathlib.Path, stop: StopRequest):
        self.program = program
        self.config = program.config
        self.workdir = workdir
        self.stop = stop
        options = self.config.checkpoint
        rows = read_rows(workdir / 'metrics.jsonl')
        self.evaluated = {row['step']: row for row in rows if ERROR in row}
        self.errors = {step: row[ERROR] for step, row in self.evaluated.items()}
        self.checkpoints = Checkpoints(workdir / 'checkpoints', options.keep_last,
                                       self.errors if options.keep_best else None)
        self.start_step = self.checkpoints.latest_step or 0
        for step in [step for step in self.evaluated if step > self.start_step]:
            del self.evaluated[step], self.errors[step]
        if self.start_step > self.config.num_steps:
            raise UserError(f'{workdir} holds a run of {self.start_step} steps, more than the '
                            f'{self.config.num_steps} of num_steps.')
        self.writer = MetricsWriter(workdir, self.start_step)
        self._eval_step: Callable | None = None  # compiled for the first evaluation

    def to_the_end(self) -> dict[str, float]:
        """Restores or creates the state, and trains; see `train`."""
        try:
            self._announce()
            if self._is_finished(self.start_step):
                say(f'the run is finished: {self.start_step} steps are done.')
            else:
                self._loop(self._initial_state())
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

    def _compile(self, name: str, lower: Callable[..., jax.stages.Lowered], *args) -> Callable:
        """Compiles ahead of time: a second compilation cannot slip in later."""
        start = time.perf_counter()
        compiled = lower(*args).compile()
        say(f'compiled the {name} in {time.perf_counter() - start:.1f} s')
        return compiled

    def _loop(self, state: TrainState) -> None:
        step, profiler = self.start_step, Profiler(self.config, self.workdir)
        if step and self._is_due(step, self.config.eval.every_steps) and (
                step not in self.evaluated):
            state = self._evaluate_and_save(state, step)  # a signal came before it was done
        if step < self.config.num_steps and not self.stop.asked():
            with contextlib.closing(self.program.train_data.inputs(step)) as feed:
                try:
                    state, step = self._steps(state, feed, profiler)
                finally:
                    profiler.close()
        if (number := self.stop.asked()) and not self._is_finished(step):
            self._stop(state, step, number)

    def _steps(self, state: TrainState, feed: Iterator[Any],
               profiler: Profiler) -> tuple[TrainState, int]:
        config, step = self.config, self.start_step
        count = steps_of_next_call(config, step)
        inputs = self._inputs(feed, count)
        train_steps = {}  # by their number
        log = StepLog(config, step)
        log.meter.start()
        while count and not self.stop.asked(step):
            if count not in train_steps:
                log.meter.pause()
                train_steps[count] = self._compile_train_steps(count, state, inputs)
                log.meter.start()
            profiler.before(step, step + count)
            with jax.transfer_guard('disallow'):
                state, reports = train_steps[count](state, inputs)
                step += count
                log.add(reports)
                asked, done = time.perf_counter(), count
                count = steps_of_next_call(config, step)
                inputs = self._inputs(feed, count)
                log.meter.waited(time.perf_counter() - asked, done)
            profiler.after(step, reports)
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
        log.settle(self.checkpoints.latest_step)
        return state, step

    def _inputs(self, feed: Iterator[Any], count: int) -> tuple[Any, ...]:
        """The inputs of the next call: those of each step, or those that all steps share."""
        if self.program.train_data.shares_inputs:
            count = min(1, count)
        return tuple(itertools.islice(feed, count))

    def _compile_train_steps(self, count: int, state: TrainState,
                             inputs: tuple[Any, ...]) -> Callable:
        name = 'training step' if count == 1 else f'call of {count} training steps'
        return self._compile(name, self.program.lower_train_steps, state, inputs, count)

    def _is_finished(self, step: int) -> bool:
        return step == self.config.num_steps and step in self.evaluated

    def _is_due(self, step: int, every: int | None) -> bool:
        return step == self.config.num_steps or bool(every and step % every == 0)

    def _stop(self, state: TrainState, step: int, number: signal.Signals) -> None:
        if step:
            self.checkpoints.save(state, step)
        raise Stopped(
            f'stopped by {number.name} after step {step}'
            + (', which is saved; the same command goes on from there.' if step else '.'), number)

    def _write_log(self, log: StepLog, step: int) -> None:
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
        best = values[ERROR] < min(
            (self.errors[s] for s in self.checkpoints.steps if s in self.errors), default=math.inf)
        self.evaluated[step], self.errors[step] = values, values[ERROR]
        self.writer.write(step, values)
        say(f'evaluation at step {step:,}: loss {values["eval/loss"]:.4f}  '
            f'top-1 error {values[ERROR]:.2f} %  top-5 error {values["eval/top5_error"]:.2f} %  '
            f'on {values["eval/count"]:,} images')
        if (best and self.config.checkpoint.keep_best) or (
                self._is_due(step, self.config.checkpoint.every_steps)):
            self.checkpoints.save(state, step)
        return state

    def _evaluate(self, state: TrainState) -> dict[str, float] | None:
        """The metrics over every image of the evaluation split, or None if a signal comes."""
        index, sums = self.program.no_sums()
        evaluation = self.program.eval_data
        eval_step = jax.jit(self.program.eval_step, out_shardings=self.program.everywhere)
        under_way = collections.deque()
        with contextlib.closing(evaluation.inputs(0)) as feed:
            for _ in range(math.ceil(evaluation.num_images / evaluation.batch_size)):
                if self.stop.asked():
                    return None
                inputs = next(feed)
                if self._eval_step is None:
                    self._eval_step = self._compile(
                        'evaluation step', eval_step.lower, state, inputs, index, sums)
                with jax.transfer_guard('disallow'):
                    index, sums = self._eval_step(state, inputs, index, sums)
                under_way.append(index)
                if len(under_way) > IN_FLIGHT:
                    jax.block_until_ready(under_way.popleft())
        return {f'eval/{name}': value for name, value in sums.report().items()}

    def _recalibrate(self, state: TrainState) -> TrainState:
        """Running statistics as a strict average over the training batches that would follow."""
        batches = self.config.eval.recalibrate_batches
        batch_statistics = jax.jit(self.program.batch_statistics, out_shardings=(
            self.program.everywhere, self.program.shardings.batch_stats))

        def collect(feed):
            index, compiled = jnp.copy(state.step), None
            for inputs in itertools.islice(feed, batches):
                compiled = compiled or self._compile(
                    'recalibration', batch_statistics.lower, state, inputs, index)
                index, result = compiled(state, inputs, index)
                yield jax.block_until_ready(result)
                if self.stop.asked():
                    return

        with contextlib.closing(self.program.train_data.inputs(self.config.num_steps)) as feed:
            batch_stats = jax.device_put(
                recalibrate(collect(feed)), self.program.shardings.batch_stats)
        if self.stop.asked():  # before all batches were seen; the next run begins again
            return state
        say(f'running statistics recalibrated over {batches} batches')
        if state.ema is None:
            return state.replace(batch_stats=batch_stats)
        return state.replace(ema={**state.ema, 'batch_stats': batch_stats})
