"""A .pkl gives arrays of numbers, and nothing that it asks for beyond them is run."""

import builtins
import collections
import importlib
import io
import os
import pathlib
import pickle
import pickletools
import struct

import numpy as np
import pytest

from resnet_jax import weights
from resnet_jax.errors import UserError
from resnet_jax.weights import files, unpickle

ARRAYS = {
    'a': np.arange(6, dtype=np.float32).reshape(2, 3), 'b': np.arange(3, dtype='>f8'),
    'c': np.asfortranarray(np.arange(6, dtype=np.float16).reshape(2, 3)),
    'd': np.zeros((0, 4), np.float32), 'e': np.array(2.5, np.float32)}


class Calls:
    """Unpickling it calls a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def named(module, name, *args, then=b''):
    """A pickle of protocol 4 that calls what has this name, which can have dots."""
    parts = [b'\x80\x04', *(b'X' + struct.pack('<I', len(x)) + x.encode() for x in (module, name)),
             b'\x93', b'(', *(b'X' + struct.pack('<I', len(x)) + x.encode() for x in args), b'tR']
    return b''.join(parts) + then + b'.'


def refuse(folder, data, told):
    path = folder / 'model.pkl'
    path.write_bytes(data)
    with pytest.raises(UserError, match=told) as error:
        weights.read(path)
    assert '\n' not in str(error.value) and len(str(error.value)) < 600


@pytest.mark.parametrize('protocol', range(6))
def test_arrays_of_all_protocols_are_read_as_they_are(protocol, tmp_path):
    path = tmp_path / 'model.pkl'
    content = {'model': collections.OrderedDict(ARRAYS), '__author__': 'Detectron2 Model Zoo',
               'iteration': np.int64(89_999), 'is_last': True, 'rate': [0.02, (1, None)]}
    data = pickle.dumps(content, protocol)
    path.write_bytes(data)
    found = unpickle.load(path)
    assert list(found['model']) == list(ARRAYS)
    for name, array in ARRAYS.items():
        got = found['model'][name].array
        np.testing.assert_array_equal(got, array)
        assert (got.dtype, got.shape) == (array.dtype, array.shape)
    assert {name: found[name] for name in content if name != 'model'} == {
        name: content[name] for name in content if name != 'model'}
    np.testing.assert_array_equal(files.read_pkl(path)['b'], [0, 1, 2])
    # Before numpy 2 the modules had other names, of equal length in the older protocols.
    if protocol < 4:
        path.write_bytes(data.replace(b'numpy._core', b'numpy.core'))
        np.testing.assert_array_equal(files.read_pkl(path)['a'], ARRAYS['a'])


def test_a_pickle_of_python_2_is_read(tmp_path):
    """Its texts are bytes, and so is what an array holds."""
    numbers = np.float32([1.5, -2, 1e30])

    def text(value):
        return b'T' + struct.pack('<i', len(value)) + value

    data = b''.join([
        b'\x80\x02}', text(b'conv1_w'), b'cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n',
        b'K\x00\x85', text(b'b'), b'\x87R(K\x01K\x03\x85cnumpy\ndtype\n', text(b'f4'),
        b'K\x00K\x01\x87R(K\x03', text(b'<'), b'NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89',
        text(numbers.tobytes()), b'tbs.'])
    (tmp_path / 'R-50.pkl').write_bytes(data)
    found = files.read_pkl(tmp_path / 'R-50.pkl')
    np.testing.assert_array_equal(found['conv1_w'], numbers)
    if not hasattr(np, 'core'):
        return
    expected = pickle.loads(data, encoding='latin1')  # as detectron2 reads it
    np.testing.assert_array_equal(expected['conv1_w'], numbers)


def test_nothing_that_a_hostile_pickle_asks_for_is_run(tmp_path):
    proof = tmp_path / 'proof'
    command = f'touch {proof}'
    source = f'open({str(proof)!r}, "w").close()'
    np.save(tmp_path / 'inner.npy', np.array([Calls(os.system, command)], object))
    objects = np.array([Calls(os.system, command)], object)
    hostile = [
        Calls(os.system, command), Calls(builtins.eval, source), Calls(builtins.exec, source),
        Calls(pathlib.Path.write_text, proof, 'owned'), Calls(builtins.open, str(proof), 'w'),
        Calls(importlib.import_module, 'this'), Calls(builtins.getattr, 'x', 'upper'),
        Calls(np.load, str(tmp_path / 'inner.npy'), None, True),
        Calls(np.save, str(proof), np.zeros(1)), Calls(np.fromfile, str(tmp_path / 'inner.npy')),
        Calls(pickle.loads, pickle.dumps(Calls(os.system, command))),
        Calls(io.open_code, str(tmp_path / 'inner.npy')), objects, {'model': {'a': objects}}]
    for content in hostile:
        for protocol in (2, 4, 5):
            for wrapped in (content, {'model': {'a': np.zeros(1), 'x': content}}):
                refuse(tmp_path, pickle.dumps(wrapped, protocol), 'is refused')
    for module, name, *args in (
            ('os', 'system', command), ('posix', 'system', command), ('nt', 'system', command),
            ('builtins', 'eval', source), ('__builtin__', 'eval', source),
            ('builtins', 'getattr', 'x', 'upper'), ('builtins', '__import__', 'this'),
            ('operator', 'attrgetter', 'system'), ('functools', 'partial', command),
            ('numpy', 'load', 'x'), ('numpy.f2py', 'compile', source),
            ('numpy', 'ndarray.tofile', str(proof)), ('numpy', 'core', 'x'),
            ('numpy', 'dtype.__new__', 'O'), ('numpy.testing._private.utils', 'runstring', source),
            ('collections', 'OrderedDict.__init__.__globals__', 'x'),
            ('collections', 'namedtuple', 'x', source), ('_codecs', 'lookup', 'zlib'),
            ('torch', 'load', 'x'), ('copyreg', '_reconstructor', 'x'),
            ('resnet_jax.weights.unpickle', 'os.system', command)):
        refuse(tmp_path, named(module, name, *args), 'is refused: it asks for')
    assert not proof.exists()
    pickle.loads(pickle.dumps(Calls(os.system, command)))  # it would have made the file
    assert proof.exists()


@pytest.mark.parametrize(('data', 'told'), [
    (named('_codecs', 'encode', 'abc', 'zlib'), "encodes text as 'zlib'"),
    (named('numpy', 'dtype', 'O8'), "of the type 'O8'"),
    (named('numpy', 'dtype', 'V9'), "of the type 'V9'"),
    (named('numpy', 'dtype', 'f4', then=b'(K\x03X\x01\x00\x00\x00?tb'), "in the order '\\?'"),
    (b'\x80\x02Pabc\n.', 'outside of the file'),
    (b'\x80\x02U\x01xQ.', 'outside of the file'),
    (named('x' * 10_000, 'y'), "asks for 'xxx"),
    # Attributes of a function are set, and of a class.
    (b'\x80\x02c_codecs\nencode\nN}X\x08\x00\x00\x00__code__K\x01s\x86b.', 'damaged'),
    (b'\x80\x02cnumpy\nndarray\nN}X\x0c\x00\x00\x00__setstate__K\x01s\x86b.', 'instead of arrays'),
    (b'\x80\x02cnumpy\nndarray\n)R(K\x01K\x05K\x06K\x07K\x08tb.', 'without a type'),
])
def test_what_is_let_in_cannot_be_misused(tmp_path, data, told):
    pickletools.dis(data, io.StringIO())
    refuse(tmp_path, data, told)
    (tmp_path / 'good.pkl').write_bytes(pickle.dumps(ARRAYS, 2))
    assert set(files.read_pkl(tmp_path / 'good.pkl')) == set(ARRAYS)


def test_what_is_no_pickle_or_cut_short_is_told(tmp_path):
    data = pickle.dumps({'model': ARRAYS}, 2)
    for length in (0, 1, 2, 100, len(data) // 2, len(data) - 1):
        refuse(tmp_path, data[:length], 'damaged or truncated')
    for other in (b'PK\x03\x04zip', b'<html>', os.urandom(64), b'\x80\xff.', b'.'):
        refuse(tmp_path, other, 'damaged or truncated|is refused|instead of arrays')
    for content in ([1], 3, 'text', {'a': 1}, {'model': {}}, {'a': np.int32([1])}):
        refuse(tmp_path, pickle.dumps(content), 'instead of arrays|no tensors|has the type int32')
    wrong = {'a': np.arange(4, dtype=np.float32)}
    shorter = pickle.dumps(wrong, 2).replace(b'K\x04\x85', b'K\x05\x85')
    assert shorter != pickle.dumps(wrong, 2)
    refuse(tmp_path, shorter, 'damaged or truncated')
