"""Vision transformers (Dosovitskiy et al., arXiv 2010.11929) of patches of 16 pixels.

ViT-B, and the two smaller ones of DeiT (Touvron et al., arXiv 2012.12877), as timm has them: blocks
that normalise first, a class token, a learned table of positions.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from css_jax.models import attributes, remat
from css_jax.models.layers import Train, channels, torch_uniform
from css_jax.ops import resize

# Name -> number of heads, of 64 channels each. All have 12 blocks.
SIZES = {'vit_tiny': 3, 'vit_small': 6, 'vit_base': 12}
HEAD = 64
TAPS = (2, 5, 8, 11)  # blocks whose tokens family dpt reads
LAYERS = 4  # stages of `css_jax.models.remat` that the blocks are divided among

_normal = nn.initializers.normal(0.02)


def resize_table(table: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resize a table of positions bicubically, as torch does it without antialiasing.

    See `css_jax.ops.resize.bicubic`; the class token's row stays as it is.

    Args:
        table: [1 + g g, D], the class token's row, then those of a square grid, row by row.
        size: (h, w) of the grid asked for.

    Returns:
        [1 + h w, D] float32; the values of `table` unchanged where the grid is the same.

    Raises:
        ValueError: the table has no square grid.
    """
    side = round((len(table) - 1) ** 0.5)
    if table.ndim != 2 or len(table) != 1 + side**2 or side < 1:
        raise ValueError(f'table has shape {table.shape}; expected [1 + g * g, D]')
    table = table.astype(jnp.float32)
    grid = resize.bicubic(table[1:].reshape(1, side, side, -1), size)
    return jnp.concatenate([table[:1], grid.reshape(-1, table.shape[1])])


