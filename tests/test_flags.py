"""Every key of the table is read, and every key that should change the step's program does."""

import dataclasses
import functools
import itertools
import json
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters import partial_eval
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict

from configs import arguments
from css_jax import config as configs
from css_jax import evaluate, methods, models, parallel, state, train
from css_jax import step as steps
from css_jax.config import defaults, table, warnings
from css_jax.data import splits, streams
from css_jax.evaluation import protocols, results
from css_jax.models import dpt, fcn, largefov
from css_jax.models.backbones import PLAIN
from css_jax.parallel import cost
from tests import tiny
from tests.small import small


def leaves(table, path=''):
    """Dotted key -> value; the keys of all streams are under data.streams.*."""
    found = {}
    for name, value in table.items():
        key = f'{path}.*' if path == 'data.streams' else f'{path}.{name}'.lstrip('.')
        found |= leaves(value, key) if isinstance(value, ConfigDict) else {key: value}
    return found


# Of the house and of CSS; what another method declares is its own tests' to read.
OWN = set(configs.keys('css'))
KEYS = {key: value for key, value in leaves(tiny.get_config()).items() if key in OWN or '*' in key}


# Every key is read.


class Recorder:
    """A table that notes which of its leaves are read."""

    def __init__(self, table, seen, path=''):
        self._table, self._seen, self._path = table, seen, path

    def __getitem__(self, name):
        value = self._table[name]
        key = f'{self._path}.{name}'.lstrip('.')
        if isinstance(value, ConfigDict):
            return Recorder(value, self._seen, 'data.streams.*' if 'streams.' in key else key)
        self._seen.add(key)
        return value

    def __getattr__(self, name):
        # A method of the table, such as to_dict, is a read of no key.
        return self[name] if name in self._table else getattr(self._table, name)

    def __iter__(self):
        return iter(self._table)

    def __len__(self):
        return len(self._table)

    def items(self):
        return [(name, self[name]) for name in self]

    def values(self):
        return [self[name] for name in self]


def ones(shape):
    is_key = jnp.issubdtype(shape.dtype, jax.dtypes.prng_key)
    return jax.random.key(0) if is_key else jnp.ones(shape.shape, shape.dtype)


def traced(function):
    """Stands for a compiled function: traces it at its first call, and gives ones."""
    found = []

    def run(*arguments):
        if not found:
            found.append(jax.eval_shape(function, *arguments))
        return jax.tree.map(ones, *found)

    return run


class TracedStep:
    """Stands for `Layout.program`, with the devices' axis of one: traces, and gives ones."""

    def __init__(self, layout, step):
        specs = {'in_specs': (PartitionSpec(), PartitionSpec('data')), 'out_specs': PartitionSpec()}
        self._step = traced(jax.shard_map(step, mesh=layout.mesh, **specs))

    def __call__(self, state, batch):
        return self._step(state, batch)

    def lower(self, state, batch):
        return self

    def as_text(self):
        return ''

    def compile(self):
        def run(state, batch):
            _, metrics = self._step(state, batch)
            return state.replace(step=state.step + 1), metrics

        return run


def traced_sums(layout, function):
    del layout
    return traced(function)


def test_every_key_is_read(monkeypatch, tmp_path, data_dir, shallow):
    seen, finalise = set(), configs.finalise
    monkeypatch.setattr(configs, 'finalise', lambda *given: Recorder(finalise(*given), seen))
    monkeypatch.setattr(parallel, 'compile', lambda function, sharding=None: traced(function))
    monkeypatch.setattr(parallel.Layout, 'program', lambda *given: TracedStep(*given))
    monkeypatch.setattr(parallel.Layout, 'compile_sums', traced_sums)
    monkeypatch.setattr(parallel, 'rank', lambda axis: 0)
    monkeypatch.setattr(cost, 'cost', lambda program: {'bytes_total': None})
    # What is read only to be shown or compared is not in use.
    for module, name, answer in (
        (defaults, 'departures', []),
        (warnings, 'warnings', []),
        (splits, 'record', {'split_hash': ''}),
        (splits, 'report', []),
        (protocols, 'describe', ''),
        (results, 'file_name', ''),
        (results, 'report', {}),
    ):
        monkeypatch.setattr(module, name, lambda *_, answer=answer: answer)

    for method in ('supervised', 'css_cross'):  # the other methods have no keys beside theirs
        config = tiny.get_config()
        config.data.dir, config.method, config.steps = data_dir, method, 3  # from 1
        config.supervised.loss = 'ohem'
        config.augment.jitter_prob = config.augment.blur_prob = 0.5
        train.train(config, tmp_path / method)
        evaluate.evaluate(config, tmp_path / method)
        monkeypatch.setattr(models, 'build', small)  # the first method has read the network's keys
    fcn.build(configs.finalise(config).model, {'logits': 2}, None)  # the other families' keys
    config.model.update(VIT)
    largefov.build(configs.finalise(config).model, {'logits': 2}, None)
    config.model.update(DINOV2)
    for stream in config.data.streams.values():
        stream.crop = CROP
    dpt.build(configs.finalise(config).model, {'logits': 2}, None)
    # Those that finalise alone reads: it fills in others from one, and checks the other.
    assert set(KEYS) - seen <= {'follow', 'eval.by_number'}


