"""Exported files: the same labels as the run's own evaluation, read without this package."""

import functools
import json
import re
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from configs import cosa, usss
from css_jax import config as configs
from css_jax import methods, models, state
from css_jax.evaluation import protocols
from css_jax.export import onnx as export_onnx
from css_jax.export import program as export_program
from css_jax.export import stablehlo as export_stablehlo
from css_jax.methods import views
from css_jax.models import dinov2, resnet
from css_jax.modes import convert, export
from css_jax.run import checkpoint
from css_jax.run import folder as run_folder
from css_jax.weights import dinov2 as dinov2_weights
from css_jax.weights import drn, files, imas, state_dicts, timm, unimatch
from tests import program, small, tiny
from tests.conftest import ROOT
from tests.dinov2_small import SHALLOW

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 40, 56, 3)).astype(np.uint8)
SIZE = '40,56'


def save(config, workdir):
    """Make DIR the folder of a run with random arrays."""
    config = configs.finalise(config)
    method, ctx = methods.METHODS[config.method], methods.context(config)
    rng = np.random.default_rng(0)

    def values(path, s):
        if path[-1].key in ('var', 'scale'):
            x = rng.uniform(0.5, 1.5, s.shape)
        elif len(s.shape) == 4:
            x = rng.standard_normal(s.shape) * (2 / np.prod(s.shape[:3])) ** 0.5
        else:
            x = 0.1 * rng.standard_normal(s.shape)
        return jnp.asarray(x, s.dtype)

    networks = jax.tree_util.tree_map_with_path(values, state.networks(method, ctx))
    memory = method.init_memory(config)
    key = jax.random.key(0)
    ended = state.TrainState(jnp.int32(8), **networks, memory=memory, opt_state={}, key=key)
    run_folder.claim(config, workdir)
    checkpoints = checkpoint.Checkpoints(workdir)
    checkpoints.save(8, ended, {'split_hash': 'x'})
    checkpoints.close()
    return workdir


def tiny_config():
    """CSS, in the form of convolutions that exported programs have."""
    config = tiny.get_config()
    config.model.atrous = 'dilated'
    return config


@pytest.fixture(scope='module')
def run(shallow, tmp_path_factory):
    return save(tiny_config(), tmp_path_factory.mktemp('runs') / 'css')


@pytest.fixture(scope='module')
def exported(run, tmp_path_factory):
    pytest.importorskip('flatbuffers', reason='jax serialises with flatbuffers')
    return export.export(run, tmp_path_factory.mktemp('out') / 'a' / 'css.stablehlo', size=SIZE)


def evaluated(workdir, images, name=None):
    """What the evaluation of a run computes: logits."""
    config = run_folder.load(workdir)
    method, ctx = methods.METHODS[config.method], methods.context(config)
    chosen = export_program.chosen(config, name)
    like = state.networks(method, ctx)[chosen.network]
    variables = checkpoint.restore_network(workdir, 8, like, chosen.network)
    predict = protocols.network(config, ctx, chosen.predict, variables)
    return np.asarray(jax.jit(lambda x: predict(views.normalise(x, ctx)))(images))


PAGE = (ROOT / 'docs' / 'export.md').read_text()
ONNX_LOADER, LOADER = re.findall(r'```python\n(.*?)```', PAGE, re.S)
RUN_IT = """
np.savez('found.npz', label=label, confidence=confidence, first=program.call(images[:1])[0])
import sys
assert not {'css_jax', 'flax', 'tensorflow'} & sys.modules.keys()
"""


def test_stablehlo_is_the_evaluation_without_this_package(run, exported, tmp_path):
    """By the lines of docs/export.md, in a process that knows nothing of this repository."""
    np.save(tmp_path / 'images.npy', IMAGES)
    (tmp_path / 'pets.stablehlo').write_bytes(exported.read_bytes())
    command = [sys.executable, '-c', LOADER + RUN_IT]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found, logits = np.load(tmp_path / 'found.npz'), evaluated(run, IMAGES)
    np.testing.assert_array_equal(found['label'], logits.argmax(-1))
    np.testing.assert_array_equal(found['first'], logits[:1].argmax(-1))
    assert found['label'].dtype == np.int32 and found['confidence'].dtype == np.float32
    expected = jax.nn.softmax(logits).max(-1)
    np.testing.assert_allclose(found['confidence'], expected, atol=1e-5)
    assert len(np.unique(found['label'])) > 2  # else equal labels say nothing


