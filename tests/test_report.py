"""The page of a report, what training leaves for it, and how it looks in a browser."""

import base64
import html.parser
import json
import logging
import re
import shutil
from unittest import mock

import cv2
import numpy as np
import pytest
from absl import app
from absl.testing import flagsaver
from ml_collections import ConfigDict
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from css_jax import main, models, parallel, train
from css_jax.evaluation import pictures, results
from css_jax.modes import report
from css_jax.ops import metrics as scoring
from css_jax.report import (
    charts,
    curves,
    embedded,
    images,
    names,
    page,
    predictions,
    runs,
    scores,
    settings,
)
from css_jax.report.runs import Part
from css_jax.run import checkpoint, diagnostics, metrics
from css_jax.run import folder as run_folder
from tests import browser, tiny
from tests.small import small

NAME = '<b>&"x'  # of a run: what people name folders is not HTML
VOID_TAGS = ('meta', 'img', 'br', 'circle', 'path')


@pytest.fixture(scope='module')
def folder(tmp_path_factory, data_dir):
    """A run of css_mix that is evaluated, and what it is beside while it is trained."""
    folder, said = tmp_path_factory.mktemp('runs'), []
    config = tiny.get_config('css_mix')
    config.data.dir, config.steps, config.eval.every = data_dir, 6, 3
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger('css_jax').addHandler(handler)
    with mock.patch.object(models, 'build', small):
        train.train(config, folder / NAME)
        logging.getLogger('css_jax').removeHandler(handler)
        shutil.copytree(folder / NAME, folder / 'waiting')
        (folder / 'waiting' / results.RESULTS).unlink()
        shutil.copytree(folder / NAME, folder / 'began')
        shutil.rmtree(folder / 'began' / checkpoint.FOLDER)
        (folder / 'began' / results.RESULTS).unlink()
        report.report(folder, examples=2)
    (folder / 'log.txt').write_text('\n'.join(said))
    return folder


@pytest.fixture(scope='module')
def text(folder):
    return (folder / report.PAGE).read_text()


