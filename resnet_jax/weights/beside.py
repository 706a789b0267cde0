"""Reads the description of a network in the config.json that Hugging Face and timm ship."""

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from resnet_jax.errors import UserError
from resnet_jax.weights import foreign

_HUGGING_FACE = ('ResNetForImageClassification', 'resnet')
_FILTERS = ('bilinear', 'bicubic')  # of `data.eval_filter`; the first stands for any other
_PILLOW = {2: 'bilinear', 3: 'bicubic'}  # numbers of PIL.Image.Resampling
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
      data: fields of the config: the size of the input, and how test images are scaled and cropped.
      classes: the names of the classes, unless they are only numbers.
    """

    architecture: str | None = None
    problem: str | None = None
    model: Mapping[str, Any] = {}
    mean: Any = None
    std: Any = None
    data: Mapping[str, Any] = {}
    classes: tuple[str, ...] | None = None


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
    try:
        data = _timm_data(pretrained) or _hugging_face_data(processor)
        classes = _classes(config)
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f'the description of {path} beside it is damaged: {error}.') from error
    told = Beside(mean=mean, std=std, data=data, classes=classes)
    name = config.get('architecture', pretrained.get('architecture'))
    if name is not None:
        name = str(name).split('.')[0]
        return told._replace(architecture=name, problem=_timm_problem(name, config),
                             model={'stride_in': 'v1.5'})
    names = config.get('architectures') or config.get('model_type')
    if not names:
        return told
    name = str(names[0] if isinstance(names, list) else names)
    stride_in = 'v1' if config.get('downsample_in_bottleneck') else 'v1.5'
    return told._replace(architecture=name, problem=_hugging_face_problem(name, config),
                         model={'stride_in': stride_in})


def _timm_data(pretrained: Mapping[str, Any]) -> dict[str, Any]:
    """How timm tests a network: by crop_pct of a size, both of which can have a test_ of their own.

    Training and testing in different sizes is `data.eval_size`.
    """
    if 'input_size' not in pretrained:
        return {}
    size, test_size = (_size(list(sizes)[1:]) for sizes in (
        pretrained['input_size'], pretrained.get('test_input_size') or pretrained['input_size']))
    share = pretrained.get('test_crop_pct') or pretrained.get('crop_pct') or 0.875
    return {'data.image_size': size, 'data.eval_size': test_size if test_size != size else None,
            **_crop(share, pretrained.get('interpolation', 'bicubic'))}


def _hugging_face_data(processor: Mapping[str, Any]) -> dict[str, Any]:
    """How ConvNextImageProcessor, which their ResNets have, scales and crops images.

    From 384 pixels it squeezes them into a square, of which there is none here.
    """
    kind = str(processor.get('image_processor_type', processor.get('feature_extractor_type')))
    if not kind.startswith('ConvNext') or 'size' not in processor:
        return {}
    size = processor['size']
    size = _size([size['shortest_edge'] if isinstance(size, dict) else size] * 2)
    return {'data.image_size': size, 'data.eval_size': None,
            **_crop(processor.get('crop_pct') or 224 / 256,
                    _PILLOW.get(processor.get('resample', 2)))}


def _crop(share: Any, kernel: Any) -> dict[str, Any]:
    share = float(share)
    if not 0 < share <= 1:
        raise ValueError(f'a crop of {share} of the image')
    return {'data.eval_resize': None, 'data.eval_crop_share': share,
            'data.eval_filter': kernel if kernel in _FILTERS else _FILTERS[0]}


def _size(sides: list[Any]) -> Any:
    """As `data.image_size` has it: a number for a square, otherwise (height, width)."""
    if len(sides) != 2 or not all(isinstance(side, int) and 0 < side < 2**16 for side in sides):
        raise ValueError(f'a size of {sides}')
    return sides[0] if sides[0] == sides[1] else tuple(sides)


def _classes(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """timm's label_names, or Hugging Face's id2label unless it holds LABEL_0, LABEL_1, …."""
    names = config.get('label_names') or config.get('id2label')
    if isinstance(names, dict):
        names = [names.get(str(index)) for index in range(len(names))]
    if not names or all(str(name) == f'LABEL_{index}' for index, name in enumerate(names)):
        return None
    if not all(isinstance(name, str) for name in names):
        raise ValueError('the names of the classes are not texts by number')
    return tuple(names)


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
