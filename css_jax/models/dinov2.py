"""The vision transformers of DINOv2 (Oquab et al., arXiv 2304.07193), of patches of 14 pixels.

Those with registers are of Darcet et al., arXiv 2309.16588. A block is that of `models.vit`, with a
LayerScale; what differs is how the table of positions is resized, and that the tokens of four
blocks are given, all of them behind the last LayerNorm.
"""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from css_jax.keys import Key
from css_jax.models import attributes, vit
from css_jax.models import remat as stages
from css_jax.models.layers import Train, channels, check_choice
from css_jax.ops import interpolation

PATCH = 14  # pixels
GRID = 37  # patches on a side of the images that the last of the training was on, of 518 pixels
NAMES = ('tap1', 'tap2', 'tap3', 'tap4')
REGISTERS = (0, 4)
_normal = nn.initializers.normal(0.02)


class Size(NamedTuple):
    """One of the published networks.

    Attributes:
        heads: number of heads, of 64 channels each.
        depth: number of blocks.
        taps: blocks, from 0, whose tokens a head reads.
        ffn: one of `vit.FFNS`.
    """

    heads: int
    depth: int
    taps: tuple[int, int, int, int]
    ffn: str = 'mlp'


SIZES = {
    'dinov2_small': Size(6, 12, vit.TAPS),
    'dinov2_base': Size(12, 12, vit.TAPS),
    'dinov2_large': Size(16, 24, (4, 11, 17, 23)),
    'dinov2_giant': Size(24, 40, (9, 19, 29, 39), 'swiglu'),
}
KEYS = {
    'model.registers': Key(
        0, 'DINOv2: tokens beside the class token and the patches: 0 | 4', choices=REGISTERS,
        only=lambda c: c.model.backbone in SIZES,
    ),
}  # fmt: skip


def positions(
    pos_embed: jax.Array,
    grid: tuple[int, int],
    offset: float = 0.1,
    antialias: bool = False,
) -> jax.Array:
    """Resize a table of positions bicubically, as the program of DINOv2 does it.

    That program asks torch for a scale of (h + offset) / G, not of h / G, so that row i of the
    result is read at (i + 0.5) G / (h + offset) - 0.5. Trained weights are of features that have
    this. The gradient is two products of matrices.

    Args:
        pos_embed: [1, 1 + G G, D]: the class token's row, then those of a square grid, row by row.
        grid: (h, w) of the grid asked for.
        offset: see above; 0.1 of the networks without registers, 0 of those with them.
        antialias: as of `css_jax.ops.interpolation.bicubic`; true of the networks with registers.

    Returns:
        [1, 1 + h w, D] float32; the values of `pos_embed` unchanged where the grid is its own.

    Raises:
        ValueError: the table has no square grid.
    """
    rows = pos_embed.shape[1] - 1 if pos_embed.ndim == 3 else 0
    side = round(rows**0.5)
    if rows < 1 or side**2 != rows or len(pos_embed) != 1:
        raise ValueError(f'pos_embed has shape {pos_embed.shape}; expected [1, 1 + G * G, D]')
    pos_embed = pos_embed.astype(jnp.float32)
    if tuple(grid) == (side, side):
        return pos_embed
    down, across = (
        interpolation.bicubic(side, length, (length + offset) / side, antialias) for length in grid
    )
    table = pos_embed[:, 1:].reshape(side, side, -1)
    table = jnp.einsum('hi,wj,ijd->hwd', down, across, table, precision='highest')
    return jnp.concatenate([pos_embed[:, :1], table.reshape(1, -1, table.shape[-1])], axis=1)


