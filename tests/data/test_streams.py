import dataclasses
import itertools
import logging
import subprocess
import sys

import jax
import numpy as np
import pytest

from css_jax.data import geometry, reading, sources, splits, streams

WEAK = {'long_side': (30, 90), 'flip_prob': 0.5, 'pad': 'constant_floor'}


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def assert_same(got, expected):
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name].keys() == other[name].keys()
            for key in one[name]:
                np.testing.assert_array_equal(one[name][key], other[name][key])


def test_batches_have_the_shapes_asked_for(data):
    data.streams.labelled.batch_size = 2
    batch = next(streams.train_batches(data, seed=0))
    assert batch['labelled']['image'].shape == (2, 48, 40, 3)
    assert batch['labelled']['label'].shape == (2, 48, 40)
    assert batch['unlabelled']['image'].shape == (4, 48, 40, 3)
    assert {array.dtype.name for part in batch.values() for array in part.values()} == {'uint8'}


def test_stream_without_labels_never_decodes_a_mask(data, monkeypatch):
    del data.streams['labelled']
    data.streams.unlabelled.exclude = ''
    monkeypatch.setattr(geometry, 'decode_label', lambda encoded: pytest.fail('decoded a mask'))
    assert next(streams.train_batches(data, seed=0))['unlabelled'].keys() == {'image'}


def test_image_level_labels_are_of_the_whole_image(data, monkeypatch):
    monkeypatch.setattr(geometry, 'decode_label', lambda encoded: pytest.fail('decoded a mask'))
    del data.streams['unlabelled']
    data.streams.labelled.reads = 'classes'
    (batch,) = take(streams.train_batches(data, seed=0), 1)
    assert batch['labelled'].keys() == {'image', 'classes'}
    source = splits.load(data)['labelled']
    known = {tuple(row) for row in source.pixels > 0}
    assert batch['labelled']['classes'].shape == (4, 7)
    assert {tuple(row) for row in batch['labelled']['classes']} <= known


def test_valid_is_where_the_image_is(data):
    data.streams.labelled.update(reads='mask+valid', resize=(0.5, 0.5))  # 32 of 48 x 40 pixels
    (batch,) = take(streams.train_batches(data, seed=0), 1)
    valid, image = batch['labelled']['valid'], batch['labelled']['image']
    assert valid[:, :32, :32].all() and valid.sum() == 4 * 32 * 32
    fill = np.round(255 * np.array(data.mean)).astype(np.uint8)
    assert (image[~valid] == fill).all()
    assert (batch['labelled']['label'][~valid] == 255).all()
    data.streams.labelled.resize = (1.5, 1.5)
    (batch,) = take(streams.train_batches(data, seed=0), 1)
    assert batch['labelled']['valid'].all()


def test_images_are_as_long_as_asked_for_and_padded_with_the_mean_rounded_down(data):
    data.mean = (0.485, 0.456, 0.406)
    data.streams.labelled.update(reads='mask+valid', long_side=(20, 36), pad='constant_floor')
    sides = set()
    for batch in take(streams.train_batches(data, seed=0), 12):
        part = batch['labelled']
        assert (part['image'][~part['valid']] == (123, 116, 103)).all()
        assert (part['label'][~part['valid']] == 255).all()
        for valid in part['valid']:
            side = int(valid[0].sum())
            assert valid[:side, :side].all() and valid.sum() == side * side
            sides.add(side)
    assert sides <= {*range(20, 37)} and len(sides) > 12
    assert (batch['unlabelled']['image'].shape, data.streams.unlabelled.pad) == (
        (4, 48, 40, 3),
        'reflect',
    )
    data.streams.labelled.pad = 'constant'
    part = next(streams.train_batches(data, seed=0))['labelled']
    assert (part['image'][~part['valid']] == (124, 116, 104)).all()


def test_black_padding_lies_right_and_below_and_is_mirrored_with_the_image(data):
    law = {'resize': (0.5, 0.5), 'resize_law': 'long_side', 'flip_prob': 0.5}
    data.streams.labelled.update(reads='mask+valid', pad='black_corner', **law)  # 32 of 48 x 40
    sides = set()
    for batch in take(streams.train_batches(data, seed=0), 4):
        part = batch['labelled']
        assert not part['image'][~part['valid']].any()
        assert (part['label'][~part['valid']] == 255).all()
        for valid in part['valid']:
            left = int(valid[0].argmax())
            assert valid[:32, left : left + 32].all() and valid.sum() == 32 * 32
            sides.add(left)
    assert sides == {0, 8}


