"""The training loop: restore, step, log, save, evaluate."""

import contextlib
import itertools
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from resnet_jax import config as config_lib
from resnet_jax import models, storage
from resnet_jax.distributed import processes, sharding
from resnet_jax.output import LiveLine, duration, say, warn
from resnet_jax.training import accumulation, choices, disk
from resnet_jax.training import workdir as workdir_lib
from resnet_jax.training.choices import Machine
from resnet_jax.training.interval import Interval
from resnet_jax.training.log import StepLog
from resnet_jax.training.profiler import Profiler
from resnet_jax.training.program import Program, build, completed
from resnet_jax.training.signals import StopRequest
from resnet_jax.training.state import TrainState
from resnet_jax.training.validation import (
    Evaluator,
    compile_now,
    shapes_of,
    with_statistics,
)
from resnet_jax.training.workdir import Record
from resnet_jax.xla import backend, compilation_cache, topologies

# Training time between two lines of the output, where the log has none for longer, and between two
# updates of the live line of a terminal.
PROGRESS_SECONDS, LIVE_SECONDS = 10, 1


class Stopped(Exception):  # noqa: N818
    """A signal asked the run to stop, and its state has been saved.

    Attributes:
      signal: the signal.
    """

    def __init__(self, message: str, number: signal.Signals):
        super().__init__(message)
        self.signal = number

    def _render_traceback_(self) -> list[str]:
        """What IPython shows below a cell: one line, since nothing went wrong."""
        return [str(self).replace('the same command', 'the same cell')]


@backend.in_32_bits
def train(config: ConfigDict, workdir: storage.Path) -> dict[str, float]:
    """Trains until `config.num_steps`, from the latest checkpoint in the workdir if there is one.

    May be called from any thread; only in the main thread are signals noticed.

    Args:
      config: see `resnet_jax.config`.
      workdir: a folder or a path in a bucket, see `resnet_jax.storage`; made if it is missing.
        Afterwards it holds config.json, data.json (fingerprints
        of the data), metrics.jsonl, TensorBoard files, and checkpoints/<step>/.

    Returns:
      The values of the last evaluation, under their TensorBoard tags.

    Raises:
      UserError: the config is wrong, the data is missing, the workdir holds another run, is in use
        or cannot be written to.
      Diverged: the loss is no longer finite; the checkpoints stay in place.
      Stopped: SIGTERM or SIGINT came; the state has been saved.
    """
    compilation_cache.use(config.compilation_cache)
    workdir_lib.check_path(workdir)
    given, kept = config, dict[str, Any]()
    if begun := workdir_lib.begun(config, workdir):
        config, kept = choices.as_begun(config, begun)
    config = completed(config)
    workdir_lib.check_origin(config, workdir)
    mesh = sharding.create_mesh(config)
    if config.topology and (other := topologies.difference(config.topology, mesh.size)):
        warn(other)
    config, chosen = choices.choose(config, Machine.of(mesh))
    if lines := choices.table(given, config, kept | chosen):
        say(lines)
    if None not in (given.num_epochs, given.num_steps):
        warn(f'num_steps={given.num_steps} is set, so that num_epochs={given.num_epochs} has no '
             'effect; to train for that many epochs, set num_steps to none.')
    processes.check_alike(config_lib.common_fields(config))
    with contextlib.ExitStack() as held:
        is_there = workdir.is_dir()
        if is_there:  # refused before the data is read, which may take long
            with disk.errors_of(workdir):
                held.enter_context(workdir_lib.locked(workdir))
            workdir_lib.check_config(config, workdir)
        program = build(config, mesh)
        processes.check_alike({'training data': program.train_data.source.fingerprint,
                               'evaluation data': program.eval_data.source.fingerprint})
        workdir_lib.make(workdir)
        with disk.errors_of(workdir), StopRequest() as stop:
            processes.check_shared(workdir)
            if not is_there:
                held.enter_context(workdir_lib.locked(workdir))
            workdir_lib.check_data(program, workdir)
            workdir_lib.describe(program, workdir)
            return Run(program, workdir, stop).to_the_end()


def steps_of_next_call(config: ConfigDict, step: int, saves: Interval) -> int:
    """`steps_per_call` where nothing is due before its end, otherwise 1; 0 at the end of the run.

    So only two programs are compiled, whatever the fields are.

    Args:
      config: the fields `every_steps`, `num_steps` and `steps_per_call` are read.
      step: steps done.
      saves: when checkpoints are due.
    """
    dues = (config.log.every_steps, config.eval.every_steps)
    left = min(config.num_steps - step, *(every - step % every for every in dues if every))
    left = min(left, saves.left(step) or left)
    return config.steps_per_call if config.steps_per_call <= left else min(1, left)


