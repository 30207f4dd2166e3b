"""The datasets of `folder`: their names, classes and splits, and what is not prepared."""

import shutil

import pytest

from configs import quickstart
from css_jax import config as configs
from css_jax.config import file as stored
from css_jax.data import sources, splits, streams
from css_jax.evaluation import evaluator
from css_jax.run import folder as run_folder
from tests import filled, folders


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    """A folder with `folder/roofs` of 2 classes and `folder/cells` of 3."""
    data_dir = tmp_path_factory.mktemp('prepared')
    folders.prepare(data_dir, 'roofs', 2, train=3, val=2, unlabelled=5)
    return folders.prepare(data_dir, 'cells', 3, train=3, val=2)


@pytest.fixture
def data(prepared):
    """`config.data` with a labelled and an unlabelled stream of `folder/roofs`."""
    data = filled.data()
    data.dir = prepared
    data.mean, data.std = (0.5,) * 3, (0.2,) * 3
    common = {'batch_size': 8, 'crop': (32, 32)}
    data.streams.labelled = filled.stream('folder/roofs', **common)
    data.streams.unlabelled = filled.stream(
        'folder/roofs', reads='none', split='unlabelled', **common
    )
    return data


def config_of(data_dir, dataset, **keys):
    config = quickstart.get_config('supervised')
    config.data.dir = data_dir
    config.data.streams.labelled = configs.stream(dataset, batch_size=4, crop=(32, 32))
    config.eval.dataset = dataset
    config.update_from_flattened_dict(keys)
    return config


def test_a_dataset_has_the_classes_that_it_was_prepared_with(prepared):
    source = sources.load('folder/roofs', 'train', prepared)
    assert source.dataset == 'folder/roofs' and len(source) == 3
    assert source.class_names == ('background', 'class1')
    assert sources.class_names('folder/roofs', prepared) == source.class_names
    assert len(sources.class_names('folder/cells', prepared)) == 3
    assert sources.palette('folder/roofs', prepared).tolist() == [[0, 0, 0], [128, 0, 0]]
    assert sources.splits('folder/roofs', prepared) == ['train', 'val', 'unlabelled']
    assert source.pixels.sum() == 3 * 40 * 52
    assert sources.load('folder/roofs', 'unlabelled', prepared).pixels.sum() == 0
    with pytest.raises(ValueError, match="no split 'test'; it has "):
        sources.load('folder/roofs', 'test', prepared)


def test_folder_alone_is_the_one_that_is_prepared(prepared, tmp_path):
    with pytest.raises(ValueError, match=r'several are prepared in .*: folder/cells, '):
        sources.load('folder', 'train', prepared)
    with pytest.raises(FileNotFoundError, match='none is there') as error:
        sources.load('folder', 'train', str(tmp_path))
    command = f'python -m data_prep.folder --source FOLDER --name NAME --data_dir {tmp_path}'
    assert str(error.value).endswith(command)
    folders.prepare(tmp_path, 'one', train=1, val=1)
    assert sources.load('folder', 'train', str(tmp_path)).dataset == 'folder/one'


@pytest.mark.parametrize('name', ['roof', '..', 'roofs/1.0.0'])
def test_a_name_that_is_not_prepared_is_answered_in_one_line(prepared, name):
    for call in (sources.class_names, lambda *a: sources.load(a[0], 'train', a[1])):
        with pytest.raises(FileNotFoundError, match=f"'folder/{name}' is not prepared") as error:
            call(f'folder/{name}', prepared)
        text = str(error.value)
        assert 'there are roofs, cells. ' in text or name != 'roof'
        assert f'--name {name} --data_dir {prepared}' in text and '\n' not in text


def test_other_datasets_are_found_as_before(prepared):
    assert len(sources.class_names('camvid/half', prepared)) == 11
    with pytest.raises(FileNotFoundError, match=r'data_prep\.camvid --source FOLDER --config half'):
        sources.load('camvid/half', 'train', prepared)
    names = map(sources.label_set, ('camvid/half', 'folder/roofs', 'shapes'))
    assert list(names) == ['camvid', 'folder/roofs', 'shapes']


def test_few_labelled_images_fill_a_batch(data):
    batch = next(streams.train_batches(data, seed=0))
    assert batch['labelled']['image'].shape == batch['unlabelled']['image'].shape == (8, 32, 32, 3)
    assert set(batch['unlabelled']) == {'image'}
    assert len(splits.subsets(data)['labelled']) == 3
    data.streams.labelled.reads = 'classes'
    shapes = streams.batch_shapes(data, ['labelled'])
    assert shapes['labelled']['classes'].shape == (8, 2)


@pytest.mark.parametrize('reads', ['mask', 'classes', 'mask+valid'])
def test_a_split_without_masks_is_refused_where_labels_are_read(data, reads):
    data.streams.labelled.update(split='unlabelled', reads=reads)
    with pytest.raises(
        ValueError,
        match=r"streams\.labelled\.split: got 'unlabelled' of folder/roofs, .*a split with masks",
    ):
        splits.subsets(data)


def test_a_split_without_masks_is_not_evaluated(prepared):
    config = configs.finalise(config_of(prepared, 'folder/roofs', **{'eval.split': 'unlabelled'}))
    with pytest.raises(ValueError, match=r"eval\.split: got 'unlabelled'.*a split with masks"):
        evaluator.evaluators(config)


def test_a_dataset_of_one_class_is_not_trained_on(tmp_path):
    data_dir = folders.prepare(tmp_path, 'one', 1, train=2, val=1)
    with pytest.raises(ValueError, match=r'num_classes: got 1 .*, expected at least 2'):
        configs.finalise(config_of(data_dir, 'folder/one'))


def test_two_datasets_of_folder_have_nothing_in_common(data):
    data.streams.unlabelled.update(dataset='folder/cells', split='train', exclude='labelled')
    with pytest.raises(ValueError, match=r'exclude: got .* a stream of the same dataset'):
        splits.subsets(data)
    data.streams.unlabelled.exclude = ''
    assert 'are in stream' not in ''.join(splits.report(data, splits.subsets(data)))


def test_a_stored_run_is_read_where_its_records_are_gone(tmp_path):
    data_dir = folders.prepare(tmp_path / 'data', 'roofs', train=3, val=1)
    config = config_of(data_dir, 'folder/roofs')
    run_folder.save(configs.finalise(config), tmp_path)
    shutil.rmtree(data_dir)
    assert configs.finalise(stored.read(tmp_path)).num_classes == 2
    with pytest.raises(FileNotFoundError, match="dataset 'folder/roofs' is not prepared"):
        configs.finalise(config)


def test_a_dataset_with_more_classes_than_the_network_is_named(prepared):
    config = config_of(prepared, 'folder/cells', num_classes=2)
    with pytest.raises(ValueError, match=r'num_classes: got 2, but eval \(folder/cells\) has 3'):
        configs.finalise(config)