# Every key that should change the step's program does.

# Keys of the program of one step: the method that shows it, and what else it then needs.
_C = ('css_mix', {})
_S, _U = ('supervised', {}), ('cutmix', {})
_OHEM = ('supervised', {'supervised.loss': 'ohem', 'supervised.ohem_kept': 64})
VIT = {'family': 'largefov', 'backbone': 'vit_tiny', 'output_stride': 16}
DINOV2, CROP = {'family': 'dpt', 'backbone': 'dinov2_small'}, (28, 28)
GRAPH = {
    'follow': _U,
    'num_classes': _S,
    'steps': _S,
    'pseudo_label': ('css', {}),
    'indicator': _C,
    'slips': _U,
    'model.representation_dim': _C,
    'data.mean': _S,
    'data.std': _S,
    'data.streams.*.batch_size': _S,
    'data.streams.*.crop': _S,
    'optimizer.learning_rate': _S,
    'optimizer.warmup_steps': _S,
    'optimizer.power': _S,
    'optimizer.floor': _S,
    'optimizer.momentum': _S,
    'optimizer.nesterov': _S,
    'optimizer.weight_decay': _S,
    'joint_pass': _U,
    'accumulate_steps': ('supervised', {'data.streams.*.batch_size': 6}),
    'teacher.decay': _S,
    'teacher.batch_norm': ('cutmix', {'teacher.labelled_pass': False}),
    'teacher.labelled_pass': _U,
    'supervised.loss': _S,
    'supervised.ohem_threshold': _OHEM,
    'supervised.ohem_kept': _OHEM,
    'augment.jitter_prob': _S,
    'augment.brightness': _S,
    'augment.contrast': _S,
    'augment.saturation': _S,
    'augment.hue': _S,
    'augment.blur_prob': _S,
    'augment.blur_sigma': _S,
    'augment.flip_prob': _S,
    'augment.resize': _U,
    'augment.mixing': _U,
    'unsupervised.loss': _U,
    'unsupervised.weight': _U,
    'unsupervised.threshold': _U,
    'unsupervised.cross_indicator': ('css_cross', {}),
    'unsupervised.warmup_passes': ('css_cross', {}),
    'contrastive.weight': _C,
    'contrastive.schedule': _C,
    'contrastive.estimator': ('css_mix', {'contrastive.scope': 'device'}),
    'contrastive.prototype_source': _C,
    'contrastive.unseen': _C,
    'contrastive.valid_indicator': _C,
    'contrastive.valid_threshold': _C,
    'contrastive.hard_threshold': _C,
    'contrastive.temperature': _C,
    'contrastive.similarity_temperature': _C,
    'contrastive.anchors': _C,
    'contrastive.negatives': _C,
    'contrastive.bank': _C,
    'contrastive.prototype_decay': _C,
}
# Those of the network itself.
NETWORK = {
    'model.stem': _S,
    'model.stem_ceil_mode': ('supervised', {'model.stem': 'deep'}),
    'model.output_stride': ('supervised', {'model.backbone': 'efficientnet_lite0'}),
    'model.width': _S,
    'model.first_dilation': _S,
    'model.multi_grid': _S,
    'model.head_convs': _S,
    'model.low_level_bias': _S,
    'model.degrid': ('supervised', {'model.family': 'fcn'}),
    'model.fov_dilation': ('supervised', {'model.family': 'largefov'}),
    'model.dtype': _S,
    'model.atrous': _S,
    'model.remat': _S,
}
# Those of heads that CSS does not have: tests/models/test_largefov.py shows what they change.
HEADS = ('model.pool', 'model.aux_layer')
# Those of transformers, see tests/models/test_dinov2.py; and of what is trained, see
# tests/test_optimizer.py.
OTHERS = ('model.registers', 'model.attention', 'model.frozen_backbone')
# Those of the program on several devices.
DEVICES = {'contrastive.scope': _C}
# Keys of the host, with another value; None: no other one can be had in this test.
HOST = {
    'seed': 1,
    'init_from': None,
    'burn_in_steps': 2,
    'parallel': 'pmap',
    'profile': (1, 2),
    'wandb': 'project',
    'eval.by_number': True,
    'log_every': 7,
    'checkpoint_every': 7,
    'model.pretrained': None,
    'data.dir': 'elsewhere',
    'data.resampling': 'pil',
    'data.threads': 1,
    'data.prefetch': 1,
    'data.unreadable': 1,
    'data.streams.*.dataset': 'shapes/64',
    'data.streams.*.split': 'val',
    'data.streams.*.reads': None,  # the method's
    'data.streams.*.count': 3,
    'data.streams.*.subset_seed': 1,
    'data.streams.*.min_per_class': 1,
    'data.streams.*.ids_file': 'list.txt',
    'data.streams.*.exclude': '',
    'data.streams.*.resize': (0.7, 0.8),
    'data.streams.*.resize_law': 'long_side',
    'data.streams.*.long_side': (24, 96),
    'data.streams.*.flip_prob': 0.5,
    'data.streams.*.pad': 'constant',
    'eval.dataset': 'shapes/64',
    'eval.split': 'fresh',
    'eval.batch_size': 3,
    'eval.pad_to': (96, 96),
    'eval.protocol': 'sliding',
    'eval.window': (24, 24),
    'eval.multiple': 14,
    'eval.flip': True,
    'eval.scales': (0.5, 1.0),
    'eval.network': 'student',
    'eval.every': 2,
}


