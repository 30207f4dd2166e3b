"""Methods on families of networks; VOC and Cityscapes from their archives to a score."""

import functools
import json

import jax
import numpy as np
import pytest

from configs import cityscapes, unimatch, voc
from css_jax import config as configs
from css_jax import methods, models, state, train
from css_jax import step as steps
from css_jax.data import splits, streams
from css_jax.evaluation import protocols
from css_jax.evaluation.results import RESULTS
from css_jax.methods.method import streams as streams_of
from css_jax.models import dinov2
from css_jax.run import metrics
from data_prep import records
from data_prep.ade20k import builder as ade20k
from data_prep.cityscapes.builder import Builder as Cityscapes
from data_prep.voc import builder as voc_builder
from tests import fakes
from tests.dinov2_small import SHALLOW
from tests.small import shallow, small

SMALL = {
    'steps': 2,
    'model.representation_dim': 16,
    'log_every': 1,
    'augment.jitter_prob': 0.0,  # less to compile
    'augment.blur_prob': 0.0,
    'contrastive.anchors': 16,
    'contrastive.negatives': 32,
    'contrastive.bank': 16,
    'data.streams.labelled.batch_size': 2,
    'data.streams.unlabelled.batch_size': 2,
    'data.streams.labelled.crop': (32, 32),
    'data.streams.unlabelled.crop': (32, 32),
}


BUILD = models.build


@pytest.fixture(autouse=True)
def small_network(monkeypatch):
    monkeypatch.setattr(models, 'build', small)


def run(config, data_dir, workdir):
    config.update_from_flattened_dict(SMALL)
    config.data.dir = str(data_dir)
    return train.train(config, workdir)


@pytest.fixture
def voc_dir(tmp_path):
    source = tmp_path / 'source'
    source.mkdir()
    (source / voc_builder.VOC).write_bytes(fakes.tar(fakes.voc_members()))
    (source / voc_builder.SBD).write_bytes(fakes.tgz(fakes.sbd_members()))
    builder = voc_builder.Builder(
        source=str(source), splits=fakes.VOC_SPLITS, data_dir=tmp_path / 'prepared'
    )
    records.prepare(builder)
    return tmp_path / 'prepared'


def test_classic_voc(voc_dir, tmp_path):
    config = voc.get_config('classic,1,css_mix,seed=3,pretrained=')
    results = run(config, voc_dir, tmp_path / 'run')
    streams = results['streams']
    assert streams['labelled']['images'] == 1 and 'voc/full:train' in streams['labelled']['split']
    assert streams['unlabelled']['images'] == 4  # the rest of train and extra
    ids = splits.subsets(configs.finalise(config).data)
    assert set(ids['labelled']) | set(ids['unlabelled']) == {
        *fakes.VOC_IDS['train'],
        *fakes.VOC_IDS['extra'],
    }
    assert len(results['iou']) == 21 and 0 <= results['miou'] <= 1
    assert '512x512' in results['protocol'] and results['split'] == 'voc/full:val'
    assert all(np.isfinite(r['loss']) for r in metrics.read(tmp_path / 'run'))


def test_blender_voc_from_a_list(voc_dir, tmp_path):
    ids = (fakes.VOC_IDS['train'][0], fakes.VOC_IDS['extra'][1])
    (tmp_path / 'labeled.txt').write_text('\n'.join(ids))
    config = voc.get_config('blender,supervised,pretrained=')
    config.data.streams.labelled.ids_file = str(tmp_path / 'labeled.txt')
    results = run(config, voc_dir, tmp_path / 'run')
    assert results['streams'].keys() == {'labelled'}
    described = results['streams']['labelled']['split']
    assert described.endswith('/labeled.txt, 2 of 5 images (1 of train, 1 of extra)')
    assert set(splits.subsets(configs.finalise(config).data)['labelled']) == set(ids)


def test_cityscapes(tmp_path):
    source = tmp_path / 'source'
    source.mkdir()
    images, labels = fakes.cityscapes_members()
    (source / 'leftImg8bit_trainvaltest.zip').write_bytes(fakes.zipped(images))
    (source / 'gtFine_trainvaltest.zip').write_bytes(fakes.zipped(labels))
    place = {'source': str(source), 'splits': fakes.CITYSCAPES_SPLITS}
    records.prepare(Cityscapes(**place, data_dir=tmp_path / 'prepared'))
    config = cityscapes.get_config('2,css_cross,split=random,pretrained=')
    results = run(config, tmp_path / 'prepared', tmp_path / 'run')
    assert 'sliding windows of 32x32 at stride 22x22' in results['protocol']
    assert results['streams']['unlabelled']['images'] == 1 and len(results['iou']) == 19
    stored = json.loads((tmp_path / 'run' / RESULTS).read_text())
    assert stored['eval']['protocol'] == 'sliding'


# Any method on any family: traced, or refused in one line.

