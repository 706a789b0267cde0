"""What torch.save wrote is read without PyTorch, bit for bit, and nothing in it is run."""

import collections
import io
import os
import pathlib
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from resnet_jax.errors import UserError
from resnet_jax.weights import files, torch_file

torch = pytest.importorskip('torch', reason='writing such files needs PyTorch')

FORMATS = pytest.mark.parametrize('is_zip', [True, False])
SAMPLE = 'cifar10_resnet20_torch.th'


class Calls:
    """Unpickling it calls a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def save(content, path, is_zip=True, **options):
    torch.save(content, path, _use_new_zipfile_serialization=is_zip, **options)
    return path


def bits(array):
    if isinstance(array, torch.Tensor):
        array = array.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return np.ascontiguousarray(array).tobytes()


def assert_same(found, expected):
    """Containers, texts and numbers are equal, and tensors in every bit."""
    if isinstance(expected, torch.Tensor):
        assert found.array.shape == tuple(expected.shape)
        assert found.array.dtype.name == str(expected.dtype).removeprefix('torch.')
        assert bits(found.array) == bits(expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for name in expected:
            assert_same(found[name], expected[name])
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, torch.dtype):
        assert found == str(expected).removeprefix('torch.')
    else:
        assert found == expected


def many_tensors():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(4, 5, 6, generator=generator)
    weights = {str(kind): (base * 100).to(kind) for kind in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
        torch.int16, torch.int8, torch.uint8, torch.bool)}
    return collections.OrderedDict(
        **weights, permuted=base.permute(2, 0, 1), sliced=base[1:, ::2, 3], offset=base[3, 4, 5],
        expanded=base[0, 0, :1].expand(3, 7), channels_last=torch.randn(
            2, 3, 4, 5, generator=generator).to(memory_format=torch.channels_last),
        empty=torch.zeros(0, 3), number=torch.tensor(2.5), parameter=torch.nn.Parameter(base),
        special=torch.tensor([float('nan'), float('-inf'), -0.0, 1e-45]))


@FORMATS
def test_every_tensor_has_the_bits_that_pytorch_reads(is_zip, tmp_path):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    module(torch.ones(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    content = {'tensors': many_tensors(), 'state_dict': module.state_dict(), 'epoch': 3,
               'optimizer': optimizer.state_dict(), 'size': torch.Size((2, 3)), 'best': 91.25,
               'dtype': torch.bfloat16, 'nothing': [None, True, (), 'naïve', b'bytes', 2**70]}
    for protocol in (2, 3, 4, 5):
        path = save(content, tmp_path / 'a.pth', is_zip, pickle_protocol=protocol)
        found = torch_file.load(path)
        assert_same(found, content)
        if protocol == 2:  # all that PyTorch itself reads and writes
            assert_same(found, torch.load(path, weights_only=True))
    read = files.read_pickle(path)
    expected = module.state_dict()
    assert set(read) == {name for name in expected if 'num_batches' not in name}
    for name in read:
        assert bits(read[name]) == bits(expected[name])


@FORMATS
def test_a_storage_that_is_shared_is_held_once(is_zip, tmp_path):
    base = torch.arange(10_000, dtype=torch.float32)
    path = save({'a': base, 'b': base[5:], 'c': base.view(100, 100).T}, tmp_path / 'a.pth', is_zip)
    found = torch_file.load(path)
    assert path.stat().st_size < 45_000
    assert np.shares_memory(found['a'].array, found['b'].array)
    assert np.shares_memory(found['a'].array, found['c'].array)
    assert not found['a'].array.flags.writeable


def test_numbers_in_the_other_order_are_turned(tmp_path):
    content = {name: tensor for name, tensor in many_tensors().items() if name != 'empty'}
    path = save(content, tmp_path / 'a.pth')
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / 'b.pth', 'w') as big:
        for name in archive.namelist():
            data = archive.read(name)
            if name.endswith('/byteorder'):
                data = b'big'
            elif '/data/' in name:
                kind = next(tensor for tensor in content.values()
                            if tensor.untyped_storage().nbytes() == len(data)
                            and bits(torch.tensor([], dtype=tensor.dtype).set_(
                                tensor.untyped_storage())) == data).element_size()
                data = np.frombuffer(data, f'u{kind}').byteswap().tobytes()
            big.writestr(name, data)
    found, expected = torch_file.load(tmp_path / 'b.pth'), torch.load(
        tmp_path / 'b.pth', weights_only=True)
    assert_same(found, expected)
    assert_same(found, content)


def test_a_published_network_has_the_bits_that_pytorch_reads():
    folder = os.environ.get('RESNET_JAX_TEST_DATA')
    if not folder:
        pytest.skip('RESNET_JAX_TEST_DATA is not set')
    path = pathlib.Path(folder) / SAMPLE
    assert_same(torch_file.load(path), torch.load(path, 'cpu', weights_only=True))
    assert sum(array.size for array in files.read_pickle(path).values()) == 271_098


def test_pytorch_is_not_imported(tmp_path):
    path = save({'state_dict': many_tensors()}, tmp_path / 'a.pth')
    source = ('import pathlib, sys; sys.modules["torch"] = None; '
              'from resnet_jax.weights import torch_file; '
              f'print(len(torch_file.load(pathlib.Path({str(path)!r}))["state_dict"]))')
    done = subprocess.run([sys.executable, '-c', source], capture_output=True, text=True,
                          check=True)
    assert done.stdout == '19\n'


def refuse(path, told):
    with pytest.raises(UserError, match=told) as error:
        files.read_pickle(path)
    assert '\n' not in str(error.value) and len(str(error.value)) < 600


@FORMATS
def test_nothing_that_a_hostile_file_asks_for_is_run(is_zip, tmp_path):
    proof = tmp_path / 'proof'
    command = f'touch {proof}'
    hostile = [Calls(os.system, command), Calls(eval, f'open({str(proof)!r}, "w")'),
               Calls(torch.load, 'x'), Calls(torch.hub.load, 'x', 'y'), Calls(getattr, 'x', 'y'),
               Calls(np.load, 'x'), Calls(torch.tensor, 1), np.zeros(1), torch.nn.Linear(2, 2),
               torch.device('cpu'), pathlib.Path('x'), torch.ones(2, dtype=torch.complex64)]
    for content in hostile:
        save({'a': torch.ones(1), 'x': content}, tmp_path / 'a.pth', is_zip)
        refuse(tmp_path / 'a.pth', 'is refused: it asks for')
    assert not proof.exists()
    pickle.loads(pickle.dumps(hostile[0]))  # it would have made the file
    assert proof.exists()


def by_hand(path, data, entries=(), compression=zipfile.ZIP_STORED):
    """An archive with this pickle."""
    with zipfile.ZipFile(path, 'w', compression) as archive:
        archive.writestr('a/data.pkl', data)
        for name, content in dict(entries).items():
            archive.writestr(name, content)
    return path


def pickled(*, size=(2,), stride=(1,), offset=0, count=4, key='0', kind='FloatStorage', then=(),
            storages=1):
    """A pickle of {'x': tensor} in which anything may be wrong."""

    class Storage:
        def __init__(self, kind):
            self.kind = kind

    class Pickler(pickle._Pickler):
        def persistent_id(self, obj):
            if isinstance(obj, Storage):
                return ('storage', obj.kind, key, 'cpu', count)
            return None

    file = io.BytesIO()
    Pickler(file, 2).dump({'x': Calls(torch._utils._rebuild_tensor_v2, Storage(
        getattr(torch, kind)), offset, size, stride, False, collections.OrderedDict(), *then)})
    return file.getvalue()


def test_a_file_by_hand_is_read(tmp_path):
    path = by_hand(tmp_path / 'a.pth', pickled(size=(2, 2), stride=(1, 2)),
                   {'a/data/0': np.arange(4, dtype='<f4').tobytes()})
    np.testing.assert_array_equal(files.read_pickle(path)['x'], [[0, 2], [1, 3]])


@pytest.mark.parametrize(('change', 'told'), [
    ({'offset': 3}, 'reaches to number 4 of a storage of 4'),
    ({'offset': -1}, 'without a storage, a shape or strides'),
    ({'stride': (-1,)}, 'without a storage, a shape or strides'),
    ({'stride': (4,)}, 'reaches to number 4'),
    ({'stride': (2**60,)}, 'without a storage'),
    ({'stride': (2**45,)}, 'reaches to number'),
    ({'stride': (1, 1)}, 'without a storage'),
    ({'size': 'ab', 'stride': 'ab'}, 'without a storage'),
    ({'size': (True,)}, 'without a storage'),
    ({'size': (2**20,) * 2, 'stride': (0, 0)}, 'more numbers in its tensors than it has bytes'),
    ({'size': (1,) * 65, 'stride': (1,) * 65}, 'without a storage'),
    ({'count': 5}, "'0' has 16 bytes instead of 5 numbers of 4"),
    ({'count': 3}, 'has 16 bytes instead of 3'),
    ({'count': 2**50}, 'unknown type or size'),
    ({'kind': 'DoubleStorage'}, 'has 16 bytes instead of 4 numbers of 8'),
    ({'kind': 'QInt8Storage'}, "asks for 'torch.QInt8Storage'"),
    ({'key': '../../etc/passwd'}, 'damaged'),
    ({'key': 1.5}, 'damaged'),
    ({'then': ({'neg': True},)}, 'conjugated or negated'),
])
def test_wrong_tensors_are_refused(change, told, tmp_path):
    path = by_hand(tmp_path / 'a.pth', pickled(**change),
                   {'a/data/0': np.arange(4, dtype='<f4').tobytes()})
    refuse(path, told)


def test_compressed_entries_are_refused_before_they_are_read(tmp_path):
    path = by_hand(tmp_path / 'a.pth', pickled(count=2**28, size=(2**28,)),
                   {'a/data/0': bytes(2**24)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 50_000
    refuse(path, 'is compressed, as torch.save never does')


def test_an_archive_of_something_else_is_told(tmp_path):
    for entries in ({}, {'b/data.pkl': b''}, {'a/byteorder': b'middle'}):
        path = by_hand(tmp_path / 'a.pth', pickled(), entries)
        refuse(path, 'damaged')
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('photo.jpg', b'')
    refuse(path, 'has 0 entries data.pkl')


@FORMATS
def test_a_file_that_is_cut_or_changed_is_told_or_read(is_zip, tmp_path):
    content = {'a': torch.arange(1000.), 'b': torch.ones(3, 4).T, 'c': torch.nn.Parameter(
        torch.ones(2))}
    data = save(content, tmp_path / 'a.pth', is_zip).read_bytes()
    path = tmp_path / 'b.pth'
    rng = np.random.default_rng(0)
    for length in (0, 1, 4, 100, *rng.integers(5, len(data), 100), len(data) - 1):
        path.write_bytes(data[:length])
        refuse(path, 'is damaged or truncated')
    told = 0
    for _ in range(400):
        changed = bytearray(data)
        changed[rng.integers(len(data) if rng.random() < .5 else 1000)] = rng.integers(256)
        path.write_bytes(changed)
        try:
            files.read_pickle(path)
        except UserError as error:
            assert '\n' not in str(error)
            told += 1
    assert told > 40
