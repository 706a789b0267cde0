"""Reads the description of a network in the config.json that Hugging Face and timm ship."""

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from resnet_jax.errors import UserError
from resnet_jax.weights import foreign

_HUGGING_FACE = ('ResNetForImageClassification', 'resnet')
_BLURRED = re.compile(r'blur|aa\d')
# What timm's create_model may be given without another network coming out.
_HARMLESS = {'num_classes', 'in_chans', 'drop_rate', 'drop_path_rate', 'zero_init_last', 'img_size'}


class Beside(NamedTuple):
    """What the files beside weights say; None and {} where they say nothing.

    Attributes:
      architecture: its name, without timm's tag of the training (resnet50 of resnet50.a1_in1k).
      problem: why this architecture does not convert, whatever its names and shapes.
      model: fields of `config.model`.
      mean, std: what is taken from the input, as it stands there.
    """

    architecture: str | None = None
    problem: str | None = None
    model: Mapping[str, Any] = {}
    mean: Any = None
    std: Any = None


def read(path: pathlib.Path) -> Beside:
    """Reads config.json and preprocessor_config.json in the folder of a file of weights.

    Raises:
      UserError: one of them is there, but cannot be read.
    """
    config, processor = _json(path, 'config.json'), _json(path, 'preprocessor_config.json')
    pretrained = config.get('pretrained_cfg')
    pretrained = pretrained if isinstance(pretrained, dict) else {}
    mean = pretrained.get('mean', processor.get('image_mean'))
    std = pretrained.get('std', processor.get('image_std'))
    name = config.get('architecture', pretrained.get('architecture'))
    if name is not None:
        name = str(name).split('.')[0]
        return Beside(name, _timm_problem(name, config), {'stride_in': 'v1.5'}, mean, std)
    names = config.get('architectures') or config.get('model_type')
    if not names:
        return Beside(mean=mean, std=std)
    name = str(names[0] if isinstance(names, list) else names)
    stride_in = 'v1' if config.get('downsample_in_bottleneck') else 'v1.5'
    return Beside(name, _hugging_face_problem(name, config), {'stride_in': stride_in}, mean, std)


def _timm_problem(name: str, config: Mapping[str, Any]) -> str | None:
    if _BLURRED.search(name):
        return ('blurs where it down-samples (anti-aliasing), although its tensors look like those '
                'of a plain network')
    if not any(re.fullmatch(family.timm, name) for family in foreign.FAMILIES.values()):
        return 'is not known to be a network of the paper'
    arguments = config.get('model_args') or {}
    if not isinstance(arguments, dict):
        arguments = {'model_args': arguments}
    changes = {name: value for name, value in {
        'global_pool': config.get('global_pool', 'avg'), **arguments}.items()
        if name not in _HARMLESS and (name, value) != ('global_pool', 'avg')}
    return f'it modifies by {json.dumps(changes)}' if changes else None


def _hugging_face_problem(name: str, config: Mapping[str, Any]) -> str | None:
    if name not in _HUGGING_FACE:
        return 'is not known to be a network of the paper'
    for option, known in (('model_type', 'resnet'), ('hidden_act', 'relu'),
                          ('downsample_in_first_stage', False)):
        if config.get(option, known) != known:
            return (f'has {option}={json.dumps(config[option])} there, but the networks of the '
                    f'paper have {json.dumps(known)}')
    return None


def _json(path: pathlib.Path, name: str) -> dict[str, Any]:
    """A settings file of the same folder; {} if there is none."""
    beside = path.with_name(name)
    if not beside.is_file():
        return {}
    try:
        content = json.loads(beside.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise UserError(f'{beside}, which describes {path.name}, cannot be read: {error}.') from (
            error)
    if not isinstance(content, dict):
        raise UserError(f'{beside}, which describes {path.name}, does not hold a JSON object.')
    return content