def test_stablehlo_of_dpt_resizes_to_multiples_of_its_patch(tmp_path, monkeypatch):
    """The images are 40 pixels high, which 14 does not divide."""
    pytest.importorskip('flatbuffers', reason='jax serialises with flatbuffers')
    from jax import export as jax_export

    monkeypatch.setitem(dinov2.SIZES, 'dinov2_small', SHALLOW)
    workdir = save(others()['dpt'], tmp_path / 'run')
    target = export.export(workdir, tmp_path / 'dpt.stablehlo', size=SIZE)
    with zipfile.ZipFile(target) as file:
        about = json.loads(file.read(export_stablehlo.ABOUT))
        program = jax_export.deserialize(bytearray(file.read(export_stablehlo.PROGRAM)))
    assert (
        'sides resized to the nearest multiples of 14, logits back, one view' in about['protocol']
    )
    label, _ = program.call(IMAGES)
    logits = evaluated(workdir, IMAGES)
    assert logits.shape[1:3] == (40, 56) and len(np.unique(logits.argmax(-1))) > 2
    np.testing.assert_array_equal(label, logits.argmax(-1))


def test_a_file_says_what_it_is(exported):
    with zipfile.ZipFile(exported) as file:
        about = json.loads(file.read(export_stablehlo.ABOUT))
    assert about['classes'][:2] == ['background', 'disc'] and len(about['classes']) == 7
    assert (about['method'], about['step'], about['network']) == ('css_mix', 8, 'teacher')
    assert about['platforms'] == ['cpu', 'cuda', 'tpu']
    assert about['protocol'].startswith('teacher, whole image of 40x56, one view; without')
    assert not list(exported.parent.glob('*.tmp*'))


def others():
    """Configurations of other families and backbones."""
    lite, mobile = tiny.get_config('supervised'), tiny.get_config('supervised')
    lite.model.backbone, mobile.model.backbone = 'efficientnet_lite0', 'mobilenet_v1'
    cams, several = cosa.get_config(), usss.get_config('quickstart')
    vit = cosa.get_config('backbone=vit_tiny')
    vit.model.output_stride = 16
    several.model.width = cams.model.width = vit.model.width = 0.125
    cams.eval.protocol = 'resized'
    dpt = tiny.get_config('supervised')
    dpt.model.update(family='dpt', backbone='dinov2_small')
    dpt.data.streams.labelled.crop = (28, 28)
    return {'dpt': dpt, 'lite': lite, 'mobile': mobile, 'cosa': cams, 'vit': vit, 'usss': several}


@pytest.mark.parametrize(
    'name',
    ['css', 'mobile', 'cosa', 'vit', 'usss', 'dpt', pytest.param('lite', marks=pytest.mark.soak)],
)
def test_onnx_has_the_labels_of_the_evaluation(name, run, tmp_path, monkeypatch):
    pytest.importorskip('jax2onnx', reason='docs/export.md says how to install jax2onnx')
    onnxruntime = pytest.importorskip('onnxruntime')
    monkeypatch.setitem(dinov2.SIZES, 'dinov2_small', SHALLOW)
    workdir = run if name == 'css' else save(others()[name], tmp_path / 'run')
    evaluation = 'figures' if name == 'usss' else None
    target = export.export(workdir, tmp_path / 'a.onnx', size=SIZE, evaluation=evaluation)
    session = onnxruntime.InferenceSession(target)
    label, confidence = session.run(None, {'image': IMAGES})
    logits = resized(workdir) if name == 'cosa' else evaluated(workdir, IMAGES, evaluation)
    assert label.dtype == np.int32 and label.shape == IMAGES.shape[:3]
    assert (label == logits.argmax(-1)).mean() >= 0.999
    np.testing.assert_allclose(confidence, jax.nn.softmax(logits).max(-1), atol=2e-3)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about['classes'])[0] == 'background' and about['step'] == '8'
    assert session.get_inputs()[0].shape == ['batch', 40, 56, 3]


def test_an_onnx_file_is_used_as_the_documentation_says(run, tmp_path, monkeypatch, capsys):
    pytest.importorskip('jax2onnx', reason='docs/export.md says how to install jax2onnx')
    pytest.importorskip('onnxruntime')
    export.export(run, tmp_path / 'pets.onnx', size=SIZE)
    monkeypatch.chdir(tmp_path)
    Image.fromarray(IMAGES[0]).resize((112, 80)).save('photo.jpg')
    exec(ONNX_LOADER, {})
    written = np.asarray(Image.open('label.png'))
    assert written.shape == (80, 112) and written.max() < 7
    assert '%' in capsys.readouterr().out


def resized(workdir):
    """Logits of one view of the protocol 'resized', as the evaluator computes them."""
    config = ConfigDict(run_folder.load(workdir).to_dict())
    config.eval.scales, config.eval.flip = (1.0,), False
    ctx = methods.context(config)
    chosen = export_program.chosen(config, None)
    like = state.networks(methods.METHODS[config.method], ctx)[chosen.network]
    variables = checkpoint.restore_network(workdir, 8, like, chosen.network)
    window = protocols.window(config, chosen.dataset)
    predict = protocols.prediction(config, ctx, chosen.predict, window)
    return np.asarray(jax.jit(predict)(variables, IMAGES))


