"""Networks in bfloat16 beside the same ones in float32, a kind of backbone each.

A value is rounded by 2^-8 of it at most, in every layer anew. The bound is on what becomes of it:
the root mean square of the difference of the logits is below `BOUND` of their standard deviation.
tests of ResNet with DeepLab, ViT and DPT stand beside those of the network.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from css_jax import models
from css_jax.models import drn, efficientnet, mobilenet, resnet
from tests.small import drawn, shallow

BOUND = 0.05
CONFIG = {'stem': 'conv7', 'output_stride': 8, 'width': 0.125}
NETWORKS = {
    'mobilenet_v1': {'family': 'fcn'},
    'efficientnet_lite0': {'family': 'fcn', 'width': 0.25},
    'drn_d_22': {'family': 'fcn'},
    'resnet18': {'family': 'largefov'},
}


@pytest.mark.parametrize('backbone', NETWORKS)
def test_bfloat16_agrees_with_float32(monkeypatch, backbone):
    monkeypatch.setitem(models.BACKBONES, 'resnet18', shallow)
    monkeypatch.setitem(
        models.BACKBONES, 'drn_d_22', partial(drn.build, resnet.BasicBlock, (1, 1, 1, 1))
    )
    blocks = mobilenet.BLOCKS
    monkeypatch.setattr(mobilenet, 'BLOCKS', (blocks[1], blocks[3], *blocks[5:7], *blocks[11:]))
    monkeypatch.setattr(efficientnet, 'STAGES', tuple((1, *s[1:]) for s in efficientnet.STAGES))
    config = CONFIG | {'backbone': backbone} | NETWORKS[backbone]
    exact, rounded = (
        models.build(config | {'dtype': dtype}, outputs={'logits': 5})
        for dtype in ('float32', 'bfloat16')
    )
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 32, 32, 3)), jnp.float32)
    variables = drawn(jax.eval_shape(exact.init, jax.random.key(0), x))
    assert {a.dtype for a in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
    found = jax.jit(lambda v, x: (exact.apply(v, x)['logits'], rounded.apply(v, x)['logits']))
    expected, logits = jax.device_get(found(variables, x))
    assert logits.dtype == np.float32  # losses are computed of these
    difference = np.sqrt(np.mean((expected - logits) ** 2))
    assert 0 < difference < BOUND * expected.std()
