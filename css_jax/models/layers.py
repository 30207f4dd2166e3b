"""Convolution and batch normalisation with torch's padding, statistics and initial values."""

import difflib
import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

# Whether BatchNorm normalises by the batch; weights of its images [B] stand for true, and an image
# of weight 0 counts in none of its statistics.
Train = bool | jax.Array

he_normal = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')  # the backbone's
torch_uniform = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')  # U(+-1/sqrt(fan_in))


def channels(count: int, width: float) -> int:
    """Return a layer's number of channels: `count` times `width`, rounded, at least 8."""
    return max(8, round(count * width))


def check_choice(argument: str, value: Any, choices: Iterable[Any]) -> None:
    """Raise a ValueError that names argument, value and choices, unless value is one of them."""
    choices = list(choices)
    if value in choices:
        return
    near = difflib.get_close_matches(str(value), [str(choice) for choice in choices], 1, 0.5)
    hint = f'; did you mean {near[0]}?' if near else ''
    raise ValueError(
        f'{argument} is {value!r}; expected one of {", ".join(map(repr, choices))}{hint}'
    )


def check_images(images: jax.Array) -> None:
    """Raise a ValueError unless these are images as a network takes them."""
    if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f'images are {images.dtype}{list(images.shape)}; expected float [B, H, W, 3]'
        )


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1, dilation: int = 1) -> jax.Array:
    """Convolve with torch's symmetric padding dilation (k-1)/2, k odd.

    A 1x1 kernel is a matrix product: of a convolution XLA on CPU computes the kernel's gradient as
    one whose window is the map, which takes a multiple of the time.

    Taps that can only ever meet padding, which is all but the centre one once the dilation reaches
    the size of the map (ASPP on small images), are cut from the kernel: the result and all
    gradients are the same, the work is not.

    The gradients are those of `lax.conv_general_dilated`, but for the kernel's where `by_products`.

    Args:
        x: [B, H, W, C].
        kernel: [k, k, C, features].
        stride: of the output, both axes.
        dilation: of the kernel, both axes.

    Returns:
        [B, ceil(H/stride), ceil(W/stride), features].
    """
    if kernel.shape[:2] == (1, 1):
        return jnp.einsum('bhwc,cf->bhwf', x[:, ::stride, ::stride], kernel[0, 0])
    padding = []
    for axis, size in enumerate(x.shape[1:3]):
        centre = kernel.shape[axis] // 2
        reach = min(centre, (size - 1) // dilation)  # taps on each side that meet the map
        kernel = lax.slice_in_dim(kernel, centre - reach, centre + reach + 1, axis=axis)
        padding.append((reach * dilation, reach * dilation))
    size = [-(-side // stride) for side in x.shape[1:3]]
    chosen = _with_products if by_products(kernel.shape, size) else _convolution
    return chosen(x, kernel, stride, dilation, tuple(padding))


def by_products(shape: Sequence[int], size: Sequence[int]) -> bool:
    """Return whether a kernel's gradient is computed as products of matrices on this platform.

    On a CPU, where both sides have 128 channels and a map of the narrower one 2^17 values: there
    XLA's own, a convolution whose window is the map, falls out of the caches. docs/speed.md has
    what was measured. Elsewhere, and on all other platforms, it is XLA's.

    Args:
        shape: of the kernel, [k, k, C, features].
        size: height and width of the output.
    """
    narrow = min(shape[2:])
    return jax.default_backend() == 'cpu' and narrow >= 128 and narrow * math.prod(size) >= 2**17


def _convolution(x, kernel, stride, dilation, padding):
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )


_with_products = jax.custom_vjp(_convolution, nondiff_argnums=(2, 3, 4))


def _forward(x, kernel, stride, dilation, padding):
    return _convolution(x, kernel, stride, dilation, padding), (x, kernel)


def _backward(stride, dilation, padding, kept, gradient):
    """Return the gradients of `_convolution`: XLA's of x, and of each tap of the kernel a product.

    A tap's is the sum over pixels of the output's gradient times the input that the tap reads. The
    gradient comes first, so that it is transposed for all taps once, and the inputs never are.

    Args:
        stride: of the output, both axes.
        dilation: of the kernel, both axes.
        padding: of height and width, before and after.
        kept: x [B, H, W, C] and the kernel [k, k', C, features].
        gradient: of the output, [B, h, w, features].

    Returns:
        That of x [B, H, W, C], and of the kernel [k, k', C, features], of their dtypes.
    """
    x, kernel = kept
    (x_gradient,) = jax.vjp(lambda x: _convolution(x, kernel, stride, dilation, padding), x)[1](
        gradient
    )
    height, width = (stride * (size - 1) + 1 for size in gradient.shape[1:3])
    padded, taps = jnp.pad(x, ((0, 0), *padding, (0, 0))), []
    for i in range(0, kernel.shape[0] * dilation, dilation):
        for j in range(0, kernel.shape[1] * dilation, dilation):
            read = padded[:, i : i + height : stride, j : j + width : stride]
            float32 = {'preferred_element_type': jnp.float32}
            taps.append(jnp.einsum('bhwf,bhwc->fc', gradient, read, **float32).T)
    return x_gradient, jnp.stack(taps).reshape(kernel.shape).astype(kernel.dtype)


_with_products.defvjp(_forward, _backward)


def max_pool(x: jax.Array, padding: Sequence[tuple[int, int]]) -> jax.Array:
    """3x3 max-pooling of stride 2; where values tie, the first has the gradient, as in torch.

    A chain of maxima instead of XLA's window reduction: its gradient, a select-and-scatter, is slow
    on CPU, and on GPU it is not deterministic and so refused where that is asked for.

    Args:
        x: [B, H, W, C].
        padding: of H and W, before and after.

    Returns:
        [B, (H + padding - 3) // 2 + 1, ..., C].
    """
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=-jnp.inf)
    height, width = ((size - 3) // 2 + 1 for size in x.shape[1:3])
    taps = [
        x[:, i : i + 2 * height - 1 : 2, j : j + 2 * width - 1 : 2]
        for i in range(3)
        for j in range(3)
    ]
    return functools.reduce(lambda a, b: jnp.where(a >= b, a, b), taps)


class Conv(nn.Module):
    """A convolution with odd, square kernel; [B, H, W, C] -> [B, H/stride, W/stride, features]."""

    features: int
    kernel_size: int
    stride: int = 1
    dilation: int = 1
    use_bias: bool = False
    kernel_init: Any = torch_uniform
    dtype: Any = jnp.float32
    atrous: Any = None  # (x, kernel, dilation) -> y, of stride 1; in place of a dilated `convolve`
    bias_init: Any = None  # None: torch's, of the same range as the kernel's by `torch_uniform`

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolve x in `dtype`; the parameters are float32."""
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param('kernel', self.kernel_init, shape)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if self.atrous is not None and self.stride == 1 < self.dilation:
            y = self.atrous(x, kernel, self.dilation)
        else:
            y = convolve(x, kernel, self.stride, self.dilation)
        if self.use_bias:
            bound = (self.kernel_size**2 * x.shape[-1]) ** -0.5
            uniform = functools.partial(jax.random.uniform, minval=-bound, maxval=bound)
            bias = self.param('bias', self.bias_init or uniform, (self.features,))
            y = y + bias.astype(self.dtype)
        return y


class BatchNorm(nn.Module):
    """Batch normalisation over all but the last axis, as torch's (synchronised) BatchNorm2d.

    Momentum 0.1. Training normalises by the biased variance and stores the unbiased one,
    n/(n-1) times it, n counted over all devices of `axis_name`: not negligible in ASPP's image
    pooling, which sees one value an image. Statistics are float32 whatever `dtype` is.
    """

    axis_name: str | None = None
    scale_init: Any = nn.initializers.ones
    eps: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: Train) -> jax.Array:
        """Normalise x [..., C]; `train` uses the batch's statistics and moves the running ones.

        Raises:
            ValueError: `train` with one value per channel, of which there is no variance.
        """
        features = x.shape[-1:]
        scale = self.param('scale', self.scale_init, features)
        bias = self.param('bias', nn.initializers.zeros, features)
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, features)
        running_var = self.variable('batch_stats', 'var', jnp.ones, features)
        x = x.astype(jnp.float32)
        if train is not False and not self.is_initializing():
            mean, var, n = self._batch_statistics(x, train)
            running_mean.value += 0.1 * (mean - running_mean.value)
            running_var.value += 0.1 * (var * (n / (n - 1)) - running_var.value)
        else:
            mean, var = running_mean.value, running_var.value
        y = (x - mean) * (lax.rsqrt(var + self.eps) * scale) + bias
        return y.astype(self.dtype)

    def _batch_statistics(
        self, x: jax.Array, train: Train
    ) -> tuple[jax.Array, jax.Array, int | jax.Array]:
        """Return mean [C], biased variance [C] and the number of values over all devices."""
        axes = tuple(range(x.ndim - 1))
        devices = 1 if self.axis_name is None else lax.axis_size(self.axis_name)
        n = devices * (x.size // x.shape[-1])
        if n < 2:
            raise ValueError(
                f'{"/".join(self.path)}: training mode needs more than one value per channel, '
                f'got shape {x.shape} on {devices} device; expected a batch of 2 or more'
            )

        def mean(values):
            values = values.mean(axes)
            return values if self.axis_name is None else lax.pmean(values, self.axis_name)

        weigh, share = lambda values: values, 1
        if train is not True:
            # In space-to-batch layout an image is several of the batch, which are neighbours.
            weights = jnp.repeat(train, len(x) // len(train)).reshape(-1, *[1] * (x.ndim - 1))
            share = mean(jnp.broadcast_to(weights, (*x.shape[:-1], 1)))
            weigh, n = lambda values: weights * values, n * share
        # About the mean, not E[x^2] - E[x]^2, which loses its digits where the mean is large.
        centre = mean(weigh(x)) / share
        # Its derivative by the centre is zero: left out, the backward pass sums over the devices
        # twice, not three times.
        return centre, mean(weigh(jnp.square(x - lax.stop_gradient(centre)))) / share, n
