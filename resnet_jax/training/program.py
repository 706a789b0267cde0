"""Builds data, network, optimizer and the jitted steps over a mesh from a config."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from resnet_jax import config as config_lib
from resnet_jax import data, models, storage, tasks
from resnet_jax.data.sizes import pair
from resnet_jax.distributed import sharding
from resnet_jax.errors import UserError
from resnet_jax.output import say, warn
from resnet_jax.tasks import Task
from resnet_jax.training import choices, optimizers, schedules, state
from resnet_jax.training import step as steps
from resnet_jax.training.choices import Machine
from resnet_jax.training.state import TrainState
from resnet_jax.weights import Weights, stored

# The initial state is computed once, and optimising its program takes far longer than running it.
RUNS_ONCE_ON_CPU = {'xla_backend_optimization_level': 0}


@dataclasses.dataclass(frozen=True)
class Program:
    """The network, data, optimizer and steps of a config; not yet compiled.

    Attributes:
      config: the config.
      mesh: the devices.
      task: what the network is trained for.
      model: the network.
      optimizer, schedule: see `resnet_jax.training.optimizers` and `schedules`.
      train_data, eval_data: pipelines; see `resnet_jax.data`.
      create_state: () -> TrainState before the first step; `seed` replaces the config's.
      state: shapes, dtypes and shardings of the state.
    """

    config: ConfigDict
    mesh: Mesh
    task: Task
    model: nn.Module
    optimizer: optax.GradientTransformationExtraArgs
    schedule: schedules.Schedule
    train_data: data.Pipeline
    eval_data: data.Pipeline
    create_state: Callable[..., TrainState]
    state: Any

    def initial_state(self) -> TrainState:
        """Creates the state before the first step, on the mesh: random, or as in `config.init`.

        Raises:
          UserError: the weights to start from cannot be read, or are another network's.
        """
        cpu = self.mesh.devices.flat[0].platform == 'cpu'
        create = jax.jit(self.create_state, out_shardings=self.shardings,
                         compiler_options=RUNS_ONCE_ON_CPU if cpu else None)
        # The seed is an input of the program, so that runs with different seeds share one program.
        created = create(seed=np.uint32(self.config.seed & 0xFFFFFFFF))
        checkpoint = self.config.init.checkpoint
        if not checkpoint:
            return created
        weights = stored.read(storage.path_of(checkpoint))
        weights = dataclasses.replace(weights, variables=self.task.started(weights.variables))
        # Without a new head, what a classifier lacks is new all the same.
        heads = tuple(part for part in self.task.heads if part not in weights.variables['params'])
        if self.config.init.new_head:  # a classifier's is nothing to another task, and vice versa
            known = {*created.params, *weights.variables['params']}
            heads = tuple(name for name in dict.fromkeys(
                (*self.task.heads, *tasks.get(weights.config.task).heads)) if name in known)
        started = state.with_weights(created, weights.variables, weights.normalization, heads)
        say(_loaded(weights, self.config, heads))
        _warn_of_architecture(weights, self.config)
        return started

    def train_step(self, train_state: TrainState, inputs: Any) -> tuple[TrainState,
                   steps.StepReport]:
        """(state, inputs of the training pipeline) -> (state, report)."""
        batch = self.train_data.batch(inputs, train_state.step, train_state.normalization)
        return steps.train_step(
            train_state, batch, inputs['seed'], task=self.task, model=self.model,
            optimizer=self.optimizer, schedule=self.schedule, config=self.config)

    def train_steps(self, train_state: TrainState, inputs: Sequence[Any],
                    count: int) -> tuple[TrainState, steps.StepReport]:
        """Several training steps in a row: (state, reports stacked along a new first axis).

        Args:
          train_state: before the first step.
          inputs: of the training pipeline, for each step, or a single one that all steps share.
          count: steps.
        """
        if count == 1:
            train_state, report = self.train_step(train_state, inputs[0])
            return train_state, jax.tree.map(lambda x: x[None], report)
        if len(inputs) == 1:
            return jax.lax.scan(lambda state, _: self.train_step(state, inputs[0]), train_state,
                                length=count)
        return jax.lax.scan(self.train_step, train_state,
                            jax.tree.map(lambda *steps: jnp.stack(steps), *inputs))

    def lower_train_steps(self, train_state: Any, inputs: Sequence[Any],
                          count: int) -> jax.stages.Lowered:
        """Lowers `train_steps`, with the buffers of the old state reused for the new one.

        Args:
          train_state, inputs, count: see there; shapes may take the place of arrays.
        """
        steps_in_a_row = functools.partial(self.train_steps, count=count)
        return jax.jit(steps_in_a_row, donate_argnums=0,
                       out_shardings=(self.shardings, None)).lower(train_state, inputs)

    def eval_step(self, train_state: TrainState, inputs: Any, index: jax.Array,
                  sums: Any) -> tuple[jax.Array, Any, Any]:
        """Adds the metrics of the batch of this index to the sums; see `Task.evaluate`.

        Returns:
          index + 1, the sums, and the outputs of the batch with its mask, or None without outputs.
        """
        metrics, outputs = self._evaluate(train_state, inputs, index)
        return index + 1, jax.tree.map(jnp.add, sums, metrics), outputs

    def _evaluate(self, train_state: TrainState, inputs: Any, index: jax.Array):
        batch = self.eval_data.batch(inputs, index, train_state.normalization)
        metrics, outputs = self.task.evaluate(
            self.model, train_state.eval_variables, batch, self.config)
        return metrics, None if outputs is None else (outputs, batch['mask'])

    def batch_statistics(self, train_state: TrainState, inputs: Any,
                         step: jax.Array) -> tuple[jax.Array, Any]:
        """(step + 1, BN statistics of the training batch of this step)."""
        batch = self.train_data.batch(inputs, step, train_state.normalization)
        return step + 1, steps.batch_statistics(
            train_state, batch, task=self.task, model=self.model, config=self.config)

    def no_sums(self) -> tuple[jax.Array, Any]:
        """Creates what an evaluation starts from: index 0 and the metrics of no images."""
        return jax.device_put((np.int32(0), self._no_metrics), self.everywhere)

    @functools.cached_property  # tracing the network takes longer than a small evaluation
    def _no_metrics(self) -> Any:
        index = jax.ShapeDtypeStruct((), jnp.int32)
        metrics, _ = jax.eval_shape(self._evaluate, self.state, self.eval_data.input_shapes, index)
        return jax.tree.map(lambda sums: np.zeros(sums.shape, sums.dtype), metrics)

    @property
    def everywhere(self) -> NamedSharding:
        """The sharding of replicated arrays."""
        return NamedSharding(self.mesh, P())

    @property
    def shardings(self) -> Any:
        """The shardings of the state."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.state)