def test_every_key_is_of_the_step_or_of_the_host():
    listed = ['method', 'model.family', 'model.backbone', *GRAPH, *NETWORK, *HEADS, *OTHERS]
    assert sorted([*listed, *DEVICES, *HOST]) == sorted(KEYS)


def text(function, *shapes):
    """A function's program in words, without what no result depends on."""
    traced = jax.jit(function).trace(*shapes).jaxpr
    used = [True] * len(traced.jaxpr.outvars)
    program, consts, _ = partial_eval.dce_jaxpr_consts(traced.jaxpr, used)
    arrays = [x for x, is_used in zip(traced.consts, consts, strict=True) if is_used]
    return f'{program} {[np.asarray(x).tolist() for x in arrays]}'


@functools.cache
def stepped(method, settings='{}', devices=1):
    """The text of a step on the network of tests/small.py; `settings` are JSON."""
    config = configured(method, json.loads(settings))
    functions, axis = methods.METHODS[method], 'data' if devices > 1 else None
    with mock.patch.object(models, 'build', small):
        ctx = methods.context(config, axis, images={'labelled': 8, 'unlabelled': 16})
        tx, _ = functions.optimizer(config)
        single = dataclasses.replace(ctx, module=methods.context(config).module)
    current = jax.eval_shape(lambda: state.create(functions, tx, single))
    batch = streams.batch_shapes(config.data, functions.streams)
    step = functools.partial(steps.train_step, method=functions, optimizer=tx, ctx=ctx)
    if axis:
        mesh, spec = Mesh(np.array(jax.devices()[:devices]), (axis,)), PartitionSpec()
        in_specs, out_specs = (spec, PartitionSpec(axis)), (spec, spec)
        step = jax.shard_map(step, mesh=mesh, in_specs=in_specs, out_specs=out_specs)
    return text(step, current, batch)


@functools.cache
def applied(method, settings='{}'):
    """The text of a pass of a method's own network in training; `settings` are JSON."""
    ctx = methods.context(configured(method, json.loads(settings)))
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), np.float32)
    return text(ctx.train, state.shapes(ctx), images)