NETWORKS = {
    'deeplab': {'model.backbone': 'resnet18', 'model.output_stride': 16},
    'dpt': {'model.backbone': 'dinov2_small'},
}
# Method -> family that it needs, in words, where it does not run on either.
REFUSED = {
    'cosa': "expected 'largefov', which has the classifiers and the CAMs",
    **dict.fromkeys(
        ('usss_single', 'usss_basic', 'usss_cross', 'usss_full'),
        "expected 'fcn' or 'largefov', whose outputs are at stride 8",
    ),
}
# The other methods on DeepLab have tests of their own, and these are parts of css_mix and imas.
_PARTS = (
    *('supervised', 'mean_teacher', 'cutmix', 'baseline', 'css_cross', 'css'),
    'imas_supervised',
)
PAIRS = [
    pytest.param(
        method,
        family,
        marks=[pytest.mark.soak]
        if method not in REFUSED and (family == 'deeplab' or method in _PARTS)
        else [],
    )
    for method in methods.METHODS
    for family in NETWORKS
]


def on_family(method, family, data_dir):
    """A configuration of few pixels, which both strides divide, without photometry."""
    config = configs.default()
    config.method, config.steps, config.data.dir = method, 40, data_dir
    for name in methods.METHODS[method].streams:
        config.data.streams[name.replace('*', 'a')] = configs.stream(
            'shapes', count=8, batch_size=4, crop=(56, 56)
        )
    common = {'width': 0.125, 'representation_dim': 8, 'family': family}
    config.model.update(common)
    config.augment.jitter_prob = config.augment.blur_prob = 0.0
    config.update_from_flattened_dict(NETWORKS[family])
    return config


@pytest.mark.parametrize(('method', 'family'), PAIRS)
def test_any_method_is_traced_on_any_family_or_refused(method, family, data_dir, monkeypatch):
    monkeypatch.setattr(models, 'build', BUILD)
    monkeypatch.setitem(models.BACKBONES, 'resnet18', shallow)
    monkeypatch.setitem(dinov2.SIZES, 'dinov2_small', SHALLOW)
    config = on_family(method, family, data_dir)
    if method in REFUSED:
        message = f"^model.family: got '{family}', {REFUSED[method]}$"
        with pytest.raises(ValueError, match=message):
            configs.finalise(config)
        return
    config = configs.finalise(config)
    found = methods.METHODS[method]
    ctx = methods.context(config, images=dict.fromkeys(config.data.streams, 8))
    tx, _ = found.optimizer(config)
    start = jax.eval_shape(lambda: state.create(found, tx, ctx))
    for until, phase in methods.phases(config):
        if until:
            read = streams_of(phase, config.data.streams)
            step = functools.partial(steps.train_step, method=phase, optimizer=tx, ctx=ctx)
            after, _ = jax.eval_shape(step, start, streams.batch_shapes(config.data, read))
            assert jax.tree.map(np.shape, after) == jax.tree.map(np.shape, start)
    # A size that neither stride divides.
    images = jax.ShapeDtypeStruct((2, 50, 61, 3), np.uint8)
    for one in found.evaluations(config).values():
        window = protocols.window(config, one.dataset)
        predict = protocols.prediction(config, ctx, one.predict, window)
        logits = jax.eval_shape(predict, getattr(start, one.network), images)
        assert logits.shape == (2, 50, 61, config.num_classes)


def test_ade20k_with_unimatch_v2(tmp_path):
    """Images of 13x15 to 14x16 pixels, each evaluated at its own size by way of 14x14."""
    source = tmp_path / 'source'
    source.mkdir()
    (source / ade20k.ARCHIVE).write_bytes(fakes.zipped(fakes.ade20k_members()))
    place = {'splits': fakes.ADE20K_SPLITS, 'data_dir': tmp_path / 'prepared'}
    records.prepare(ade20k.Builder(source=str(source), **place))
    path = tmp_path / 'splits' / 'ade20k' / '1_64' / 'labeled.txt'
    path.parent.mkdir(parents=True)
    image = 'ADE_train_00020210'
    path.write_text(f'images/training/{image}.jpg annotations/training/{image}.png')
    config = unimatch.get_config('ade20k,1,split=random,pretrained=')
    config.data.streams.labelled.update(count=0, ids_file=str(path))
    config.update_from_flattened_dict(SMALL | {'augment.grey_prob': 0.0})
    for stream in config.data.streams.values():
        stream.update(crop=(28, 28), batch_size=4)
    config.data.dir = str(tmp_path / 'prepared')
    results = train.train(config, tmp_path / 'run')
    labelled, unlabelled = (results['streams'][name] for name in ('labelled', 'unlabelled'))
    assert labelled['split'] == 'ade20k/full:train, list 1_64/labeled.txt, 1 of 3 images'
    assert unlabelled['split'] == 'ade20k/full:train, 2 of 3 images, without labelled'
    assert len(results['iou']) == 150 and 'flag' in results['iou']
    assert results['split'] == 'ade20k/full:val' and 'EMA teacher' in results['protocol']
    assert 'whole image at its own size' in results['protocol']
    assert 'nearest multiples of 14' in results['protocol']
    assert all(np.isfinite(r['loss']) for r in metrics.read(tmp_path / 'run'))