def create_model(config: ConfigDict) -> nn.Module:
    """Creates the network of `config.model`, and checks that it accepts the images.

    Raises:
      UserError: there is no such network, or it cannot take these images.
    """
    config_lib.check_ranges({
        name: value for name, value in config_lib.leaves(config).items()
        if name.startswith('model.') or name in ('data.image_size', 'data.channels')})
    image_shape = (*data.image_size(config.data), config.data.channels)
    try:
        model = tasks.get(config.task).create_model(config)
        jax.eval_shape(lambda: model.init(
            jax.random.key(0), jnp.zeros((1, *image_shape)), train=False))
    except models.ConfigError as error:
        raise UserError(str(error)) from error
    return model.clone(bn_frozen=config.init.freeze_bn)


def completed(config: ConfigDict) -> ConfigDict:
    """Fills in fields that are not set: the architecture, the image size, those of the task.

    Where `init.checkpoint` names weights, an empty `model.depth` stands for their architecture, and
    an empty `data.image_size` for their image size; a fork of such a run, by `init.resume_from`,
    takes both from its origin. The rest is up to the task, which comes first, since weights may
    have to be downloaded; see `Task.complete`.

    Raises:
      UserError: a field is out of range, or the weights or the data are missing.
    """
    config_lib.check_ranges(config_lib.given(config))
    config = tasks.get(config.task).complete(config)
    origin = config.init.checkpoint
    if config.model.depth is None:
        origin = origin or config.init.resume_from
        if not origin:
            raise UserError('model.depth is not set; pass --config.model.depth=N, or '
                            '--config.init.checkpoint=DIR for the architecture of trained weights.')
    if origin and None in (config.model.depth, config.data.image_size):
        config = config.copy_and_resolve_references()
        weights = stored.config_of(storage.path_of(origin))
        if config.model.depth is None:
            try:
                architecture = models.family_of(weights.model).architecture
            except models.ConfigError as error:
                raise UserError(f'the network of {origin} is unknown: {error}') from error
            for field in ('family', 'depth', *architecture):
                config.model[field] = weights.model[field]
        if config.data.image_size is None:
            config.data.image_size = weights.data.image_size
            if config.data.eval_resize is None and config.data.eval_crop_share is None:
                config.data.eval_resize = weights.data.eval_resize
                config.data.eval_crop_share = weights.data.eval_crop_share
                config.data.eval_size = config.data.eval_size or weights.data.eval_size
    return config