def test_image_and_label_are_mirrored_together(data):
    del data.streams['unlabelled']
    data.streams.labelled.update(crop=(64, 64), resize=(1.0, 1.0))
    shown = {}
    for data.streams.labelled.flip_prob in (0.0, 0.5, 1.0):
        batches = take(streams.train_batches(data, seed=0), 6)
        for name in ('image', 'label'):
            shown[data.streams.labelled.flip_prob, name] = [
                one for batch in batches for one in batch['labelled'][name]
            ]
    mirrored = []
    for index in range(24):
        plain, some, always = (
            [shown[prob, name][index] for name in ('image', 'label')] for prob in (0.0, 0.5, 1.0)
        )
        for before, after in zip(plain, always, strict=True):
            np.testing.assert_array_equal(after, before[:, ::-1])
        same = [np.array_equal(one, other) for one, other in zip(some, plain, strict=True)]
        turned = [np.array_equal(one, other) for one, other in zip(some, always, strict=True)]
        assert all(same) or all(turned)
        mirrored.append(all(turned))
    assert 4 < sum(mirrored) < 20


def test_shapes_are_those_of_the_batches(data):
    data.streams.labelled.reads = 'classes+valid'
    (batch,) = take(streams.train_batches(data, seed=0), 1)
    expected = streams.batch_shapes(data, data.streams)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), batch) == jax.tree.map(
        lambda x: (x.shape, x.dtype), expected
    )


@pytest.mark.parametrize('changes', [{}, WEAK], ids=['', 'weak'])
def test_resumed_batches_equal_uninterrupted_ones(data, changes):
    data.streams.labelled.update(changes)
    whole = take(streams.train_batches(data, seed=3), 9)  # over 4 passes of the labelled images
    assert_same(take(streams.train_batches(data, seed=3, start_step=5), 4), whole[5:])


def test_a_stream_read_alone_has_the_batches_it_has_in_company(data):
    whole = take(streams.train_batches(data, seed=3), 4)
    alone = take(streams.train_batches(data, seed=3, start_step=1, names=['labelled']), 3)
    assert_same(alone, [{'labelled': batch['labelled']} for batch in whole[1:]])


@pytest.mark.parametrize('changes', [{}, WEAK], ids=['', 'weak'])
@pytest.mark.parametrize('process_count', [2, 4])
def test_processes_hold_the_blocks_of_the_same_batches(data, process_count, changes):
    data.streams.labelled.update(changes)
    data.streams.unlabelled.update(changes)
    whole = take(streams.train_batches(data, seed=0), 3)
    parts = [
        take(streams.train_batches(data, seed=0, process_index=p, process_count=process_count), 3)
        for p in range(process_count)
    ]
    joined = [
        {
            name: {key: np.concatenate([part[name][key] for part in blocks]) for key in stream}
            for name, stream in blocks[0].items()
        }
        for blocks in zip(*parts, strict=True)
    ]
    assert_same(joined, whole)


@pytest.mark.parametrize('changes', [{}, WEAK], ids=['', 'weak'])
def test_batches_do_not_depend_on_threads(data, changes):
    data.streams.labelled.update(changes)
    expected = take(streams.train_batches(data, seed=0), 6)
    for data.threads, data.prefetch in ((0, 1), (1, 1), (7, 9)):
        assert_same(take(streams.train_batches(data, seed=0), 6), expected)


@pytest.fixture
def damaged(data, monkeypatch):
    """Two of the 8 labelled images whose records are damaged; one of them has an image alone."""
    load = sources.load
    first, second = (load('shapes', 'train', data.dir).ids.index(image_id)
                     for image_id in splits.subsets(data)['labelled'][2:4])  # fmt: skip

    def spoilt(*args):
        source = load(*args)
        records = list(source.records)
        records[first] = {**records[first], 'image': b'x'}
        records[second] = {**records[second], 'label': b'x'}
        return dataclasses.replace(source, records=records)

    monkeypatch.setattr(sources, 'load', spoilt)
    return [f"shapes/64:train, image 'train_{index:05d}': its" for index in (first, second)]


def test_a_damaged_record_ends_a_stream_with_its_name(data, damaged):
    with pytest.raises(ValueError, match=f'^{damaged[0]}|^{damaged[1]}'):
        take(streams.train_batches(data, seed=0), 2)


def test_damaged_records_are_left_out_named_and_counted(data, damaged, caplog, monkeypatch):
    caplog.set_level(logging.INFO, 'css_jax')
    data.unreadable = 1
    with pytest.raises(ValueError, match=rf'unreadable: got 1, expected 2 or more.*{damaged[0]}'):
        streams.train_batches(data, seed=0)
    assert 'another image' not in caplog.text
    data.unreadable = 2
    found = take(streams.train_batches(data, seed=0), 4)  # two passes of the labelled images
    said = [text for text in caplog.messages if 'another image takes its place' in text]
    assert [one in text for one, text in zip(damaged, said, strict=True)] == [True, True]

    data.threads = 1
    assert_same(take(streams.train_batches(data, seed=0, start_step=1), 3), found[1:])
    halves = [next(streams.train_batches(data, 0, 3, p, 2)) for p in range(2)]
    pixels = np.concatenate([half['labelled']['image'] for half in halves])
    np.testing.assert_array_equal(pixels, found[3]['labelled']['image'])

    monkeypatch.undo()
    whole = take(streams.train_batches(data, seed=0), 4)
    assert_same([{'unlabelled': batch['unlabelled']} for batch in found],
                [{'unlabelled': batch['unlabelled']} for batch in whole])  # fmt: skip
    for start in (0, 2):  # of each pass two images are others
        changed = [
            (one['labelled']['image'] != other['labelled']['image']).any((1, 2, 3)).sum()
            for one, other in zip(found[start : start + 2], whole[start:], strict=False)
        ]
        assert sum(changed) == 2  # fmt: skip
    data.streams.labelled.update(count=1, min_per_class=0)
    monkeypatch.setattr(reading, 'unreadable', lambda source, indices, *_: dict.fromkeys(indices))
    with pytest.raises(ValueError, match=r'labelled: got no image that can be read, expected at l'):
        streams.unreadable(data)


