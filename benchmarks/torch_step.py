"""Pairs for `benchmarks.against_torch`: the parts of CSS's train step but for its networks."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch import Tensor

from benchmarks import step, torch_parts
from benchmarks.torch_pairs import (
    RESNET101,
    SHAPES,
    TOLERANCE,
    Pair,
    compiled,
    configuration,
    tensors,
)
from css_jax import methods, parallel, state
from css_jax import step as steps
from css_jax.methods import css, views
from css_jax.ops import draws, losses, prototypes, pseudo_labels, schedules
from css_jax.state import Variables

STEP = 1000  # the EMA's decay has reached its limit
PHOTOMETRY = {'color': 9, 'blur': 2, 'flip': 1}  # purpose of a draw -> numbers an image


def parts(size: str) -> Iterator[Pair]:
    """Gives the step's parts without its networks, each on random input of its own."""
    run = setup(size)
    yield pseudo_label_pair(run)
    yield labelled_view_pair(run)
    yield strong_view_pair(run)
    yield from loss_pairs(run)
    yield optimiser_pair(size)


def setup(size: str) -> SimpleNamespace:
    """Makes what the parts work on: outputs of the network, prototypes, images, maps, draws."""
    config = configuration(size)
    method = methods.METHODS[config.method]
    ctx = methods.context(config)
    batch, crop, classes, dim = SHAPES[size]
    rng = np.random.default_rng(0)
    rho = rng.standard_normal((classes, dim), np.float32)
    current = state.create(method, method.optimizer(config)[0], ctx)
    memory = {'prototypes': rho, 'seen': np.ones(classes, bool)}
    current = current.replace(step=jnp.int32(STEP), memory=jax.tree.map(jnp.asarray, memory))
    h = crop // 4
    # Representations near their class's prototype, more or less; labels that are alike in 4 x 4.
    near = rng.integers(-1, classes, (2, batch, h, h))
    strength = rng.uniform(0, 1.5, near.shape).astype(np.float32)[..., None]
    z = rho[near] * strength + rng.standard_normal((*near.shape, dim), np.float32)
    # A pixel within rounding of delta_s would change all draws of its class.
    c = config.contrastive
    scores = prototypes.cosine(z, rho) / c.similarity_temperature
    own = np.exp(-np.asarray(losses.pixel_cross_entropy(scores, near)))
    near[np.abs(own - c.hard_threshold) < 1e-4] = -1
    label = near.repeat(4, 2).repeat(4, 3).astype(np.int32)  # [2, B, H, W]
    logits = rng.standard_normal((2, batch, h, h, classes), np.float32)
    raw = rng.integers(0, 256, (2, batch, crop, crop, 3), np.uint8)
    outputs = [{'logits': logits[i], 'representation': z[i]} for i in (0, 1)]
    sizes = {'labelled': {'image': raw[0]}, 'unlabelled': {'image': raw[1]}}
    return SimpleNamespace(
        ctx=ctx,
        config=config,
        method=method,
        state=current,
        outputs=outputs,
        raw=raw,
        label=label,
        indicator=rng.uniform(0, 1, label[1].shape).astype(np.float32),
        keys=lambda state: parallel.step_keys(state.key, state.step, sizes, None),
    )


def uniform(keys: Any, **counts: int) -> dict[str, Tensor]:
    """Gives the draws of each purpose from a stream's keys, [B, count]."""
    return {name: tensors(draws.uniform(keys, name, count)) for name, count in counts.items()}


def pseudo_label_pair(run: SimpleNamespace) -> Pair:
    """Both spaces, and mix."""
    size, tau = run.raw.shape[2:4], run.config.contrastive.similarity_temperature

    def ours(out, memory):
        y_lgt, j_lgt, y_rep, _ = css.both_spaces(out, memory, size, run.config)
        return {'label': pseudo_labels.mix(y_lgt, y_rep), 'indicator': j_lgt}

    def theirs(layout):
        out, rho = tensors(run.outputs[1], layout), tensors(run.state.memory['prototypes'])
        given = out['logits'], out['representation'], rho, size, tau
        return lambda: torch_parts.pseudo_labels(*given)

    return Pair('pseudo-labels', compiled(ours, run.outputs[1], run.state.memory), theirs)


def labelled_view_pair(run: SimpleNamespace) -> Pair:
    """Jitter, blur, flip, normalisation."""
    label = run.label[0].astype(np.uint8)  # -1 becomes 255
    given = uniform(run.keys(run.state)('labelled', 'photometric'), **PHOTOMETRY)

    def ours(state, image, label):
        stream = {'image': image, 'label': label}
        return dict(zip('xy', views.labelled(stream, run.keys(state), run.ctx), strict=True))

    def theirs(layout):
        images, labels = tensors(run.raw[0], layout), tensors(label)
        return lambda: dict(
            zip('xy', torch_parts.labelled_view(images, labels, given, run.config), strict=True)
        )

    return Pair('labelled view', compiled(ours, run.state, run.raw[0], label), theirs)


def strong_view_pair(run: SimpleNamespace) -> Pair:
    """Random scale and crop, CutMix, jitter, blur, flip, normalisation."""
    maps = {'label': run.label[1], 'indicator': run.indicator}
    keys = run.keys(run.state)('unlabelled', 'strong')
    given = uniform(keys, resize=3, mix=3, **PHOTOMETRY)

    def ours(state, image, maps):
        images, maps = views.strong(image, maps, run.keys(state), run.ctx)
        return {'image': images, **maps}

    def theirs(layout):
        images, moved = tensors(run.raw[1], layout), tensors(maps)

        def view():
            image, views = torch_parts.strong_view(images, moved, given, run.config)
            return {'image': image, **views}

        return view

    return Pair('strong view', compiled(ours, run.state, run.raw[1], maps), theirs)


