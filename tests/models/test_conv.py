"""Convolutions: the gradients that are written out, and the padding."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet_jax.models import conv as conv_lib
from resnet_jax.models.conv import Conv, conv2d


@pytest.mark.parametrize(('size', 'parts'), [(8, (1, 2, 6)), (9, (1,))])
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('kernel_size', [1, 3, 7])
def test_gradients_equal_autodiff_in_float64(kernel_size, stride, size, parts, monkeypatch):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.normal(size=(6, size, size + 3, 4)))
        kernel = jnp.asarray(rng.normal(size=(kernel_size, kernel_size, 4, 5)))

        def autodiff(x, kernel):
            return jax.lax.conv_general_dilated(
                x, kernel, (stride, stride), [(kernel_size // 2,) * 2] * 2,
                dimension_numbers=('NHWC', 'HWIO', 'NHWC'))

        def loss(convolution):
            return lambda x, kernel: jnp.sin(convolution(x, kernel)).sum()

        expected = jax.jit(jax.grad(loss(autodiff), (0, 1)))(x, kernel)
        for count in parts:
            monkeypatch.setattr(conv_lib, 'CACHE_BYTES', {1: 2**20, 2: x.nbytes, 6: 1}[count])
            got = jax.jit(jax.grad(loss(lambda x, k: conv2d(x, k, stride)), (0, 1))).trace(
                x, kernel)
            assert str(got.jaxpr).count('scan[') == (count > 1 and kernel_size > 1)
            for a, b in zip(got.lower().compile()(x, kernel), expected, strict=True):
                assert a.dtype == jnp.float64
                np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)
        dy = jnp.cos(autodiff(x, kernel))
        np.testing.assert_allclose(  # as on TPU: 1x1 kernels too
            conv_lib._correlate(x, dy, kernel_size, stride, 1), expected[1], rtol=1e-10,
            atol=1e-10)


def grouped_case(stride):
    rng = np.random.default_rng(0)
    return (rng.normal(size=(2, 9, 8, 6)), rng.normal(size=(3, 3, 2, 9)),
            rng.normal(size=(2, -(-9 // stride), 8 // stride, 9)))


@pytest.mark.parametrize(('stride', 'dilation'), [(1, 1), (2, 1), (1, 2), (2, 3)])
def test_groups_and_dilation_are_pytorchs_forward_and_backward(stride, dilation):
    torch = pytest.importorskip('torch', reason='parity needs PyTorch: pip install .[test-torch]')
    x, kernel, dy = grouped_case(stride)
    with jax.enable_x64(True):
        @jax.jit
        def with_gradients(x, kernel, dy):
            y, gradients = jax.vjp(
                lambda *args: conv2d(*args, stride, groups=3, dilation=dilation), x, kernel)
            return y, *gradients(dy)

        got = with_gradients(x, kernel, dy)

    inputs, weight = (torch.from_numpy(array.transpose(axes).copy()).requires_grad_()
                      for array, axes in ((x, (0, 3, 1, 2)), (kernel, (3, 2, 0, 1))))
    theirs = torch.nn.functional.conv2d(
        inputs, weight, stride=stride, padding=dilation, dilation=dilation, groups=3)
    theirs.backward(torch.from_numpy(dy.transpose(0, 3, 1, 2).copy()))
    expected = (theirs.detach().numpy().transpose(0, 2, 3, 1),
                inputs.grad.numpy().transpose(0, 2, 3, 1),
                weight.grad.numpy().transpose(2, 3, 1, 0))
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


def test_a_layer_with_groups_and_dilation_is_xlas_convolution():
    x, _, _ = grouped_case(1)
    layer = Conv(9, 3, 2, groups=3, dilation=2)
    y, variables = layer.init_with_output(jax.random.key(0), x)
    kernel = variables['params']['kernel']
    assert kernel.shape == (3, 3, 2, 9)
    np.testing.assert_allclose(y, jax.lax.conv_general_dilated(
        x.astype(np.float32), kernel, (2, 2), [(2, 2)] * 2, rhs_dilation=(2, 2),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'), feature_group_count=3), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match='4 groups must divide the 6 channels and the 9 features'):
        Conv(9, 3, groups=4).init(jax.random.key(0), x)


@given(images=st.integers(1, 60), nbytes=st.integers(1, 2000))
def test_the_parts_of_a_filter_gradient_are_equal_fit_and_are_as_large_as_they_can_be(
        images, nbytes):
    x = dy = np.broadcast_to(np.int8(0), (images, nbytes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv_lib, 'CACHE_BYTES', 4000)
        parts = conv_lib._parts(x, dy, num_devices=1)
    fitting = [n for n in range(1, images + 1)
               if images % n == 0 and images // n * 2 * nbytes <= 4000]
    assert parts == min(fitting)


@pytest.mark.parametrize(('kernel_size', 'stride'), [(1, 2), (3, 1), (3, 2), (7, 2)])
def test_of_bfloat16_images_the_float32_kernels_gradient_is_summed_in_float32(kernel_size, stride):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(8, 9, 6, 4)), jnp.bfloat16)
    kernel = jnp.asarray(rng.normal(size=(kernel_size, kernel_size, 4, 5)), jnp.float32)

    y = jax.jit(conv2d, static_argnums=2)(x, kernel, stride)
    dy = jnp.asarray(rng.normal(size=y.shape), jnp.bfloat16)

    @jax.jit
    def gradients(x, dy):
        return jax.vjp(lambda *args: conv2d(*args, stride), x, kernel)[1](dy)

    dx, dkernel = gradients(x, dy)
    exact_dx, exact_dkernel = gradients(x.astype(jnp.float32), dy.astype(jnp.float32))
    assert y.dtype == jnp.bfloat16
    assert dx.dtype == jnp.bfloat16 and dkernel.dtype == jnp.float32
    assert jnp.linalg.norm(dx - exact_dx) < 0.01 * jnp.linalg.norm(exact_dx)
    np.testing.assert_allclose(dkernel, exact_dkernel, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(('kernel_size', 'stride'), [(1, 2), (3, 1), (7, 2)])
def test_a_tpu_is_given_convolutions_of_bfloat16_that_sum_the_kernels_gradient_in_float32(
        kernel_size, stride):
    x = jax.ShapeDtypeStruct((8, 8, 8, 4), jnp.bfloat16)
    kernel = jax.ShapeDtypeStruct((kernel_size, kernel_size, 4, 5), jnp.float32)
    gradient = jax.grad(lambda *args: conv2d(*args, stride).astype(jnp.float32).sum(), (0, 1))
    text = jax.jit(gradient).trace(x, kernel).lower(lowering_platforms=('tpu',)).as_text()
    convolutions = re.findall(r'stablehlo.convolution\(.*: \((.*)\) -> (.*)', text)
    assert all(arguments.count('bf16') == 2 for arguments, _ in convolutions)
    assert sorted(result.split('x')[-1] for _, result in convolutions) == ['bf16>', 'f32>']


@pytest.mark.parametrize(('kernel_size', 'size', 'stride', 'out'), [
    (7, 224, 2, 112), (3, 56, 2, 28), (3, 7, 2, 4), (1, 56, 2, 28), (1, 7, 2, 4), (3, 9, 1, 9)])
def test_padding_is_half_the_kernel_on_every_side(kernel_size, size, stride, out):
    conv = Conv(1, kernel_size, stride)
    x = np.ones((1, size, size, 1), np.float32)
    kernel = np.ones((kernel_size, kernel_size, 1, 1), np.float32)
    y = conv.apply({'params': {'kernel': kernel}}, x)
    assert y.shape == (1, out, out, 1)
    # The first output sees the padding on its upper left side: half the kernel and the centre.
    assert y[0, 0, 0, 0] == (kernel_size // 2 + 1) ** 2


def test_initial_weights_are_gaussian_with_variance_two_over_fan_in():
    kernel = Conv(256, 3).init(jax.random.key(0), jnp.zeros((1, 4, 4, 64)))['params']['kernel']
    assert abs(kernel.std() / np.sqrt(2 / (9 * 64)) - 1) < 0.01
    # A Gaussian has 4.55 % of its mass beyond two standard deviations; a truncated one, none.
    assert abs((abs(kernel) > 2 * kernel.std()).mean() - 0.0455) < 0.005


def test_bfloat16_computes_on_float32_parameters():
    conv = Conv(4, 3, use_bias=True, dtype=jnp.bfloat16)
    variables = conv.init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
    assert conv.apply(variables, jnp.ones((1, 4, 4, 3))).dtype == jnp.bfloat16