def test_seeds_streams_and_passes_differ(data):
    data.streams.unlabelled = data.streams.labelled.copy_and_resolve_references()
    batches = take(streams.train_batches(data, seed=0), 4)  # two passes of 8 images
    other = take(streams.train_batches(data, seed=1), 4)
    pixels = [batch['labelled']['image'].tobytes() for batch in batches]
    assert len(set(pixels)) == 4
    assert pixels != [batch['labelled']['image'].tobytes() for batch in other]
    assert pixels != [batch['unlabelled']['image'].tobytes() for batch in batches]


def test_every_pass_shows_every_image_once(data):
    data.streams.labelled.update(crop=(64, 64), resize=(1.0, 1.0))
    shown = [
        image.tobytes()
        for batch in take(streams.train_batches(data, seed=0), 4)
        for image in batch['labelled']['image']
    ]
    assert len(set(shown)) == 8
    assert sorted(shown[:8]) == sorted(shown[8:])
    assert shown[:8] != shown[8:]


def test_image_and_label_move_together(data):
    """An image that shows its own label must still do so after resize, pad and crop."""
    source = sources.load('shapes', 'train', data.dir)
    label = geometry.decode_label(source.records[0]['label'])
    arrays = {'image': np.repeat(label[..., None], 3, axis=-1), 'label': label}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        moved = geometry.random_crop(
            arrays, rng, crop=(48, 90), scale=(1.0, 1.0), fill=(255, 255, 255)
        )
        np.testing.assert_array_equal(moved['image'][..., 0], moved['label'])


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'batch_size': 5}, r'labelled.batch_size: got 5, expected a multiple .* processes, 2'),
        ({'crop': (0, 8)}, r'labelled.crop: got \(0, 8\), expected a positive'),
        ({'resize': (0.0, 1.0)}, r'labelled.resize: got \(0.0, 1.0\)'),
        ({'long_side': (9, 8)}, r'labelled.long_side: got \(9, 8\), expected a range'),
        ({'long_side': (0, 8)}, r'labelled.long_side: got \(0, 8\), expected a range'),
        ({'resize_law': 'both'}, r'labelled.resize_law: got both, expected factor or long_side'),
        ({'flip_prob': 1.5}, r'labelled.flip_prob: got 1.5, expected a number from 0 to 1'),
        ({'pad': 'edge'}, r'labelled.pad: got edge, expected constant or constant_floor or'),
        ({'count': 25}, r'labelled.count: got 25, expected at most 24'),
        ({'count': 0}, r'labelled.min_per_class: got 2, expected 0 where count is 0'),
        ({'ids_file': 'no.txt', 'count': 0, 'min_per_class': 0}, r'ids_file: got no.txt'),
        ({'min_per_class': 9}, r'labelled.min_per_class: got 9, expected at most \d'),
        ({'exclude': 'unlabeled'}, r"labelled.exclude: got 'unlabeled', expected one of"),
        ({'exclude': 'unlabelled'}, r"exclude: got '\w+', expected streams that do not exclude"),
        ({'dataset': 'shapes/46'}, r"no config '46'; it has 64, "),
        ({'split': 'vall'}, r"no split 'vall'; it has val, "),
    ],
)
def test_bad_settings_are_named(data, change, message):
    data.streams.labelled.update(change)
    with pytest.raises(ValueError, match=message):
        streams.train_batches(data, seed=0, process_index=0, process_count=2)


def test_unknown_dataset_is_named(data):
    data.streams.unlabelled.update(dataset='shape', exclude='')
    with pytest.raises(ValueError, match=r"there is no dataset 'shape'; there are shapes, "):
        streams.train_batches(data, seed=0)


def test_tensorflow_is_not_imported(data_dir):
    program = (
        'import sys; from css_jax.data import evaluation, sources, streams;'
        f'source = sources.load("shapes", "val", {data_dir!r});'
        'next(evaluation.eval_batches(source, {(64, 64): [0, 1]}, batch_size=2));'
        'sys.exit("tensorflow" in sys.modules)'
    )
    assert subprocess.run([sys.executable, '-c', program]).returncode == 0
