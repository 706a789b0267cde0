"""Deep Residual Learning for Image Recognition (He et al., CVPR 2016) in JAX and Flax."""

from __future__ import annotations

import os
import typing

if typing.TYPE_CHECKING:
    from collections.abc import Mapping

    from ml_collections import ConfigDict

    from resnet_jax.models.backbone import WithHead
    from resnet_jax.tasks.classification.classifier import Classifier
    from resnet_jax.training.start import Trained

__version__ = '0.1.0'
__all__ = ['__version__', 'create', 'load', 'train']


def load(path: str | os.PathLike) -> Classifier:
    """Loads a trained network from a run's workdir, from converted weights, or by its name.

    >>> network = resnet_jax.load(workdir)
    >>> images = np.zeros((2, 32, 32, 3), np.uint8)
    >>> network.predict(images).shape  # probabilities
    (2, 10)
    >>> network.predict(images[0]).sum().round(4)
    np.float32(1.0)
    >>> network.features(images, stage='stage2').shape
    (2, 16, 16, 16)
    >>> maps = network.features(images)  # of all stages
    >>> list(maps)
    ['stem', 'stage1', 'stage2', 'stage3', 'pool']
    >>> maps['pool'].shape  # the input of the last layer
    (2, 32)
    >>> sorted(network.variables)
    ['batch_stats', 'params']

    Args:
      path: a workdir, whose latest checkpoint is loaded; one of its checkpoints,
        `workdir/checkpoints/<step>`; a folder that `resnet_jax.convert` wrote; or the name of
        weights at the Hugging Face hub, such as 'hf:timm/resnet50.a1_in1k', which are downloaded
        and converted once.

    Returns:
      See `resnet_jax.tasks.classification.classifier.Classifier`.

    Raises:
      resnet_jax.errors.UserError: there is no checkpoint, or it is damaged, or it cannot be
        downloaded.
    """
    from resnet_jax.tasks import loading  # JAX is imported only when it is needed

    return loading.load(path)


def create(name: str, **fields: typing.Any) -> WithHead:
    """Creates a network of the paper as a Flax module; `init` draws its weights.

    >>> network = resnet_jax.create('resnet50', num_classes=10)
    >>> network.stage_sizes
    (3, 4, 6, 3)
    >>> images = np.zeros((2, 32, 32, 3), np.float32)
    >>> network = resnet_jax.create('resnet8', width=4)  # a CIFAR network
    >>> variables = network.init(jax.random.key(0), images, train=False)
    >>> network.apply(variables, images, train=False).shape  # class scores
    (2, 10)
    >>> maps = network.apply(variables, images, train=False, method='features')
    >>> {stage: maps[stage].shape for stage in maps}['stage3']
    (2, 8, 8, 16)

    Args:
      name: 'resnet18', 'resnet34', 'resnet50', 'resnet101', 'resnet152'; for CIFAR 'resnet20' and
        any other depth 6n + 2; 'plain18', … without shortcuts; 'vgg16', 'vgg19', and 'vgg16_bn',
        'vgg19_bn' with batch normalisation; and what others made of them, 'resnext50_32x4d',
        'wide_resnet50_2', 'resnet50d', and 'resnetv2_50' or, for CIFAR, 'resnetv2_110'.
      **fields: what differs from the paper; see `resnet_jax.models.resnet.ResNetBackbone` and
        `resnet_jax.models.vgg.VGGBackbone`.

    Returns:
      A `resnet_jax.models.backbone.WithHead`. Its images are float32 [N, H, W, C], normalised.

    Raises:
      ValueError: there is no network of this name; the message lists the nearest names.
    """
    from resnet_jax import models

    return models.named(name).clone(**fields)


def train(config: ConfigDict | str | os.PathLike, workdir: str | os.PathLike | None = None,
          fields: Mapping[str, typing.Any] | None = None) -> Trained:
    """Trains and evaluates the network of a config, as `python -m resnet_jax.main` does.

    >>> fields = {'num_steps': 20, 'model.depth': 8, 'schedule.warmup': 'none'}
    >>> trained = resnet_jax.train('configs/digits_r20.py', workdir, fields)  # doctest: +ELLIPSIS
    workdir: ...
    >>> trained.metrics['eval/count']
    297
    >>> trained.rows[0]['step']
    20
    >>> trained.network.predict(np.zeros((2, 8, 8, 1), np.uint8)).shape
    (2, 10)

    Progress is printed, in a notebook below its cell. Interrupting the notebook's kernel, Ctrl-C
    and SIGTERM save a checkpoint and raise `Stopped`; the same call then resumes from it. XLA reads
    its options once, so `xla_preset` only takes effect if JAX has not computed anything before. A
    job of several processes needs the command.

    Args:
      config: a config, or the path of a config file; see `resnet_jax.config`.
      workdir: folder of the run, which resumes if it contains checkpoints. None: runs/NAME, for a
        config file NAME.py.
      fields: values that replace those of the config, such as {'model.depth': 56}.

    Returns:
      See `resnet_jax.training.start.Trained`.

    Raises:
      resnet_jax.errors.UserError: a field is unknown or wrong, the data is missing, or the workdir
        holds another run, is in use or cannot be written to.
      resnet_jax.training.log.Diverged: the loss is no longer finite; the checkpoints stay in place.
      resnet_jax.training.loop.Stopped: a signal came; the state has been saved.
    """
    from ml_collections import ConfigDict

    from resnet_jax import cli, storage
    from resnet_jax import config as config_lib
    from resnet_jax.errors import UserError
    from resnet_jax.training import start

    if not isinstance(config, ConfigDict):
        config = os.fspath(config)
        workdir = workdir or f'runs/{cli.name_of(config)}'
        config = cli.read_config([f'--config={config}'])
    if workdir is None:
        raise UserError('give the folder of the run, such as resnet_jax.train(config, '
                        "'runs/digits').")
    config = config_lib.changed(config, fields or {})
    start.prepare(config)
    return start.train(config, storage.path_of(workdir))