def configured(method, settings):
    config = tiny.get_config()
    config.method = method
    config.augment.jitter_prob = config.augment.blur_prob = 0.5
    for key, value in settings.items():
        value = tuple(value) if isinstance(value, list) else value  # JSON has no tuples
        for stream in config.data.streams if '*' in key else ('',):
            config.update_from_flattened_dict({key.replace('*', stream): value})
    return configs.finalise(config)


def values(key, method, current):
    """All values of a key that has names for them, else its current one and another."""
    if key == 'model.atrous':  # 'auto' is one of these
        return 'dilated', 'space_to_batch'
    if key == 'model.first_dilation':  # and here
        return 'previous', 'own'
    if key == 'model.multi_grid':
        return current, (2,)
    declared = table.find(key.replace('*', 'labelled'), method)
    if declared.choices:
        return declared.choices
    if key == 'model.remat':
        return current, ('layer3',), ('decoder',)
    if isinstance(current, bool):
        return current, not current
    if isinstance(current, tuple):
        return current, tuple(2 * v if isinstance(v, int) else v / 2 for v in current)
    return current, 2 * current + 1 if isinstance(current, int) else current / 2


def programs(key, method, settings, program=stepped, **where):
    """Value -> the program's text, for every value of a key."""
    current = leaves(configured(method, settings))[key]
    found = {}
    for value in values(key, method, current):
        changed = settings if value == current else {**settings, key: value}
        found[str(value)] = program(method, json.dumps(changed), **where)
    return found


def assert_distinct(found):
    alike = [(a, b) for a, b in itertools.combinations(found, 2) if found[a] == found[b]]
    assert len(found) > 1
    assert not alike


def test_what_no_result_depends_on_is_no_difference():
    def program(dead=0.0, live=0.0, table=(1, 2)):
        @jax.custom_vjp
        def double(x):
            return 2 * x, jnp.sin(dead + x)

        double.defvjp(lambda x: (double(x), None), lambda _, g: (2 * g[0],))

        def body(carry, _):
            x, unused = carry
            live_too, dead_too = jax.jit(lambda x: (double(live + x)[0], jnp.cos(dead * x)))(x)
            return (live_too, unused + dead * dead_too), jnp.tan(dead - x)

        def step(x):
            jnp.exp(dead + x)
            carry, _ = jax.lax.scan(jax.checkpoint(body), (x, x), None, 3)
            loss = lambda x: (double(x)[0].sum(), dead * x)  # noqa: E731
            return carry[0], jax.grad(loss, has_aux=True)(x)[0], double(x)[0] + np.array(table)

        return text(step, jnp.ones(2))

    assert program() == program() == program(dead=0.5)
    assert_distinct(dict(enumerate([program(), program(live=0.5), program(table=(1, 3))])))


@pytest.mark.parametrize('key', GRAPH)
def test_a_key_of_the_step_changes_its_program(key):
    assert_distinct(programs(key, *GRAPH[key]))


@pytest.mark.parametrize('key', DEVICES)
def test_a_key_of_several_devices_changes_their_program(key):
    assert_distinct(programs(key, *DEVICES[key], devices=2))


@pytest.mark.parametrize('key', NETWORK)
def test_a_key_of_the_network_changes_the_program(key, shallow):
    assert_distinct(programs(key, *NETWORK[key], program=applied))


def test_backbones_are_other_networks():
    vit = {'model.family': 'dpt', 'model.output_stride': 16, 'data.streams.*.crop': CROP}
    config = {
        name: configured('supervised', (vit if name in PLAIN else {}) | {'model.backbone': name})
        for name in models.BACKBONES
    }
    assert_distinct({name: str(methods.context(c).module) for name, c in config.items()})


def test_methods_are_other_programs():
    found = {method: stepped(method) for method in arguments.METHODS}
    assert found.pop('css') == found['css_mix']  # of which css_mix is one point
    assert_distinct(found)


def test_keys_of_the_host_leave_the_program_alone():
    changes = {key: value for key, value in HOST.items() if value is not None}
    old = leaves(configured('css_mix', {}))
    new = leaves(configured('css_mix', changes))
    assert {key for key in KEYS if old[key] != new[key]} >= set(changes)
    assert stepped('css_mix', json.dumps(changes)) == stepped('css_mix')