def test_an_image_of_the_protocol_resized_is_resized_there_and_back(monkeypatch, tmp_path):
    monkeypatch.setattr(models, 'build', small.small)
    config = tiny.get_config('supervised')
    config.eval.update({'protocol': 'resized', 'window': (24, 32), 'flip': True})
    workdir, size = save(config, tmp_path / 'run'), (40, 56)
    config = run_folder.load(workdir)
    loaded = export_program.load(workdir, config, 8, export_program.chosen(config, None), size)
    label, confidence = jax.jit(loaded.function)(IMAGES)
    logits = resized(workdir)
    assert (label == logits.argmax(-1)).mean() >= 0.999
    np.testing.assert_allclose(confidence, jax.nn.softmax(logits).max(-1), atol=1e-4)
    assert 'resized to 24x32 and back, one view; without' in loaded.about['protocol']
    assert loaded.about['protocol'].endswith('beside: mirror image')


def test_onnx_computes_in_float32_whatever_the_run_computes_in(run):
    config = ConfigDict(run_folder.load(run).to_dict())
    config.model.dtype = 'bfloat16'
    chosen = export_program.chosen(config, None)
    for changes, kept in ({}, True), (export_onnx.CHANGES, False):
        loaded = export_program.load(run, config, 8, chosen, (40, 56), changes)
        assert ('bf16' in str(jax.make_jaxpr(loaded.function)(IMAGES))) == kept


def test_the_size_is_that_of_the_evaluation(run, data_dir):
    config = ConfigDict(run_folder.load(run).to_dict())
    chosen = export_program.chosen(config, None)
    config.data.dir = data_dir
    assert export_program.default_size(config, chosen) == (64, 64)
    config.eval.pad_to = (80, 96)
    assert export_program.default_size(config, chosen) == (80, 96)
    config.eval.pad_to, voc = (0, 0), chosen._replace(dataset='voc')
    with pytest.raises(FileNotFoundError, match=r'^the size of the images .*--export_size=HEIGHT'):
        export_program.default_size(config, voc)
    folder = chosen._replace(dataset='folder/gone', classes=2)
    assert export_program.class_names(config, folder) == ['class 0', 'class 1']


@pytest.mark.parametrize(
    ('given', 'error', 'answer'),
    [
        ({'target': 'a.txt'}, ValueError, r"got '.*a.txt', expected a file ending in .onnx, .st"),
        ({'form': 'onnx'}, ValueError, r"a.npz', expected a file ending in .onnx with --format=o"),
        ({'target': 'there.npz'}, FileExistsError, 'there.npz is there already'),
        ({'target': '/proc/a.npz'}, OSError, '/proc cannot be written'),
        ({'target': 'there.npz/a.npz'}, OSError, r'there\.npz is a file, expected a folder'),
        ({'size': '40'}, ValueError, "--export_size: got '40', expected HEIGHT,WIDTH"),
        ({'size': '40,0'}, ValueError, "--export_size: got '40,0', expected HEIGHT,WIDTH"),
        ({'size': SIZE}, ValueError, '--export_size=40,56: expected with --format=onnx'),
        ({'evaluation': 'voc'}, ValueError, r"--evaluation: got 'voc', expected one of \['shapes'"),
        ({'which': '7'}, FileNotFoundError, r"checkpoint '7' is not in .* there are steps \[8\]"),
        ({'workdir': 'nowhere'}, FileNotFoundError, 'config.json is missing'),
    ],
)
def test_what_cannot_be_exported_is_one_line(run, tmp_path, given, error, answer):
    (tmp_path / 'there.npz').write_text('mine')
    given = {'workdir': run, 'target': 'a.npz'} | given
    given |= {key: tmp_path / given[key] for key in ('target', 'workdir') if given[key]}
    with pytest.raises(error, match=answer) as raised:
        export.export(**given)
    assert '\n' not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ['there.npz']
    assert (tmp_path / 'there.npz').read_text() == 'mine'


def test_without_jax2onnx_the_command_to_install_it_is_said(run, tmp_path, monkeypatch):
    def absent():
        raise ModuleNotFoundError("No module named 'jax2onnx'")

    monkeypatch.setattr(export_onnx, '_jax2onnx', absent)
    with pytest.raises(ValueError, match=r'needs jax2onnx.*pip install --no-deps') as raised:
        export.export(run, tmp_path / 'a.onnx')
    assert '\n' not in str(raised.value) and not list(tmp_path.iterdir())