class Patches(nn.Module):
    """A convolution whose stride is its kernel; [B, H, W, C] -> [B, H // patch, W // patch, dim].

    Pixels that fill no patch, at the bottom and to the right, are left out.
    """

    dim: int
    patch: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Project every patch.

        Raises:
            ValueError: a side is shorter than a patch.
        """
        batch, inputs, p = x.shape[0], x.shape[-1], self.patch
        height, width = (side // p for side in x.shape[1:3])
        if not height or not width:
            raise ValueError(
                f'images are {x.shape[1]}x{x.shape[2]}; expected {p} pixels or more on each side, '
                'which is one patch'
            )
        bound = (p * p * inputs) ** -0.5  # torch's first values of a convolution
        uniform = partial(jax.random.uniform, minval=-bound, maxval=bound)
        kernel = self.param('kernel', torch_uniform, (p, p, inputs, self.dim))
        bias = self.param('bias', uniform, (self.dim,))
        x = x[:, : height * p, : width * p].reshape(batch, height, p, width, p, inputs)
        x = jnp.einsum('bhpwqc,pqcd->bhwd', x.astype(self.dtype), kernel.astype(self.dtype))
        return x + bias.astype(self.dtype)


def implementation(choice: str, dtype: Any, tokens: int, channels: int) -> str:
    """Return which attention of jax is meant on this platform: 'xla' or 'cudnn'.

    cuDNN's does not hold the attention of all pairs of tokens. It takes half precision alone, and
    jax 0.10 differentiates it for an even number of tokens alone.

    Args:
        choice: 'xla', 'cudnn' or 'auto', which is cuDNN's where it can be had.
        dtype: of the computation.
        tokens: their number.
        channels: of a head.
    """
    if choice != 'auto':
        return choice
    fits = dtype == jnp.bfloat16 and tokens % 2 == 0 and channels % 8 == 0 and channels <= 128
    return 'cudnn' if fits and jax.default_backend() == 'gpu' else 'xla'


class Attention(nn.Module):
    """Self-attention of several heads; [B, tokens, D] -> [B, tokens, D].

    Attributes:
        heads: number of heads, which divides D.
        dtype: of the computation; parameters are float32.
        attention: see `implementation`.
    """

    heads: int
    dtype: Any = jnp.float32
    attention: str = 'auto'

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Attend; the softmax is float32."""
        dense = partial(nn.Dense, kernel_init=_normal, dtype=self.dtype)
        batch, tokens, dim = x.shape
        x = dense(3 * dim, name='qkv')(x).reshape(batch, tokens, 3, self.heads, dim // self.heads)
        query, key, value = (x[:, :, i] for i in range(3))
        chosen = implementation(self.attention, self.dtype, tokens, dim // self.heads)
        x = jax.nn.dot_product_attention(query, key, value, implementation=chosen)
        return dense(dim, name='proj')(x.reshape(batch, tokens, dim))


class MLP(nn.Module):
    """Two linear layers around an exact GELU; [B, tokens, D] -> [B, tokens, D]."""

    ratio: float = 4.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layers."""
        dense = partial(nn.Dense, kernel_init=_normal, dtype=self.dtype)
        y = dense(round(self.ratio * x.shape[-1]), name='fc1')(x)
        return dense(x.shape[-1], name='fc2')(nn.gelu(y, approximate=False))


class SwiGLU(nn.Module):
    """A gated pair of linear layers (Shazeer, arXiv 2002.05202); [B, tokens, D] -> [B, tokens, D].

    With two thirds of the MLP's channels, rounded up to 8, it has as many parameters.
    """

    ratio: float = 4.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layers."""
        dense = partial(nn.Dense, kernel_init=_normal, dtype=self.dtype)
        hidden = -(-int(self.ratio * x.shape[-1] * 2 / 3) // 8) * 8
        gate, y = jnp.split(dense(2 * hidden, name='w12')(x), 2, axis=-1)
        return dense(x.shape[-1], name='w3')(nn.silu(gate) * y)


# What a block has behind its attention.
FFNS = {'mlp': MLP, 'swiglu': SwiGLU}


class LayerScale(nn.Module):
    """A factor for each channel (Touvron et al., arXiv 2103.17239); of the shape of its input."""

    first: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Multiply."""
        gamma = self.param('gamma', nn.initializers.constant(self.first), x.shape[-1:])
        return x * gamma.astype(x.dtype)


class Block(nn.Module):
    """Attention and an MLP, each behind a LayerNorm and around a shortcut.

    [B, tokens, D] -> [B, tokens, D].

    Attributes:
        heads: number of heads, which divides D.
        ratio: channels within the MLP, as a multiple of D.
        eps: of the LayerNorms.
        layer_scale: first value of what both branches are multiplied by; None: they are not.
        dtype: of the computation; parameters are float32.
        ffn: what stands for the MLP, one of `FFNS`.
        attention: see `implementation`.
    """

    heads: int
    ratio: float = 4.0
    eps: float = 1e-6
    layer_scale: float | None = None
    dtype: Any = jnp.float32
    ffn: str = 'mlp'
    attention: str = 'auto'

    @nn.compact
    def __call__(self, x: jax.Array, train: Train = False) -> jax.Array:
        """Apply the block, which is the same in training."""
        del train
        for number, branch in enumerate(
            (
                Attention(self.heads, self.dtype, self.attention, name='attn'),
                FFNS[self.ffn](self.ratio, self.dtype, name='mlp'),
            ),
            start=1,
        ):
            y = branch(layer_norm(f'norm{number}', self.eps, self.dtype)(x))
            if self.layer_scale is not None:
                y = LayerScale(self.layer_scale, name=f'ls{number}')(y)
            x = x + y
        return x


def layer_norm(name: str, eps: float, dtype: Any) -> nn.LayerNorm:
    """Make a LayerNorm whose statistics are float32, and whose variance is about the mean."""
    return nn.LayerNorm(epsilon=eps, dtype=dtype, use_fast_variance=False, name=name)


def tokens_of_blocks(
    module: nn.Module, block: Callable[..., nn.Module], x: jax.Array, train: Train
) -> list[jax.Array]:
    """Apply blocks one after the other, and return what each of them gives.

    Args:
        module: in whose `__call__` this is; has `depth`, their number, and `remat`, whose stages
            layer1 to layer4 are a quarter of the blocks each. Every block is a run of its own.
        block: makes one, by its name.
        x: [B, tokens, D].
        train: given to every block.
    """
    found = []
    for i in range(module.depth):
        stage = f'layer{1 + LAYERS * i // module.depth}'
        x = remat.chain(module, stage, [partial(block, name=f'block{i}')], x, train)
        found.append(x)
    return found


class ViT(nn.Module):
    """The backbone; images [B, H, W, 3] -> features by name, on a grid of floor(side / patch).

    Attributes:
        dim: channels of a token, D.
        depth: number of blocks.
        heads: number of heads, which divides `dim`.
        patch: side of a patch in pixels.
        grid: side of the grid that the table of positions is for; it is resized to that of the
            images, so that one set of weights serves all sizes.
        aux: which block gives the early features, counted from the end as a list is: -3 is the
            tenth of twelve; -1 is the last one, normalised.
        eps: of the LayerNorms.
        remat: stages computed anew in the backward pass, see `css_jax.models.remat`: the stem is
            all before the first block; of the blocks see `tokens_of_blocks`.
        dtype: of the computation; parameters are float32.
        attention: see `implementation`.
        taps: blocks, from 0, whose tokens are given too.
    """

    dim: int = 192
    depth: int = 12
    heads: int = 3
    patch: int = 16
    grid: int = 14
    aux: int = -3
    eps: float = 1e-6
    remat: tuple[str, ...] = ()
    dtype: Any = jnp.float32
    attention: str = 'auto'
    taps: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array, train: Train = False) -> dict[str, jax.Array]:
        """Apply the backbone, which is the same in training.

        Returns:
            'last': the last block's tokens behind the last LayerNorm, without the class token
            [B, h, w, D]; 'layer3': those of block `aux` as they are, [B, h, w, D]; 'tap1' and so
            on: those of `taps` behind the last LayerNorm.
        """
        shape = (x.shape[0], *(side // self.patch for side in x.shape[1:3]), self.dim)

        def stem(module: nn.Module, x: jax.Array) -> jax.Array:
            return module._tokens(x)

        x = remat.run(self, 'stem', stem, x)
        block = partial(Block, self.heads, eps=self.eps, dtype=self.dtype, attention=self.attention)
        found = tokens_of_blocks(self, block, x, train)
        norm = layer_norm('norm', self.eps, self.dtype)
        maps = {f'tap{i}': norm(found[tap]) for i, tap in enumerate(self.taps, start=1)}
        found[-1] = norm(found[-1])
        maps |= {'layer3': found[self.aux], 'last': found[-1]}
        return {name: tokens[:, 1:].reshape(shape) for name, tokens in maps.items()}

    def _tokens(self, x: jax.Array) -> jax.Array:
        """Images [B, H, W, 3] -> [B, 1 + h w, D], the class token first, places added."""
        x = Patches(self.dim, self.patch, self.dtype, name='patch_embed')(x)
        token = self.param('cls_token', _normal, (1, 1, self.dim))
        table = self.param('pos_embed', _normal, (1, 1 + self.grid**2, self.dim))
        places = resize_table(table[0], x.shape[1:3]).astype(self.dtype)
        token = jnp.broadcast_to(token.astype(self.dtype), (x.shape[0], 1, self.dim))
        return jnp.concatenate([token, x.reshape(x.shape[0], -1, self.dim)], axis=1) + places


def build(heads: int, config: Any, axis_name: str | None, depth: int = 12) -> ViT:
    """Make the ViT that `config` (config.model) describes.

    The width multiplies the channels of each head; their number stays.

    Args:
        heads: number of heads.
        config: see `attributes.fixed`; the output stride is 16. May have aux_layer and attention;
            of family dpt it gets the taps of that head.
        axis_name: has no effect, as there is no BatchNorm.
        depth: number of blocks.

    Raises:
        ValueError: as `attributes.fixed`; an aux_layer that there is not.
    """
    found = attributes.fixed(config, axis_name, 'ViT', (16,), first_dilation=None)
    aux = getattr(config, 'aux_layer', -3)
    if not -depth <= aux <= -1:
        raise ValueError(f'aux_layer is {aux}; expected {-depth} to -1, of {depth} blocks')
    return ViT(
        dim=heads * channels(HEAD, config.width),
        depth=depth,
        heads=heads,
        aux=aux,
        remat=found['remat'],
        dtype=found['dtype'],
        attention=getattr(config, 'attention', 'auto'),
        taps=TAPS if getattr(config, 'family', '') == 'dpt' else (),
    )