class Reader(html.parser.HTMLParser):
    """Notes tags with their attributes, and checks that they are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in VOID_TAGS or tag == 'path':
            assert self.open[-1:] == [tag] or tag == 'path', (tag, self.open[-4:])
            if tag != 'path':
                self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] not in ('script', 'style'):
            self.words.append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_page_is_whole_and_asks_nothing_of_a_network(text):
    read = Reader(text)
    assert read.open == []
    ids = [attributes['id'] for _, attributes in read.tags if 'id' in attributes]
    assert len(ids) == len(set(ids)) and {'scores', 'confusion', 'images', 'curves'} <= set(ids)
    assert {'notes', 'pseudo-labels', 'embedded', 'hardware', 'configuration'} <= set(ids)
    links = [a['href'] for a in read.of('a')]
    assert all(link[1:] in ids for link in links if link[0] == '#') and 'http' not in str(links)
    assert 'http:' not in text and 'https:' not in text and 'url(' not in text
    assert read.of('html') == [{'lang': 'en'}]
    policy = next(m['content'] for m in read.of('meta') if 'http-equiv' in m)
    assert policy.startswith("default-src 'none'; img-src data:;") and 'sha256-' in policy
    images = read.of('img')
    assert len(images) > 20 and all(image['alt'] for image in images)
    assert all(s.get('aria-label') for s in read.of('svg'))


def test_what_people_name_is_no_html(text):
    read = Reader(text)
    assert NAME not in text and read.words.count(NAME) > 3
    part = Part('folder/x', 'val', ('<i>&', 'b'), 'teacher', {
        'iou': {'<i>&': 0.5, 'b': None}, 'miou': 0.5, 'accuracy': 0.7, 'protocol': '<script>',
        'confusion': [[3, 1], [0, 0]], 'more': {'<u>': 0.25},
    })  # fmt: skip
    made = scores.section({'r"': part}, np.zeros((2, 3), int)) + scores.matrices({'r"': part})
    assert Reader(made).open == [] and not re.search(r'<(i|u|script)>', made)
    assert '25.00' in made and 'title="&lt;i&gt;&amp; as b: 25.00 %, 1 pixels"' in made


def test_a_run_that_is_not_evaluated_yet_is_shown_by_its_last_checkpoint(folder, text):
    words = ''.join(Reader(text).words)
    assert 'Not evaluated yet: waiting.' in words
    assert 'Without a checkpoint, shown by their curves alone: began' in words
    table = (folder / report.TABLE).read_text()
    assert NAME in table and 'waiting' not in table
    alts = [image['alt'] for image in Reader(text).of('img')]
    assert any(alt.startswith('waiting on') for alt in alts)
    assert not any(alt.startswith('began on') for alt in alts)


def test_pictures_of_the_page_are_those_of_the_split(folder, text):
    run = runs.find([folder / NAME])[0]
    part = runs.parts(run)[None]
    assert part.dataset == 'shapes/64' and part.scores['miou'] == run.results['miou']
    found = [i['src'] for i in Reader(text).of('img') if i['alt'].startswith('truth of')]
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(found[0].split(',')[1]), np.uint8), 1)
    source = predictions.sources.load('shapes', 'val', run.config.data.dir)
    label = predictions.batches.example(source, 0)['label']
    colours = predictions.sources.palette('shapes')
    np.testing.assert_array_equal(decoded[..., ::-1], pictures.colourise(label, colours))


@pytest.mark.parametrize('lost', ['dataset', 'weights'])
def test_scores_and_curves_are_shown_of_what_is_lost(folder, tmp_path, monkeypatch, lost):
    shutil.copytree(folder / NAME, tmp_path / 'a')
    if lost == 'weights':
        shutil.rmtree(tmp_path / 'a' / checkpoint.FOLDER)
    else:
        gone = mock.Mock(side_effect=FileNotFoundError('it is gone'))
        for name in ('load', 'class_names', 'palette'):
            monkeypatch.setattr(predictions.sources, name, gone)
    assert 'mIoU' in report.report(tmp_path)
    read = Reader((tmp_path / report.PAGE).read_text())
    ids = [attributes.get('id') for _, attributes in read.tags]
    assert {'scores', 'confusion', 'curves', 'hardware', 'configuration'} <= set(ids)
    assert read.of('img') == [] and not (tmp_path / report.PICTURE).exists()
    said = {'dataset': 'it is gone', 'weights': 'no checkpoint in'}[lost]
    assert said in ''.join(read.words)


def test_pictures_end_where_the_image_does():
    source = mock.Mock(ids=['i'], sizes=np.array([[3, 5]]), dataset='d', split='val')
    source.__len__ = lambda self: 1
    example = {'image': np.zeros((8, 8, 3), np.uint8), 'label': np.zeros((8, 8), np.uint8)}
    sample = predictions.Sample(source, [0], 1, [example])
    predicted = {'run': predictions.Predicted([np.zeros((8, 8), int)], [1.0], 1.0)}
    made = images.section(sample, predicted, ['a'], np.zeros((1, 3), np.uint8))
    assert [(i['width'], i['height']) for i in Reader(made).of('img')] == 3 * [('5', '3')]


def test_numbers_are_said_in_words_and_shares_in_percent():
    assert names.said('eval_cam_miou') == names.Said('mIoU of the CAMs', True)
    assert names.said('loss_supervised_a').title == 'L_s, of masks: a'
    assert names.said('loss_of_mine') == names.Said('loss_of_mine')
    records = [{'step': i, 'agreement': i / 10, 'eval_miou': None} for i in (8, 10)]
    run = runs.Run('r', None, None, {'miou': 0.5}, records, [], 10)
    drawn = curves.section([run])
    assert 'agree, %' in drawn and '<code>agreement</code>' in drawn and 'r 100<' in drawn
    assert '>step</text>' in drawn and '>120</text>' not in drawn
    # A score of one record is a point, and stands in the table.
    once = run._replace(records=[{'step': 10, 'eval_miou': 0.5}])
    assert '<svg' not in curves.section([once]) and 'Evaluated once' in curves.section([once])
    assert '<svg' in curves.section([once._replace(results=None)])


def test_keys_of_one_kind_of_run_are_folded_and_the_method_comes_first(folder):
    found = runs.find([folder / NAME])[0]
    config = found.config.to_dict() | {'method': 'x', 'of_one': 1, 'seed': 99}
    other = found._replace(name='other', config=ConfigDict(config))
    made = settings.differences([found, other])
    assert made.index('>method<') < made.index('>seed<') < made.index('<details') < made.index(
        '>of_one<'
    )  # fmt: skip


@pytest.mark.skipif(browser.CHROMIUM is None, reason='Chromium is not installed')
def test_a_matrix_of_many_classes_is_a_square_and_its_legend_is_folded(tmp_path):
    counts = (1000 * np.eye(150, dtype=int)).tolist()
    part = Part('d', 'val', tuple(f'class {i}' for i in range(150)), 'teacher', {
        'confusion': counts
    })  # fmt: skip
    body = scores.matrices({'run': part}) + page.legend(part.names, np.zeros((150, 3), int))
    (tmp_path / 'page.html').write_text(page.document('t', '', [page.Section('a', 'A', body)]))
    with browser.opened(tmp_path / 'page.html') as shown:
        size = 'getBoundingClientRect()'
        for side in ('width', 'height'):
            assert shown.evaluate(f'document.images[0].{size}.{side}') == pytest.approx(480, abs=1)
        assert shown.evaluate("document.querySelector('.legend').closest('details').open") is False


def test_results_have_the_confusion_matrix_that_the_scores_are_of(folder):
    path = folder / NAME / results.RESULTS
    written = json.loads(path.read_text())
    found = scoring.scores(np.array(written['confusion']))
    assert found['miou'] == written['miou'] and found['iou'] == list(written['iou'].values())
    assert len(path.read_text().splitlines()) < 90  # a row of the matrix is a line
    del written['confusion']
    path.with_name('old.json').write_text(json.dumps(written))
    assert 'confusion' not in results.read(path.with_name('old.json'))
    old = {'old': Part('d', 'val', tuple(written['iou']), 'teacher', written)}
    assert scores.matrices(old) == ''


def test_training_leaves_samples_notes_and_what_it_ran_on(folder):
    workdir = folder / NAME
    assert [p.name for p in sorted((workdir / metrics.SAMPLES).iterdir())] == [
        '00000003_shapes.png', '00000006_shapes.png'
    ]  # fmt: skip
    (start,) = run_folder.starts(workdir)
    assert start['step'] == 0 and start['devices'] >= 1 and start['jax'] and start['host']
    assert 'classes_with_prototype' in metrics.read(workdir)[-1]
    with_notes = [n for n in (folder / 'log.txt').read_text().splitlines() if n.startswith('note:')]
    run = runs.find([workdir])[0]
    assert with_notes == [
        f'note: {n}' for n in diagnostics.notes(run.config, run.records, run.results)
    ]


def test_pictures_of_steps_that_are_undone_are_dropped_and_no_other(tmp_path):
    with_step = {step: np.full((4, 6, 3), 40 * step, np.uint8) for step in (2, 4)}
    writer = metrics.Writer(tmp_path, 0)
    for step, image in with_step.items():
        writer.picture(step, 'a_b', image)
    writer.close()
    (tmp_path / metrics.SAMPLES / '9_of_mine.png').write_bytes(b'')
    writer = metrics.Writer(tmp_path, 2)  # resumed, and evaluates again
    writer.picture(2, 'a_b', with_step[2])
    writer.close()
    events = EventAccumulator(str(tmp_path), {'images': 0}).Reload()
    (tag,) = events.Tags()['images']
    (event,) = events.Images(tag)
    assert (tag, event.step, event.width, event.height) == ('samples/a_b', 2, 6, 4)
    found = sorted(path.name for path in (tmp_path / metrics.SAMPLES).iterdir())
    assert found == ['00000002_a_b.png', '9_of_mine.png']


def test_folders_of_runs_and_runs(folder, tmp_path):
    one = runs.find([folder / NAME, folder / NAME])
    assert [run.name for run in one] == [NAME]
    both = runs.find([folder / 'waiting', folder])
    assert [run.name for run in both] == ['waiting', NAME, 'began']
    assert [run.step for run in both] == [6, 6, None]
    shutil.copytree(folder / 'began', tmp_path / 'began')
    names = [run.name for run in runs.find([folder / 'began', tmp_path / 'began'])]
    assert names == [f'{folder.name}/began', f'{tmp_path.name}/began']
    (tmp_path / 'empty').mkdir()
    with pytest.raises(FileNotFoundError, match=r'empty: expected folders of runs'):
        runs.find([folder, tmp_path / 'empty'])


@pytest.mark.parametrize(
    ('low', 'high', 'marks'),
    [(0, 1, [0, 0.5, 1]), (0.21, 0.79, [0.2, 0.4, 0.6, 0.8]), (-3, 120, [-50, 0, 50, 100, 150])],
)
def test_ticks_are_round_and_enclose(low, high, marks):
    np.testing.assert_allclose(charts.ticks(low, high), marks)
    assert charts.ticks(7, 7)[0] < 7 < charts.ticks(7, 7)[-1]
    assert charts.ticks(0, 0)[0] < charts.ticks(0, 0)[-1]


def test_a_line_breaks_where_there_is_no_value_and_is_thinned():
    drawn = charts.lines('x<', {'a': [(0, 1.0), (1, None), (2, 3.0)], 'b': []}, 2)
    assert drawn.count('M') - drawn.count('class="grid"') == 2 and 'x&lt;' in drawn
    assert charts.lines('x', {'a': [(0, None)]}, 2) == ''
    many = charts.lines('x', {'a': [(i, float(i % 7)) for i in range(10_000)]}, 9999)
    assert len(many) < 6000 and 'a 3' in many  # the last of all


def test_a_plane_keeps_distances_of_what_lies_in_one():
    corners = np.eye(3)[:, :, None] * np.ones(4)
    places, share = embedded.plane(corners.reshape(3, -1))
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1)
    np.testing.assert_allclose(apart[np.triu_indices(3, 1)], np.sqrt(2))
    assert share == pytest.approx(1)
    assert embedded.plane(np.ones((2, 1)))[0].shape == (2, 2)


def test_time_between_two_starts_is_not_trained_time():
    records = [{'time': t} for t in (10, 12, 14, 100, 103)]
    assert settings.trained_seconds(records, [{'time': 5}, {'time': 90}]) == 4 + 3
    assert settings.trained_seconds([], []) == 0


def test_images_of_a_split_are_of_its_commonest_sizes():
    sizes = np.array([(4, 4), (5, 5), (4, 4), (6, 6), (5, 5), (7, 7), (8, 8), (4, 4), (6, 6)])
    assert predictions._of_common_sizes(sizes, 2).tolist() == [0, 1, 2, 4, 7]
    assert predictions._spread(9, 3) == [0, 4, 8] and predictions._spread(2, 5) == [0, 1]


def test_pictures_of_the_page_are_small():
    large = np.random.default_rng(0).integers(0, 256, (900, 1300, 3), np.uint8)
    (found,) = Reader(page.image(large, 'a "b"', photograph=True)).of('img')
    assert (found['width'], found['height'], found['alt']) == ('256', '177', 'a "b"')
    assert len(found['src']) < 100_000
    labels = np.repeat(np.array([[[250, 0, 0], [0, 0, 250]]], np.uint8), 600, 1).repeat(600, 0)
    (found,) = Reader(page.image(labels, 'a')).of('img')
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(found['src'].split(',')[1]), np.uint8), 1)
    assert len(np.unique(decoded.reshape(-1, 3), axis=0)) == 2  # no mean of two classes


@pytest.mark.skipif(browser.CHROMIUM is None, reason='Chromium is not installed')
def test_in_a_browser_images_show_tables_sort_and_nothing_is_wider_than_a_phone(folder, tmp_path):
    with browser.opened(folder / report.PAGE) as shown:
        assert shown.evaluate('document.images.length') > 20
        assert shown.evaluate('[...document.images].every(i => i.complete && i.naturalWidth > 0)')
        column = "[...document.querySelectorAll('#scores tbody tr')].map(r => r.cells[1].innerText)"
        heading = "document.querySelectorAll('#scores thead th')[1]"
        before = shown.evaluate(column)
        numbers = sorted(map(float, (value for value in before if value != '-')))
        shown.evaluate(f"{heading}.querySelector('button').focus()")
        for order, expected in (('ascending', numbers), ('descending', numbers[::-1])):
            shown.press('Enter')
            after = [float(value) for value in shown.evaluate(column) if value != '-']
            assert after == expected
            assert shown.evaluate(f"{heading}.getAttribute('aria-sort')") == order
        assert len(numbers) > 2 and numbers != numbers[::-1]
        names = "[...document.querySelectorAll('#scores tbody tr')].map(r => r.cells[0].innerText)"
        shown.evaluate("document.querySelector('#scores thead button').click()")
        assert shown.evaluate(names) == sorted(shown.evaluate(names))
        ground = 'getComputedStyle(document.body).backgroundColor'
        colours = set()
        for width in (1280, 390):
            for dark in (False, True):
                shown.look(width, dark)
                assert shown.evaluate('document.documentElement.scrollWidth') <= width
                colours.add(shown.evaluate(ground))
        assert len(colours) == 2
        shown.screenshot(tmp_path / 'page.png', height=900)
        assert cv2.imread(str(tmp_path / 'page.png')).std() > 5
        assert shown.complaints == []
        assert [url for url in shown.asked if not url.startswith(('file:', 'data:'))] == []


@pytest.mark.parametrize(
    ('arguments', 'given'),
    [('--workdir A B', ['A', 'B']), ('B --workdir=A C', ['A', 'B', 'C']), ('--workdir A', ['A'])],
)
def test_further_folders_follow_the_first(arguments, given, monkeypatch):
    asked = []
    monkeypatch.setattr(report, 'report', asked.extend)
    monkeypatch.setattr(parallel, 'start', lambda *given: None)  # which is to come first
    with flagsaver.flagsaver():
        main.main(main.parse(['main', '--mode=report', *arguments.split()]))
    assert list(map(str, asked)) == given


def test_no_other_mode_takes_folders():
    with (
        flagsaver.flagsaver(),
        pytest.raises(app.UsageError, match=r"unexpected arguments \['B'\]"),
    ):
        main.main(main.parse(['main', '--mode=train', '--workdir', 'A', 'B']))


def test_unlike_runs_are_an_error_before_anything_is_written(folder, tmp_path):
    for name, changes in {'a': {}, 'b': {'split': 'shapes/64:fresh'}}.items():
        shutil.copytree(folder / NAME, tmp_path / name)
        path = tmp_path / name / results.RESULTS
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ValueError, match='evaluated on different splits'):
        report.report([tmp_path / 'a', tmp_path / 'b'])
    assert not list(tmp_path.rglob('report*'))