def test_what_jax2onnx_cannot_convert_is_said_and_leaves_no_file(run, tmp_path, monkeypatch):
    class Broken:
        @staticmethod
        def to_onnx(*given, **named):
            raise NotImplementedError('no such operation\nand more')

    monkeypatch.setattr(export_onnx, '_jax2onnx', lambda: Broken)
    with pytest.raises(ValueError, match=r'\(NotImplementedError: no such operation\)'):
        export.export(run, tmp_path / 'a.onnx', size=SIZE)
    assert not list(tmp_path.iterdir())


def test_torch_has_one_network_also_of_a_run_in_training(run, tmp_path):
    """By the command, while another process has the folder; equal to what `convert` writes."""
    target = tmp_path / 'a.npz'
    command = ['--mode=export', f'--workdir={run}', f'--target={target}', '--format=torch']
    with run_folder.lock(run):
        ((code, said, errors),) = program.finish(program.start(None, *command))
    assert code == 0, errors
    assert "by the names of CSS's authors" in said and f'written: {target}' in said
    found = files.read(target)
    whole = files.read(convert.to_file(run, tmp_path / 'b.npz'))
    whole = {k.removeprefix('ema_model.'): v for k, v in whole.items() if k.startswith('ema_')}
    assert found.keys() == whole.keys()
    for name in found:
        np.testing.assert_array_equal(found[name], whole[name], err_msg=name)


NETWORKS = {
    "USSS's authors": (
        {'family': 'fcn', 'backbone': 'drn_d_22', 'output_stride': 8},
        {'logits_a': 3, 'logits_b': 4, 'embedding': 5},
        drn.from_torch,
    ),
    "CoSA's authors": (
        {'family': 'largefov', 'backbone': 'vit_tiny', 'output_stride': 16},
        {'logits': 3, 'class': 2, 'cam': 2, 'class_aux': 2, 'cam_aux': 2},
        timm.from_torch,
    ),
    "iMAS's authors": (
        {'stem': 'deep', 'head_convs': 2, 'low_level_bias': True, 'backbone': 'tiny'},
        {'logits': 3, 'auxiliary': 3},
        imas.from_torch,
    ),
    "UniMatch's authors": (
        {'stem': 'deep', 'head_convs': 2, 'backbone': 'tiny'},
        {'logits': 3},
        unimatch.from_torch,
    ),
    "UniMatch V2's authors": (
        {'family': 'dpt', 'backbone': 'dinov2_small'},
        {'logits': 3},
        lambda arrays: {'params': dinov2_weights.from_torch(arrays)},
    ),
}


def network(model, outputs):
    """Variables of a network, drawn."""
    model = {
        'family': 'deeplab', 'stem': 'conv7', 'output_stride': 16, 'width': 0.125,
        'dtype': 'float32', 'head_convs': 1, 'low_level_bias': False,
    } | model  # fmt: skip
    module = models.build(model, outputs=outputs)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 56, 56, 3)))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda s: rng.standard_normal(s.shape).astype(np.float32), shapes)
    return ConfigDict(model), variables


@pytest.mark.parametrize('whose', NETWORKS)
def test_state_dicts_are_read_back_to_the_bit(whose, monkeypatch):
    bottlenecks = functools.partial(resnet.build, resnet.Bottleneck, (1, 1, 1, 1))
    monkeypatch.setitem(models.BACKBONES, 'tiny', bottlenecks)
    monkeypatch.setitem(dinov2.SIZES, 'dinov2_small', SHALLOW)
    model, outputs, back = NETWORKS[whose]
    model, variables = network(model, outputs)
    if model.backbone == 'tiny':
        model.backbone = 'resnet50'
    found, arrays = state_dicts.convert(model, variables, 8)
    assert found == whose
    again = back(arrays)
    assert jax.tree.structure(again) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    norms = [name for name in arrays if name.endswith('running_mean')]
    tracked = {n: v for n, v in arrays.items() if n.endswith('num_batches_tracked')}
    assert len(tracked) == len(norms) and all(v == 8 for v in tracked.values())


@pytest.mark.parametrize(
    ('model', 'outputs', 'answer'),
    [
        ({'backbone': 'mobilenet_v1'}, {'logits': 3}, 'family deeplab on mobilenet_v1: expected'),
        (
            {'family': 'fcn', 'backbone': 'drn_d_22', 'output_stride': 8},
            {'logits_c': 3},
            'no name in the reference for: params/head_logits_c',
        ),
    ],
)
def test_a_network_without_names_is_refused(model, outputs, answer):
    with pytest.raises(ValueError, match=answer):
        state_dicts.convert(*network(model, outputs), 8)