class ViT(nn.Module):
    """The network; images [B, H, W, 3] -> of four blocks the patches' tokens, [B, h, w, D] each.

    Attributes:
        embed_dim: channels of a token, D.
        depth: number of blocks.
        heads: number of heads, which divides `embed_dim`.
        grid: side of the grid that the table of positions is for.
        patch: side of a patch in pixels, which divides H and W.
        ffn: one of `vit.FFNS`.
        registers: number of tokens between the class token and the patches, without a position.
        offset: see `positions`.
        antialias: see `positions`.
        taps: blocks, from 0, whose tokens are given.
        remat: stages computed anew in the backward pass, see `css_jax.models.remat`: the stem is
            all before the first block; of the blocks see `vit.tokens_of_blocks`.
        attention: see `vit.implementation`.
        dtype: of the computation; parameters are float32.
    """

    embed_dim: int = 384
    depth: int = 12
    heads: int = 6
    grid: int = GRID
    patch: int = PATCH
    ffn: str = 'mlp'
    registers: int = 0
    offset: float = 0.1
    antialias: bool = False
    taps: tuple[int, ...] = vit.TAPS
    remat: tuple[str, ...] = ()
    attention: str = 'auto'
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: Train = False) -> tuple[jax.Array, ...]:
        """Apply the network, which is the same in training.

        Returns:
            For each of `taps` [B, h, w, D], h and w being H and W divided by the patch: the
            block's tokens behind the last LayerNorm, without class token and registers.

        Raises:
            ValueError: a side of the images is no multiple of the patch.
        """
        height, width = x.shape[1:3]
        if height % self.patch or width % self.patch or not height * width:
            near = [max(1, round(side / self.patch)) * self.patch for side in (height, width)]
            raise ValueError(
                f'images are {height}x{width}; expected sides that are multiples of {self.patch}, '
                f'the patch, such as {near[0]}x{near[1]}'
            )
        shape = (x.shape[0], height // self.patch, width // self.patch, self.embed_dim)

        def stem(module: nn.Module, x: jax.Array) -> jax.Array:
            return module._tokens(x)

        x = stages.run(self, 'stem', stem, x)
        block = partial(
            vit.Block,
            self.heads,
            layer_scale=1.0,
            dtype=self.dtype,
            ffn=self.ffn,
            attention=self.attention,
        )
        found = vit.tokens_of_blocks(self, block, x, train)
        norm = vit.layer_norm('norm', 1e-6, self.dtype)
        first = 1 + self.registers
        return tuple(norm(found[tap])[:, first:].reshape(shape) for tap in self.taps)

    def _tokens(self, x: jax.Array) -> jax.Array:
        """Images [B, H, W, 3] -> [B, 1 + registers + h w, D]: class token, registers, patches."""
        x = vit.Patches(self.embed_dim, self.patch, self.dtype, name='patch_embed')(x)
        token = self.param('cls_token', _normal, (1, 1, self.embed_dim))
        table = self.param('pos_embed', _normal, (1, 1 + self.grid**2, self.embed_dim))
        places = positions(table, x.shape[1:3], self.offset, self.antialias).astype(self.dtype)
        parts = [self._each(token, x) + places[:, :1]]
        if self.registers:
            tokens = self.param('register_tokens', _normal, (1, self.registers, self.embed_dim))
            parts.append(self._each(tokens, x))
        parts.append(x.reshape(x.shape[0], -1, self.embed_dim) + places[:, 1:])
        return jnp.concatenate(parts, axis=1)

    def _each(self, tokens: jax.Array, x: jax.Array) -> jax.Array:
        """[1, n, D] -> [B, n, D], the same for every image."""
        return jnp.broadcast_to(tokens.astype(self.dtype), (x.shape[0], *tokens.shape[1:]))


class Backbone(ViT):
    """The same as a backbone: the features have names, those of `NAMES`."""

    def __call__(self, x: jax.Array, train: Train = False) -> dict[str, jax.Array]:
        """Apply the backbone; name -> [B, h, w, D], see `ViT`."""
        return dict(zip(NAMES, super().__call__(x, train), strict=True))


def build(name: str, config: Any, axis_name: str | None) -> Backbone:
    """Make the backbone that `config` (config.model) describes.

    The width multiplies the channels of each head; their number stays.

    Args:
        name: one of `SIZES`.
        config: see `attributes.fixed`; the output stride is not read. May have registers and
            attention.
        axis_name: has no effect, as there is no BatchNorm.

    Raises:
        ValueError: as `attributes.fixed`; another number of registers.
    """
    found = attributes.fixed(config, axis_name, 'DINOv2', None, first_dilation=None)
    registers, size = getattr(config, 'registers', 0), SIZES[name]
    check_choice('registers', registers, REGISTERS)
    return Backbone(
        embed_dim=size.heads * channels(vit.HEAD, found['width']),
        depth=size.depth,
        heads=size.heads,
        ffn=size.ffn,
        registers=registers,
        offset=0.0 if registers else 0.1,
        antialias=bool(registers),
        taps=size.taps,
        remat=found['remat'],
        attention=getattr(config, 'attention', 'auto'),
        dtype=found['dtype'],
    )
