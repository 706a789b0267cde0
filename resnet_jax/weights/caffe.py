"""The authors' Caffe models: https://github.com/KaimingHe/deep-residual-networks.

A .caffemodel is a protocol buffer. Only the messages that hold weights are described here, with the
field numbers of caffe.proto; all others are skipped.
"""

import functools
import pathlib
import re
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from resnet_jax.errors import UserError
from resnet_jax.weights.files import check_finite
from resnet_jax.weights.recognise import Named

# Mean of the ImageNet training images in red, green and blue, in grey levels: that of the authors'
# ResNet_mean.binaryproto over its 224 x 224 pixels. A network that takes images of any size needs
# one colour.
MEAN = (123.15163, 115.90288, 103.06262)

# message: (field, type, number, repeated)
_SCHEMA = {
    'BlobShape': [('dim', 'int64', 1, True)],
    'BlobProto': [('num', 'int32', 1, False), ('channels', 'int32', 2, False),
                  ('height', 'int32', 3, False), ('width', 'int32', 4, False),
                  ('data', 'float', 5, True), ('shape', 'BlobShape', 7, False)],
    'ConvolutionParameter': [('stride', 'uint32', 6, True)],
    'LayerParameter': [('name', 'string', 1, False), ('type', 'string', 2, False),
                       ('blobs', 'BlobProto', 7, True),
                       ('convolution_param', 'ConvolutionParameter', 106, False)],
    'NetParameter': [('name', 'string', 1, False), ('layer', 'LayerParameter', 100, True)],
}
# What the arrays of a layer are, by the type of the layer.
_PARTS = {
    'Convolution': ('weight', 'bias'), 'InnerProduct': ('weight', 'bias'),
    'Scale': ('weight', 'bias'), 'BatchNorm': ('running_mean', 'running_var', 'factor'),
}
_BRANCH = re.compile(r'(?:res|bn|scale)([2-5])([a-z])(\d*)_branch(1|2[abc])')


@functools.cache
def message_class(name: str) -> type[message.Message]:
    """The protocol buffer class of a message in the schema, such as 'NetParameter'."""
    file = descriptor_pb2.FileDescriptorProto(
        name='resnet_jax/caffe.proto', package='caffe', syntax='proto2')
    field_type = descriptor_pb2.FieldDescriptorProto
    for title, fields in _SCHEMA.items():
        described = file.message_type.add(name=title)
        for field, kind, number, repeated in fields:
            label = field_type.LABEL_REPEATED if repeated else field_type.LABEL_OPTIONAL
            added = described.field.add(name=field, number=number, label=label)
            if kind in _SCHEMA:
                added.type, added.type_name = field_type.TYPE_MESSAGE, f'.caffe.{kind}'
            else:
                added.type = getattr(field_type, f'TYPE_{kind.upper()}')
                added.options.packed = repeated and kind != 'string' and title != (
                    'ConvolutionParameter')
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f'caffe.{name}'))


def read(path: pathlib.Path) -> tuple[Named, str]:
    """The tensors of a .caffemodel under torchvision's names, for images in RGB.

    Caffe's networks see blue first: the first convolution is turned round. Its batch normalisation
    stores sums and what to divide them by; the scale is a layer of its own.

    Returns:
      The tensors, and where a bottleneck has its stride, 'v1' or 'v1.5'.

    Raises:
      UserError: the file is truncated, damaged or holds NaN, or is not a residual network.
    """
    net = message_class('NetParameter')()
    try:
        net.ParseFromString(path.read_bytes())
    except (message.DecodeError, OSError) as error:
        raise UserError(f'{path} is damaged or truncated: it cannot be read as a Caffe model '
                        f'({" ".join(str(error).split())[:200]}).') from error
    tensors, original, strides = {}, {}, {}
    for layer in net.layer:
        if not layer.blobs:
            continue
        name = _torch_name(_text(layer.name), _text(layer.type), path)
        blobs = [_array(blob, layer.name, path) for blob in layer.blobs]
        parts = _PARTS.get(_text(layer.type), ())
        if len(blobs) > len(parts):
            raise UserError(f'{path}: the layer {layer.name} of type {layer.type!r} with '
                            f'{len(blobs)} arrays is not part of a residual network.')
        found = dict(zip(parts, blobs, strict=False))
        if layer.type == 'BatchNorm':
            if len(blobs) != 3 or found['factor'].size != 1:
                raise UserError(f'{path}: the layer {layer.name} lacks a mean, variance or factor.')
            factor = float(found.pop('factor').reshape(()))
            found = {part: array / factor if factor else np.zeros_like(array)
                     for part, array in found.items()}
        elif layer.type == 'Convolution':
            strides[name] = layer.convolution_param.stride[:1]
        tensors |= {f'{name}.{part}': array for part, array in found.items()}
        original |= {f'{name}.{part}': f'{layer.name} ({part})' for part in found}
    check_finite({original[name]: array for name, array in tensors.items()}, path)
    if 'conv1.weight' not in tensors or tensors['conv1.weight'].ndim != 4:
        raise UserError(f'{path} is not a Caffe model of a residual network: it lacks the layer '
                        'conv1.')
    tensors['conv1.weight'] = tensors['conv1.weight'][:, ::-1]
    # What the file does not say is as the authors had it.
    stride_in = 'v1.5' if list(strides.get('layer2.0.conv2', [])) == [2] else 'v1'
    return Named(tensors, 'the authors', original), stride_in


def settings(stride_in: str) -> dict[str, Any]:
    """How a network of the authors is used, as `resnet_jax.weights.read` takes it.

    Args:
      stride_in: where a bottleneck has its stride, 'v1' or 'v1.5'.
    """
    return {'model': {'stride_in': stride_in, 'pool_pad': 'end'},
            'mean': np.array(MEAN) / 255, 'std': np.full(3, 1 / 255)}


def _text(value: str | bytes) -> str:
    """A string of a message; protobuf gives bytes where they are no UTF-8."""
    return value if isinstance(value, str) else value.decode(errors='replace')


def _torch_name(name: str, kind: str, path: pathlib.Path) -> str:
    if kind == 'InnerProduct':
        return 'fc'
    if name in ('conv1', 'bn_conv1', 'scale_conv1'):
        return 'conv1' if name == 'conv1' else 'bn1'
    match = _BRANCH.fullmatch(name)
    if match is None:
        raise UserError(f'{path}: the layer {name!r} is not part of a residual network of '
                        'the authors.')
    stage, letter, number, branch = match.groups()
    # Blocks are a, b, c, …, or a, b1, b2, … where there are many.
    block = int(number) if number else ord(letter) - ord('a')
    prefix = f'layer{int(stage) - 1}.{block}.'
    convolution = kind == 'Convolution'
    if branch == '1':
        return prefix + ('downsample.0' if convolution else 'downsample.1')
    return prefix + ('conv' if convolution else 'bn') + str('abc'.index(branch[1]) + 1)


def _array(blob: message.Message, layer: str, path: pathlib.Path) -> np.ndarray:
    """float32, in the shape that the blob says; old files give four dimensions for everything."""
    data = np.array(blob.data, np.float32)
    if blob.HasField('shape'):
        shape = tuple(blob.shape.dim)
    else:
        shape = (blob.num, blob.channels, blob.height, blob.width)
        while len(shape) > 1 and shape[0] == 1:
            shape = shape[1:]
    if min(shape, default=1) < 0 or data.size != int(np.prod(shape, dtype=object)):
        raise UserError(f'{path} is damaged: the layer {layer} declares {shape} but '
                        f'holds {data.size} numbers.')
    return data.reshape(shape)
