"""Optimisers: SGD as the field uses it, and AdamW, with groups of parameters.

An optimiser is (transformation, rates): the schedules by which the transformation moves, by the
name under which the loop logs them.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import optax
from ml_collections import ConfigDict

from css_jax.keys import Key
from css_jax.ops import schedules

# Keys of the table that AdamW does not read: setting one in a method of it is answered.
NOT_OF_ADAMW = {
    'optimizer.momentum': Key(0.9, 'of SGD', range=(0, 1), only=lambda c: False),
    'optimizer.nesterov': Key(True, 'of SGD', only=lambda c: False),
}
_FROZEN = 'frozen'  # the label of `frozen` parameters; no group is called so
Optimizer = tuple[optax.GradientTransformation, dict[str, optax.Schedule]]


class Group(NamedTuple):
    """Parameters that are treated alike.

    Attributes:
        name: of the group; its rate is logged as 'learning_rate_NAME'.
        pattern: a regular expression that is searched for in a parameter's path, such as
            'backbone/layer1_0/conv1/kernel'. The first group that has it takes the parameter.
        rate: factor of the learning rate.
        weight_decay: instead of the optimiser's; None: the optimiser's.
        frozen: the parameters stay as they are.
    """

    name: str
    pattern: str
    rate: float = 1.0
    weight_decay: float | None = None
    frozen: bool = False


def heads(rate: float) -> list[Group]:
    """Return the group of all parameters but the backbone's, none where their factor is 1.

    Args:
        rate: factor of the learning rate.
    """
    return [Group('heads', '^(?!backbone/)', rate=rate)] if rate != 1 else []


def frozen(config: ConfigDict) -> tuple[str, ...]:
    """Return the first names of the parameters that keep their first values.

    With `model.frozen_backbone` they are the backbone's. A table without that key freezes none.
    """
    known = 'frozen_backbone' in config.get('model', {})
    return ('backbone',) if known and config.model.frozen_backbone else ()


def split(params: Mapping[str, Any], config: ConfigDict) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the parameters that are trained, and those that are `frozen`.

    The gradient is taken of the first alone, so that nothing of what is frozen is kept for a
    backward pass, and there is none.
    """
    still = {name: params[name] for name in frozen(config)}
    return {name: tree for name, tree in params.items() if name not in still}, still


def learning_rate(config: ConfigDict) -> optax.Schedule:
    """Return the learning rate by step, from `config.optimizer` and `config.steps`."""
    c = config.optimizer
    return schedules.poly(c.learning_rate, config.steps, c.power, c.floor, c.warmup_steps)


def sgd(
    config: ConfigDict, groups: Sequence[Group] = (), *, rate: optax.Schedule | None = None
) -> Optimizer:
    """Return torch's SGD: decay is added to the gradient before the momentum.

    Torch does not damp the first momentum, and neither does `optax.trace`.

    Args:
        config: the rate and weight decay of `config.optimizer` are of parameters of no group.
        groups: see `Group`.
        rate: learning rate by step; None: `learning_rate` of the configuration.
    """
    c, rate = config.optimizer, rate or learning_rate(config)

    def transformation(factor: float, weight_decay: float) -> optax.GradientTransformation:
        return optax.chain(
            optax.add_decayed_weights(weight_decay),
            optax.trace(decay=c.momentum, nesterov=c.nesterov),
            optax.scale_by_learning_rate(_times(rate, factor)),
        )

    return _grouped(transformation, rate, config, groups)


def adamw(
    config: ConfigDict,
    groups: Sequence[Group] = (),
    *,
    head_factor: float = 1.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    rate: optax.Schedule | None = None,
) -> Optimizer:
    """Return AdamW (Loshchilov and Hutter, arXiv 1711.05101): the decay is decoupled.

    As in torch, the decay of a group is scaled by that group's learning rate.

    Args:
        config: the rate and weight decay of `config.optimizer` are of parameters of no group.
        groups: see `Group`.
        head_factor: of the learning rate of all that is of no group and not the backbone's.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
        rate: learning rate by step; None: `learning_rate` of the configuration.
    """
    rate = rate or learning_rate(config)

    def transformation(factor: float, weight_decay: float) -> optax.GradientTransformation:
        return optax.chain(
            optax.scale_by_adam(b1, b2, eps),
            optax.add_decayed_weights(weight_decay),
            optax.scale_by_learning_rate(_times(rate, factor)),
        )

    groups = [*groups, *heads(head_factor)]
    return _grouped(transformation, rate, config, groups)


def _grouped(
    transformation: Callable[[float, float], optax.GradientTransformation],
    rate: optax.Schedule,
    config: ConfigDict,
    groups: Sequence[Group],
) -> Optimizer:
    """Apply a transformation of (factor of the rate, weight decay) to each group."""
    rates, weight_decay = {'learning_rate': rate}, config.optimizer.weight_decay
    still = frozen(config)
    if not groups and not still:
        return transformation(1.0, weight_decay), rates
    names = [group.name for group in groups]
    if {'', _FROZEN} & set(names) or len(set(names)) < len(names):
        raise ValueError(f'optimiser groups: got the names {names}, expected different ones')
    by_name = {'': transformation(1.0, weight_decay)}
    if still:
        by_name[_FROZEN] = optax.set_to_zero()
    for group in groups:
        if group.frozen:
            by_name[group.name] = optax.set_to_zero()
            continue
        decay = weight_decay if group.weight_decay is None else group.weight_decay
        by_name[group.name] = transformation(group.rate, decay)
        rates[f'learning_rate_{group.name}'] = _times(rate, group.rate)

    def labels(params: Any) -> Any:
        paths = jax.tree_util.tree_map_with_path(
            lambda path, _: jax.tree_util.keystr(path, simple=True, separator='/'), params
        )
        names = jax.tree.map(lambda path: _group(path, groups), paths)
        if unused := {group.name for group in groups} - set(jax.tree.leaves(names)):
            raise ValueError(
                f'optimiser groups {sorted(unused)} have no parameter; their patterns are searched '
                f'for in paths such as {jax.tree.leaves(paths)[0]!r}'
            )
        return {**names, **{top: jax.tree.map(lambda _: _FROZEN, names[top]) for top in still}}

    return optax.partition(by_name, labels), rates


def _group(path: str, groups: Sequence[Group]) -> str:
    return next((group.name for group in groups if re.search(group.pattern, path)), '')


def _times(rate: optax.Schedule, factor: float) -> optax.Schedule:
    return rate if factor == 1.0 else lambda step: factor * rate(step)