def build(config: ConfigDict, mesh: Mesh, *, blank: bool = False) -> Program:
    """Builds the program that a config describes; compiles nothing.

    Args:
      config: see `resnet_jax.config`.
      mesh: see `sharding.create_mesh`.
      blank: for a program that is compiled but not run, whose data need not be there.

    Raises:
      UserError: a field of the config is wrong, or the data is not there.
    """
    task = tasks.get(config.task)
    config, _ = choices.choose(completed(config), Machine.of(mesh))
    config_lib.check(config, mesh.shape['data'])
    model = create_model(config).clone(num_devices=mesh.size, mesh=mesh)
    if config.eval.recalibrate_batches and not models.family_of(config.model).normalises(
            config.model):
        raise UserError('eval.recalibrate_batches must be 0 for a network without batch '
                        'normalisation.')
    optimizer = optimizers.create(config)
    schedule = schedules.create(config)
    create_pipelines = data.blank_pipelines if blank else data.create_pipelines
    train_data, eval_data, normalization = create_pipelines(
        config, mesh, **task.transforms(config))
    _check_shape(config, train_data)
    task.check(config, train_data.source, eval_data.source)
    epoch = math.ceil(train_data.num_images / config.batch_size)
    if config.eval.recalibrate_batches > epoch:
        config = config.copy_and_resolve_references()
        config.eval.recalibrate_batches = epoch
    create_state = functools.partial(
        state.create_state, model, optimizer, schedule, train_data.image_shape, seed=config.seed,
        use_ema=config.optimizer.ema_decay is not None, normalization=normalization)
    shapes = jax.eval_shape(create_state)
    shardings = sharding.state_shardings(config, mesh, shapes)
    return Program(config, mesh, task, model, optimizer, schedule, train_data, eval_data,
                   create_state, jax.tree.map(_placed, shapes, shardings))


def _loaded(weights: Weights, config: ConfigDict, heads: Sequence[str]) -> str:
    """What is printed about the weights that a run starts from."""
    count = len(jax.tree.leaves([
        part for parts in weights.variables.values() for name, part in parts.items()
        if name not in heads]))
    return (f'loaded {count} arrays of {models.title(config.model)} from {config.init.checkpoint}'
            + (f'; not loaded: {", ".join(heads)}' if heads else ''))


def _warn_of_architecture(weights: Weights, config: ConfigDict) -> None:
    """Warns where the network differs from that of its first weights in what no array shows."""
    try:
        family = models.family_of(weights.config.model)
    except models.ConfigError:
        return
    differing = {field: weights.config.model[field] for field in family.architecture
                 if weights.config.model[field] != config.model[field]}
    if differing and weights.config.model.family == config.model.family:
        warn(f'the weights of {config.init.checkpoint} are of a network with other fields; to '
             'use them as they were trained, pass '
             + ' '.join(f'--config.model.{field}={value}' for field, value in differing.items())
             + '.')


def _placed(leaf, placement: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placement)


def _check_shape(config: ConfigDict, pipeline: data.Pipeline) -> None:
    sizes = [data.image_size(config.data), *map(tuple, config.data.canvases)]
    if config.data.window is not None:
        sizes.append(pair(config.data.window))
    if pipeline.image_shape not in [(*size, config.data.channels) for size in sizes]:
        raise UserError(
            f'{config.data.source} has images of shape {pipeline.image_shape}, but data.image_size '
            f'and data.channels say {(*sizes[0], config.data.channels)}.')