def loss_pairs(run: SimpleNamespace) -> Iterator[Pair]:
    """The losses behind each head, forward and backward, and the new prototypes."""
    c = run.config.contrastive
    keys = jax.random.split(run.keys(run.state).shared('contrastive'))
    counts = c.anchors, c.bank
    given = [
        tensors(jax.random.uniform(key, (run.config.num_classes, count)))
        for key, count in zip(keys, counts, strict=True)
    ]
    label, pseudo = (tensors(labels) for labels in run.label)
    indicator, rho = tensors(run.indicator), tensors(run.state.memory['prototypes'])
    delta = run.config.unsupervised.threshold

    def pixel(*logits):
        return torch_parts.pixel_losses(logits, label, pseudo, indicator, delta), {}

    def contrast(*z):
        loss, new = torch_parts.contrastive(z, label, pseudo, indicator, rho, given, c)
        return loss * weight, {'prototypes': new}

    weight = c.weight * float(schedules.rampdown(STEP, run.config.steps))  # lambda_c
    for name, head, loss in (
        ('L_s + L_u, forward + backward', 'logits', pixel),
        ('hardness, prototypes, L_c, forward + backward', 'representation', contrast),
    ):
        yield Pair(name, _ours(run, head), _theirs(run, head, loss))


def _theirs(run: SimpleNamespace, head: str, loss: Callable) -> Callable:
    def theirs(layout):
        leaves = [tensors(out[head], layout).requires_grad_(True) for out in run.outputs]

        def backward():
            value, more = loss(*leaves)
            gradients = torch.autograd.grad(value, leaves)
            return {'labelled': gradients[0], 'strong': gradients[1], **more}

        return backward

    return theirs


def _ours(run: SimpleNamespace, head: str) -> Callable:
    """The method's own loss behind a network that gives back what it gets, not images but outputs.

    What only the other head needs is dead code and falls to the compiler.
    """
    given = SimpleNamespace(apply=lambda variables, images, **_: (images, {}))
    ctx = dataclasses.replace(run.ctx, module=given)

    def f(state, outputs, maps):
        def loss(own):
            full = [{**out, head: values} for out, values in zip(outputs, own, strict=True)]
            prepared = step.targets(*full, maps)
            value, (_, memory, _) = steps.objective(
                {}, state, prepared, run.keys(state), method=run.method, ctx=ctx
            )
            return value, memory

        own = [out[head] for out in outputs]
        (labelled, strong), memory = jax.grad(loss, has_aux=True)(own)
        found = {'labelled': labelled, 'strong': strong}
        return found | ({'prototypes': memory['prototypes']} if head == 'representation' else {})

    maps = {'labels': run.label[0], 'label': run.label[1], 'indicator': run.indicator}
    maps['agreement'] = np.zeros(len(run.label[0]), np.float32)
    return compiled(f, run.state, run.outputs, maps)


def optimiser_pair(size: str) -> Pair:
    """SGD and EMA, in place as in training: every call is the next step with the same gradient."""
    config = configuration(size, **(RESNET101 if size == 'real' else {}))
    method, ctx = methods.METHODS[config.method], methods.context(config)
    tx = method.optimizer(config)[0]
    rng = np.random.default_rng(0)
    first = state.create(method, tx, ctx).replace(step=jnp.int32(STEP))
    gradients = jax.tree.map(
        lambda x: rng.standard_normal(x.shape, np.float32), first.student.params
    )
    start = [np.array(x) for x in jax.tree.leaves(first.student.params)]

    def update(state, gradients):
        updates, opt_state = tx.update(gradients, state.opt_state, state.student.params)
        params = optax.apply_updates(state.student.params, updates)
        student = Variables(params, state.student.batch_stats)
        teacher = method.update_teacher(state, student, state.teacher.batch_stats, ctx)
        return state.replace(student=student, teacher=teacher, opt_state=opt_state)

    gradients = jax.tree.map(jnp.asarray, gradients)
    program = jax.jit(update, donate_argnums=0).lower(first, gradients).compile()
    kept = SimpleNamespace(state=first)

    def ours():
        kept.state = program(kept.state, gradients)
        return kept.state.student.params, kept.state.teacher.params

    def theirs(layout):
        student = [torch.tensor(x) for x in start]
        teacher = [torch.tensor(x) for x in start]
        for tensor, gradient in zip(student, jax.tree.leaves(gradients), strict=True):
            tensor.grad = torch.tensor(np.asarray(gradient))
        optimiser = torch_parts.sgd(student, config.optimizer)

        def step():
            optimiser.step()
            torch_parts.follow(teacher, student, config.teacher.decay)
            return student, teacher

        return step

    def flat(trees: Sequence[Sequence[Any]]) -> dict[str, np.ndarray]:
        # Copies: the next call writes into the same memory.
        return {f'{i}/{j}': np.array(x) for i, t in enumerate(trees) for j, x in enumerate(t)}

    def named(result: tuple) -> dict[str, np.ndarray]:
        return flat([jax.tree.leaves(tree) for tree in result])

    def torch_named(result: tuple) -> dict[str, np.ndarray]:
        return flat([[tensor.numpy() for tensor in tree] for tree in result])

    return Pair('optimiser + EMA', ours, theirs, TOLERANCE, named, torch_named)