class Run:
    """One run of a program in its workdir: what is compiled, written to and waited for."""

    def __init__(self, program: Program, workdir: storage.Path, stop: StopRequest):
        self.program = program
        self.config = program.config
        self.workdir = workdir
        self.stop = stop
        self.record = Record(program, workdir)
        self.saves = Interval(self.config, self.record.start_step)
        self.evaluator = Evaluator(program, stop)
        self.live: LiveLine | None = None

    def to_the_end(self) -> dict[str, float]:
        """Restores or creates the state, and trains; see `train`."""
        start_step = self.record.start_step
        try:
            self._announce()
            if self._is_finished(start_step):
                say(f'nothing to do: all {start_step:,} steps are complete.')
            else:
                self._loop(self._initial_state())
        finally:
            self.record.close()
        last = self.record.evaluations[max(self.record.evaluations)]
        say(f'done: {self.program.task.headline.text(last)} on {last["eval/count"]:,} images; '
            f'everything is in {self.workdir}')
        return last

    def _announce(self) -> None:
        program, config = self.program, self.config
        parameters = sum(leaf.size for leaf in jax.tree.leaves(program.state.params))
        device = program.mesh.devices.flat[0].device_kind
        say(f'{models.title(config.model)}: {parameters:,} parameters; '
            f'{config.data.source}: {program.train_data.num_images:,} training and '
            f'{program.eval_data.num_images:,} test images; '
            f'{program.mesh.size} x {device}, mesh {dict(program.mesh.shape)}')
        if spanning := accumulation.spanning(config, program.mesh.shape['data']):
            warn(spanning)

    def _initial_state(self) -> TrainState:
        if self.record.start_step:
            say(f'resuming from step {self.record.start_step} in {self.workdir}')
            return self.record.restore(self.program.state)
        return self.program.initial_state()

    def _loop(self, state: TrainState) -> None:
        step, profiler = self.record.start_step, Profiler(self.config, self.workdir)
        if step and self._is_due(step, self.config.eval.every_steps) and (
                step not in self.record.evaluations):  # it was stopped before or while evaluating
            self._evaluate(state, step, self.record.recalibrated)
        if step < self.config.num_steps and not self.stop.agreed:
            with contextlib.closing(self.program.train_data.inputs(step)) as feed, \
                    contextlib.closing(profiler), self._live_line(step):
                state, step = self._steps(state, feed, profiler)
        if (number := self.stop.agreed) and not self._is_finished(step):
            self._stop(state, step, number)

    @contextlib.contextmanager
    def _live_line(self, step: int) -> Iterator[None]:
        if not LiveLine.is_possible():
            yield
            return
        self.live = LiveLine(self.config.num_steps, step)
        with contextlib.closing(self.live):
            yield

    def _steps(self, state: TrainState, feed: Iterator[Any],
               profiler: Profiler) -> tuple[TrainState, int]:
        config, step = self.config, self.record.start_step
        count = steps_of_next_call(config, step, self.saves)
        inputs = self._inputs(feed, count)
        train_steps = {}  # by the shapes of their inputs and their number
        log, shown = StepLog(config, self.program.task, step), None
        pause = LIVE_SECONDS if self.live else PROGRESS_SECONDS
        log.meter.start()
        while count and not self.stop.asked():
            if (kind := (shapes_of(inputs), count)) not in train_steps:
                log.meter.pause()
                train_steps[kind] = self._compile_train_steps(count, state, inputs)
                log.meter.start()
            profiler.before(step, step + count)
            with jax.transfer_guard('disallow'):
                state, reports = train_steps[kind](state, inputs)
                step += count
                log.add(reports)
                asked, done = time.perf_counter(), count
                count = steps_of_next_call(config, step, self.saves)
                inputs = self._inputs(feed, count)
                log.meter.waited(time.perf_counter() - asked, done)
            profiler.after(step, reports)
            due = self._is_due(step, config.log.every_steps)
            if due or shown is None or time.monotonic() - shown > pause:
                self._report(log, step, due)
                shown = time.monotonic()
            if self.saves.asks_for_speed(step):
                log.settle(self.record.written_step)
                self.saves.note_speed(step, log.meter.lap())
            self._save_and_evaluate(state, step, log)
        log.settle(self.record.written_step)
        return state, step

    def _inputs(self, feed: Iterator[Any], count: int) -> tuple[Any, ...]:
        """The inputs of the next call: those of each step, or those that all steps share."""
        if self.program.train_data.shares_inputs:
            count = min(1, count)
        return tuple(itertools.islice(feed, count))

    def _compile_train_steps(self, count: int, state: TrainState,
                             inputs: tuple[Any, ...]) -> Callable:
        name = 'training step' if count == 1 else f'call of {count} training steps'
        return compile_now(name, self.program.lower_train_steps, state, inputs, count)

    def _is_finished(self, step: int) -> bool:
        return step == self.config.num_steps and step in self.record.evaluations

    def _is_due(self, step: int, every: int | None) -> bool:
        return step == self.config.num_steps or bool(every and step % every == 0)

    def _stop(self, state: TrainState, step: int, number: signal.Signals) -> None:
        if not step:
            raise Stopped(f'stopped by {number.name} before the first step.', number)
        self.record.save(state, step)
        raise Stopped(f'stopped by {number.name}; checkpoint saved at step {step}. Run the same '
                      'command again to resume.', number)

    def _report(self, log: StepLog, step: int, due: bool) -> None:
        """Shows where the run is, and writes a row of the log, if one is due."""
        log.settle(self.record.written_step)
        row, skipped = log.row(), 0
        if due:
            log.reset()
            if skipped := self.program.train_data.total_skipped():
                row['train/skipped_images'] = skipped
            self.record.log(step, row)
        left = (self.config.num_steps - step) * self.config.batch_size
        left = duration(left / row['train/images_per_second'])
        text = (f'{self._line("train", row)}  lr {row["train/learning_rate"]:.3g}  '
                f'{row["train/images_per_second"]:,.0f} images/s  '
                f'waiting for data {100 * row["train/data_wait_fraction"]:.1f} %')
        more = f'  skipped {skipped:,} unreadable images' if skipped else ''
        if self.live:
            self.live.show(step, f'{left} left  {text}{more}')
        else:
            say(f'step {step:>7,}/{self.config.num_steps:,}  {text}  ETA {left}{more}')

    def _save_and_evaluate(self, state: TrainState, step: int, log: StepLog) -> None:
        """Does what is due after a step; saving comes first, so that no later error loses it."""
        evaluate = self._is_due(step, self.config.eval.every_steps)
        if not evaluate and not self.saves.is_due(step):
            return
        log.settle(self.record.written_step)
        log.meter.pause()
        self._save(state, step)
        if evaluate:
            self._evaluate(state, step)
        log.meter.start()

    def _save(self, state: TrainState, step: int) -> None:
        if not self.saves.asks_for_times(step):
            self.record.save(state, step)
            if line := self.saves.saved(step):
                say(line)
            return
        self.record.wait()  # of an earlier save, if there was one
        started = time.perf_counter()
        self.record.save(state, step)
        saved = time.perf_counter()
        self.record.wait()
        say(self.saves.choose(step, saved - started, time.perf_counter() - started))

    def _evaluate(self, state: TrainState, step: int, batch_stats: Any | None = None) -> None:
        """Evaluates a saved state, and stores the values beside it; a signal leaves it undone.

        Args:
          state: as it came out of its last step.
          step: its step.
          batch_stats: running statistics that were recalibrated before, if any were.
        """
        if step == self.config.num_steps and self.config.eval.recalibrate_batches:
            if batch_stats is None:
                batch_stats = self.evaluator.recalibrate(state)
                if batch_stats is None:
                    return
                self.record.write_recalibrated(step, batch_stats)
                say('running statistics recalibrated over '
                    f'{self.config.eval.recalibrate_batches} batches')
            state = with_statistics(state, batch_stats)
        values = self.evaluator.evaluate(state)
        if values is None:
            return
        self.record.write_evaluation(step, values)
        say(f'evaluation at step {step:,}: {self._line("eval", values)}  '
            f'on {values["eval/count"]:,} images')

    def _line(self, kind: str, values: Mapping[str, float]) -> str:
        """Formats the values under 'train/' or 'eval/' as the task wants."""
        return self.program.task.line({tag.removeprefix(f'{kind}/'): value
                                       for tag, value in values.items()})
