"""What the training loop and the commands know of a task: an object of pure functions."""

import dataclasses
import difflib
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from resnet_jax import config as config_lib
from resnet_jax import models
from resnet_jax.data import Source
from resnet_jax.errors import UserError
from resnet_jax.weights import Weights

# Where the tasks of the project are; any other task is named by its module.
TASKS = {
    'classification': 'resnet_jax.tasks.classification.task',
    'detection': 'resnet_jax.tasks.detection.task',
    'localization': 'resnet_jax.tasks.localization.task',
    'localization_rcnn': 'resnet_jax.tasks.localization.rcnn_task',
}


class Headline(NamedTuple):
    """The number that decides which checkpoint is the best.

    Attributes:
      tag: such as 'eval/top1_error'.
      name: such as 'top-1 error', for messages.
      unit: printed behind the number, such as ' %'.
      lower_is_better: whether the best checkpoint has the lowest value.
    """

    tag: str
    name: str
    unit: str = ''
    lower_is_better: bool = True

    def rank(self, values: Mapping[str, float | None]) -> float | None:
        """A key that sorts evaluations, the best first; None if this number was not measured.

        Args:
          values: by their tags.
        """
        if self.tag not in values:
            return None
        value = values[self.tag]
        if value is None or not math.isfinite(value):
            return math.inf
        return value if self.lower_is_better else -value

    def text(self, values: Mapping[str, float]) -> str:
        """The number in words, such as 'top-1 error 1.68 %'."""
        return f'{self.name} {values[self.tag]:.2f}{self.unit}'


class Report(NamedTuple):
    """The result of a task's own test protocol.

    Attributes:
      values: by their tags; everything that JSON can hold.
      text: the same for a person to read.
    """

    values: Mapping[str, Any]
    text: str


class Answer(NamedTuple):
    """The prediction for one image.

    Attributes:
      fields: keys of the JSON object, beside 'file'.
      lines: printed below the name of the file.
    """

    fields: Mapping[str, Any]
    lines: Sequence[str]


class Predictor(NamedTuple):
    """Predicts images of any size.

    Attributes:
      load: (resnet_jax.data.Item) -> what the network is given: an array, or a tree of arrays.
        Runs in threads.
      answer: (the same with a leading axis [N, …]) -> N answers.
      draw: (uint8 [H, W, C], the image of the file; its Answer) -> a PIL image of both, for
        --draw; None: answers cannot be drawn.
    """

    load: Callable[[Any], Any]
    answer: Callable[[Any], Sequence[Answer]]
    draw: Callable[[Any, Answer], Any] | None = None


class Part(NamedTuple):
    """A part of a network that runs once or several times for an image, for its cost.

    Attributes:
      name: of its output, or of several outputs their common prefix.
      group: such as 'trunk'; the costs of a group are added up.
      parameters: the top of their paths, such as 'stage1'.
      function: (variables, inputs) -> its output, an array or a tree, with a leading axis of 1.
      inputs: shape and dtype of what it is given.
      runs: how often it runs for one image in training, and in a test.
    """

    name: str
    group: str
    parameters: str
    function: Callable[[Any, Any], Any]
    inputs: Any
    runs: tuple[int, int] = (1, 1)


def _unchanged(config: ConfigDict) -> ConfigDict:
    return config


def _no_check(config: ConfigDict, train: Source, test: Source) -> None:
    del config, train, test


