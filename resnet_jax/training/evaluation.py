"""Evaluates trained networks, by their task's test protocols or as in training."""

import contextlib
import copy
import dataclasses
import math
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from resnet_jax.distributed import sharding
from resnet_jax.errors import UserError
from resnet_jax.tasks import Report, Task
from resnet_jax.tasks.loading import load_all
from resnet_jax.training import program as program_lib
from resnet_jax.training.program import Program
from resnet_jax.training.signals import StopRequest
from resnet_jax.training.state import TrainState, recalibrate
from resnet_jax.training.validation import Evaluator
from resnet_jax.weights.stored import weights_state
from resnet_jax.xla import backend, compilation_cache


def evaluate(paths: Sequence[str], config: ConfigDict | None, recalibrate_batches: int,
             options: Mapping[str, Any], given: Sequence[str],
             set_fields: Collection[str] = ()) -> Report:
    """Evaluates one network, or several as an ensemble.

    Args:
      paths: workdirs, checkpoints or converted weights.
      config: whose data is used; None: that of the first network.
      recalibrate_batches: training batches over which BN statistics are first recomputed; 0:
        those of the checkpoints.
      options: for the task's test protocols, by name.
      given: the options that the user has set.
      set_fields: the fields of the config that the user has set, by path.

    Raises:
      UserError: the networks or the data are not there, do not fit one another, or the task does
        not know an option.
    """
    backend.devices()
    task, networks = load_all(paths)
    config = data_config(config, networks, paths)
    unknown = [name for name in given if name not in task.test_options]
    if unknown:
        raise UserError(f'--{unknown[0]} does not apply to the task {networks[0].config.task}.')
    compilation_cache.use(config.compilation_cache)
    if recalibrate_batches:
        networks = [recalibrated(network, config, recalibrate_batches) for network in networks]
    if task.test is not None:
        return task.test(networks, paths, config, {**options, 'set_fields': set_fields})
    if len(networks) > 1:
        raise UserError(f'networks of the task {networks[0].config.task} are evaluated one at a '
                        'time; give one --checkpoint.')
    return _as_in_training(task, networks[0], config)


def data_config(config: ConfigDict | None, networks: Sequence[Any],
                paths: Sequence[str]) -> ConfigDict:
    """The config whose data networks are tested on: the one that was given, or the first one's.

    Raises:
      UserError: there is none.
    """
    config = config or networks[0].config
    if config.data.source is None:
        raise UserError(f'{paths[0]} does not say which data to evaluate on; pass --config=FILE '
                        'and, for a folder of images, --config.data.path=DIR.')
    return config


def _as_in_training(task: Task, network: Any, config: ConfigDict) -> Report:
    with contextlib.redirect_stdout(sys.stderr):  # its progress: stdout is for the result
        program, state = _with_network(network, config)
        values = Evaluator(program, StopRequest()).evaluate(state)
    if values is None:
        raise UserError('stopped by a signal before the evaluation was complete.')
    names = {tag.removeprefix('eval/'): value for tag, value in values.items()}
    # JSON has no NaN.
    measured = {tag: value if math.isfinite(value) else None for tag, value in values.items()}
    return Report(measured, f'{task.line(names)}  on {values["eval/count"]:,} images')


def recalibrated(network: Any, config: ConfigDict, batches: int) -> Any:
    """Recomputes the running statistics of a network as an average over training batches.

    Args:
      network: see `Task.load`.
      config: whose training data and batches are used.
      batches: how many.

    Raises:
      UserError: the network has no batch normalisation, or the config describes no training.
    """
    if not network.variables.get('batch_stats'):
        raise UserError('--recalibrate_batches is for networks with batch normalisation.')
    program, state = _with_network(network, config)
    statistics = jax.jit(program.batch_statistics, out_shardings=program.everywhere)

    def collect():
        with contextlib.closing(program.train_data.inputs(0)) as feed:
            for step in range(batches):
                index = jax.device_put(np.int32(step), program.everywhere)
                yield statistics(state, next(feed), index)[1]

    batch_stats = jax.tree.map(np.asarray, recalibrate(collect()))
    return dataclasses.replace(
        network, variables={**network.variables, 'batch_stats': batch_stats})


def _with_network(network: Any, config: ConfigDict) -> tuple[Program, TrainState]:
    """The program of a config's data, with the task, architecture and weights of a network."""
    config, virtual = copy.deepcopy(config), config.model.virtual_batch_size
    config.model = copy.deepcopy(network.config.model)  # that of the network stays as it is
    config.model.virtual_batch_size = virtual
    config.task = network.config.task
    config.data.image_size = config.data.image_size or network.config.data.image_size
    config.init.update(checkpoint='', resume_from='')  # where others' weights come from
    program = program_lib.build(config, sharding.create_mesh(config))
    state = TrainState(**weights_state(network.variables, network.normalization))
    return program, jax.device_put(state, program.everywhere)
