"""A network of one convolution, for tests in which the network does not matter."""

import flax.linen as nn

from css_jax.models.layers import BatchNorm, Conv


class Small(nn.Module):
    """Stands for DeepLab where the network does not matter: the step is traced in no time."""

    outputs: tuple
    axis_name: str | None

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(BatchNorm(self.axis_name)(Conv(8, 3, 4)(x), train))
        return {name: Conv(channels, 1, name=name)(x) for name, channels in self.outputs}


def small(config, num_classes, outputs, axis_name):
    return Small(tuple(outputs.items()), axis_name)