@dataclasses.dataclass(frozen=True)
class Task:
    """A task, as pure functions: everything that distinguishes it from other tasks.

    A batch is a dict with a leading image axis N: 'image' float32 [N, H, W, C], 'mask' float32 [N],
    0 for images that pad a batch, and the targets under the names that the source gives them.
    Losses and metrics are sums over images, weighted by the mask, so that they do not depend on how
    a batch is divided over devices or steps.

    Attributes:
      loss: (model, variables, batch, key, config) -> (loss, batch_stats, metrics), in training. The
        loss is the sum over images, float32 []; `batch_stats` are the running statistics after the
        batch, {} without batch normalisation; `metrics` is any tree of sums over images. `key` is
        for dropout and the like.
      evaluate: (model, variables, batch, config) -> (metrics, outputs). The outputs are a tree of
        arrays [N, …] that are collected from all images, for a metric that is not a sum; or None.
      train_report: (metrics) -> {name: float}, among them 'loss', on the host; written to the log
        as train/NAME.
      report: (metrics, outputs, config) -> {name: float}, among them 'count', on the host; written
        as eval/NAME. The outputs are those of all images with mask 1, in the order of the split.
      headline: the number that decides which checkpoint is the best.
      line: ({name: float}) -> str: how the terminal shows a train_report or a report.
      watched: (metrics) -> float32 []: what a schedule watches, lower being better, such as
        the training error in percent.
      load: (weights, path) -> the network of the weights that were read from a path: a frozen
        dataclass with at least their `config`, `variables` and `normalization`. Raises UserError.
      create_model: (config) -> the Flax module, a `models.backbone.Backbone`. Raises
        `models.ConfigError`.
      transforms: (config) -> the arguments `train_transform`, `eval_transform` and `augment` of
        `resnet_jax.data.create_pipelines`, where they differ from classification's.
      complete: (config) -> the config with what this task takes from the data; called before the
        architecture of `init.checkpoint` is filled in.
      check: (config, train, test): raises UserError if one of these sources does not fit the
        config.
      test: (networks, paths, config, flags) -> Report: the task's own test protocols, for
        `evaluate`; `flags` also holds 'set_fields', the fields of the config that the user has set.
        None: a network is evaluated as in training.
      test_options: the flags of `evaluate` that `test` reads.
      predictor: (networks, flags) -> Predictor, for `predict`; None: there are no predictions.
      parts: (model, variables, images) -> the `Part`s in the order in which they run, where some of
        them run several times for an image; all arguments are shapes, the image a single one. None:
        the network runs once.
      exports: for `export`, by the end of a file's name such as '.stablehlo': (network, flags) ->
        the contents of such a file.
      heads: parts of the network that `init.new_head` initialises at random, and that another task
        starting from these weights leaves out. Without `init.new_head`, those that the weights lack
        are initialised at random.
      started: (variables of `init.checkpoint`) -> those that a new run starts from, where a part of
        the network starts from weights of another name.
    """

    loss: Callable[..., tuple[jax.Array, Any, Any]]
    evaluate: Callable[..., tuple[Any, Any]]
    train_report: Callable[[Any], dict[str, float]]
    report: Callable[[Any, Any, ConfigDict], dict[str, float]]
    headline: Headline
    line: Callable[[Mapping[str, float]], str]
    watched: Callable[[Any], jax.Array]
    load: Callable[[Weights, pathlib.Path], Any]
    create_model: Callable[[ConfigDict], nn.Module] = lambda config: models.create(config.model)
    transforms: Callable[[ConfigDict], dict[str, Any]] = lambda config: {}
    complete: Callable[[ConfigDict], ConfigDict] = _unchanged
    check: Callable[[ConfigDict, Source, Source], None] = _no_check
    test: Callable[..., Report] | None = None
    test_options: tuple[str, ...] = ()
    predictor: Callable[..., Predictor] | None = None
    parts: Callable[[Any, Any, Any], Sequence[Part]] | None = None
    exports: Mapping[str, Callable[[Any, Mapping[str, Any]], bytes | bytearray]] = (
        dataclasses.field(default_factory=dict))
    heads: tuple[str, ...] = ('head',)
    started: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda variables: variables


def get(name: str) -> Task:
    """Returns the task that `config.task` names.

    Args:
      name: of `TASKS`, or of a module that can be imported and has a `TASK`, such as
        'my_package.my_task'.

    Raises:
      UserError: there is no such task.
    """
    path = TASKS.get(name, name)
    if not config_lib.is_module(path):
        close = difflib.get_close_matches(name, TASKS, 1)
        hint = f' Did you mean {close[0]}?' if close else ''
        raise UserError(f'task must be one of {", ".join(TASKS)}, or a module with a TASK such as '
                        f'my_package.my_task, got {name!r}.{hint}')
    task = getattr(config_lib.find_module('task', path), 'TASK', None)
    if not isinstance(task, Task):
        raise UserError(f'task={name} must be a module with TASK, a resnet_jax.tasks.Task.')
    return task
