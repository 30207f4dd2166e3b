"""--mode predict: what is written of images and videos, what is refused, and the way back."""

import csv
import errno
import json
import logging
import pathlib
from unittest import mock

import cv2
import numpy as np
import pytest
from absl.testing import flagsaver
from PIL import Image

from css_jax import main, methods, models, parallel
from css_jax import predict as predictors
from css_jax.data import inputs
from css_jax.evaluation import predictions
from css_jax.modes.predict import Asked, predict
from data_prep.folder import classes, labelme
from tests import folders, predicted
from tests.folders import put
from tests.predicted import image
from tests.small import small


@pytest.fixture(scope='module')
def run(tmp_path_factory, data_dir):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, 'build', small)
        yield predicted.save(tmp_path_factory.mktemp('run'), data_dir)


def sizes(folder):
    """Path in a folder -> width and height, of its PNG files."""
    files = sorted(folder.rglob('*.png'))
    return {str(file.relative_to(folder)): Image.open(file).size for file in files}


def pixels(file):
    return np.asarray(Image.open(file))


@pytest.fixture
def photos(tmp_path):
    """Images of every kind, and what is none."""
    folder = tmp_path / 'photos'
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    put(folder / 'turned.jpg', image(0, 30, 44), exif=exif)
    put(folder / 'inner' / 'a b.png', np.dstack([image(1, 20, 50), np.full((20, 50), 9, np.uint8)]))
    put(folder / 'grey.bmp', Image.fromarray(image(2, 40, 40)).convert('L'))
    put(folder / 'deep.png', np.arange(900, dtype=np.uint16).reshape(30, 30) * 70)
    put(folder / 'dot.png', image(3, 1, 1))
    put(folder / 'line.v2.PNG', image(4, 1, 70))
    put(folder / 'black.tif', np.zeros((33, 33, 3), np.uint8))
    put(folder / '.hidden.png', image(5, 8, 8))
    put(folder / 'notes.txt', 'no image')
    return folder


def test_a_label_map_and_its_pictures_for_every_image(run, photos, tmp_path, caplog, capsys):
    out = tmp_path / 'out'
    caplog.set_level(logging.INFO, 'css_jax')
    predict(None, run, [str(photos)], out, asked=Asked(confidence=True))
    expected = {
        'turned': (30, 44), 'a b': (50, 20), 'grey': (40, 40), 'deep': (30, 30), 'dot': (1, 1),
        'line.v2': (70, 1), 'black': (33, 33),
    }  # fmt: skip
    folders_ = ('', 'color/', 'overlay/', 'confidence/', 'similarity/')
    assert sizes(out) == {
        f'{f}{name}.png': size for f in folders_ for name, size in expected.items()
    }
    assert 'predicted: 7 of 7' in capsys.readouterr().out
    assert 'EMA teacher, running statistics, whole image reflect-padded to 64x64' in caplog.text

    seen = np.asarray(Image.open(photos / 'turned.jpg').convert('RGB'))
    seen = np.ascontiguousarray(np.rot90(seen, -1))
    found = predictors.load(run).maps(seen)
    np.testing.assert_array_equal(pixels(out / 'turned.png'), found.labels)
    grey = pixels(out / 'confidence' / 'turned.png')
    np.testing.assert_allclose(grey, 255 * found.confidence, atol=0.51)
    assert pixels(out / 'similarity' / 'turned.png').std() > 0
    table = list(csv.DictReader((out / 'classes.csv').open()))
    assert [row['name'] for row in table][:2] == ['background', 'disc'] and len(table) == 7
    colours = np.array([list(bytes.fromhex(row['colour'][1:])) for row in table])
    np.testing.assert_array_equal(pixels(out / 'color' / 'turned.png'), colours[found.labels])
    blend = pixels(out / 'overlay' / 'turned.png')
    kept = found.labels == 0  # black
    np.testing.assert_array_equal(blend[kept], seen[kept])
    assert (found.labels > 0).any()
    mean = (seen.astype(int) + colours[found.labels] + 1) // 2
    np.testing.assert_array_equal(blend[~kept], mean[~kept])
    noted = json.loads((out / predictions.FILE).read_text())
    assert noted['step'] == 3 and 'color/dot.png' in noted['files']


def test_what_is_broken_is_named_at_the_end_and_the_others_are_written(run, photos, tmp_path):
    (photos / 'cut.jpg').write_bytes((photos / 'turned.jpg').read_bytes()[:500])
    put(photos / 'empty.png', b'')
    put(photos / 'text.jpeg', 'no image')
    put(photos / 'large.webp', image(6, 50, 60))
    put(photos / 'film.mp4', 'no video')
    out = tmp_path / 'out'
    given = [str(photos), str(photos / 'film.mp4')]
    with pytest.raises(ValueError, match='5 of 12 could not be predicted, the others are') as said:
        predict(None, run, given, out, asked=Asked(max_pixels=2999))
    lines = str(said.value).splitlines()
    assert len(lines) == 6 and 'cut.jpg is no readable image' in lines[1]
    assert 'large.webp: an image of too many pixels; expected at most 2,999 (' in lines[3]
    assert 'film.mp4 is no readable video' in lines[5]
    assert len(list(out.glob('*.png'))) == 7 and not list(out.glob('film*'))


def test_predictions_are_replaced_and_nothing_else_is(run, photos, tmp_path):
    out, given = tmp_path / 'out', [str(photos / 'grey.bmp')]
    put(out / 'mine.txt', 'mine')
    predict(None, run, given, out)
    put(out / 'grey.png', np.full((40, 40), 99, np.uint8))
    predict(None, run, [*given, str(photos / 'dot.png')], out)
    assert pixels(out / 'grey.png').max() < 7 and (out / 'mine.txt').read_text() == 'mine'
    put(out / 'black.png', image(0, 4, 4))
    before = (out / 'black.png').read_bytes()
    with pytest.raises(ValueError, match=r'out: black\.png is there, and is no prediction'):
        predict(None, run, [str(photos / 'black.tif')], out)
    assert (out / 'black.png').read_bytes() == before and not (out / 'color/black.png').exists()
    with pytest.raises(ValueError, match=r'grey\.png is an input, and would be replaced'):
        predict(None, run, [str(out / 'grey.png')], out)
    (out / predictions.FILE).write_text('{')
    with pytest.raises(ValueError, match=r'predictions\.json does not list predictions'):
        predict(None, run, given, out)


@pytest.mark.parametrize(
    ('given', 'target', 'answer'),
    [
        (['photos/nowhere'], 'out', 'nowhere: there is no such file or folder'),
        (['photos/*.gif'], 'out', r'\*\.gif: no images there'),
        (['photos/notes.txt'], 'out', r'notes\.txt: got \.txt, expected \.jpg'),
        (['photos'], 'photos/out', r'--target=.*: it lies in --source=.*photos'),
        (['photos'], 'photos', 'it lies in --source'),
        (['photos'], 'file', 'this is a file, expected a folder'),
        (['photos', 'other/grey.png'], 'out', r"grey\.bmp and .*grey\.png have one stem, 'grey'"),
    ],
)
def test_what_cannot_be_predicted_is_one_line_and_writes_nothing(
    given, target, answer, run, photos, tmp_path
):
    put(tmp_path / 'other' / 'grey.png', image(0, 9, 9))
    put(tmp_path / 'file', 'x')
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises((ValueError, OSError), match=answer):
        predict(None, run, [f'{tmp_path}/{one}' for one in given], tmp_path / target)
    assert sorted(tmp_path.rglob('*')) == before


def test_a_file_in_the_place_of_a_folder_of_pictures_is_named_first(run, photos, tmp_path):
    put(tmp_path / 'out' / 'overlay', 'mine')
    with pytest.raises(ValueError, match=r'out/overlay is a file, expected a folder'):
        predict(None, run, [str(photos / 'grey.bmp')], tmp_path / 'out')
    assert [file.name for file in (tmp_path / 'out').iterdir()] == ['overlay']


def test_a_full_disk_is_named_and_leaves_no_draft(run, photos, tmp_path, monkeypatch):
    out, write = tmp_path / 'out', pathlib.Path.write_bytes

    def full(path, content):
        write(path, content[:9])
        if path.name.startswith('grey'):
            raise OSError(errno.ENOSPC, 'No space left on device')  # a full disk names no file
        return write(path, content)

    monkeypatch.setattr(pathlib.Path, 'write_bytes', full)
    with pytest.raises(OSError, match=r"No space left on device: '.*out/grey\.png'"):
        predict(None, run, [str(photos / 'grey.bmp')], out)
    assert sorted(file.name for file in out.iterdir()) == ['classes.csv', predictions.FILE]


def test_a_folder_of_videos_says_how_they_are_given(tmp_path):
    put(tmp_path / 'clips' / 'film.mp4', 'x')
    with pytest.raises(FileNotFoundError, match=r'no images there.*videos as files, .*clips/\*'):
        inputs.find([str(tmp_path / 'clips')])


def test_files_folders_and_globs_are_images_once(photos):
    given = [str(photos / 'grey.bmp'), str(photos), f'{photos}/**/*.png', f'{photos}/*']
    found = inputs.find(given)
    assert found[0].path.name == 'grey.bmp'
    assert sorted(one.stem for one in found) == sorted(
        ['a b', 'black', 'deep', 'dot', 'grey', 'line.v2', 'turned']
    )
    assert inputs.image_size(photos / 'turned.jpg') == (44, 30)
    assert [one.stem for one in inputs.find([f'{photos}/**/a*.png'])] == ['a b']


def test_a_video_is_label_maps_of_its_frames_and_an_overlay(run, tmp_path):
    film, out = tmp_path / 'film.avi', tmp_path / 'out'
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter_fourcc(*'MJPG'), 12.0, (48, 32))
    for number in range(6):
        writer.write(image(number, 32, 48))
    writer.release()
    put(out / 'film' / '000009.png', image(0, 4, 4))
    with pytest.raises(ValueError, match='out: film is there, and is no prediction'):
        predict(None, run, [str(film)], out)
    (out / 'film' / '000009.png').unlink()
    (out / 'film').rmdir()
    predict(None, run, [str(film)], out, asked=Asked(confidence=True))
    put(out / 'film' / '000009.png', image(0, 4, 4))  # of a longer one
    predict(None, run, [str(film)], out)
    found = sizes(out)
    frames = [f'film/{number:06d}.png' for number in range(6)]
    assert [name for name in found if name.startswith('film/')] == frames
    assert set(found.values()) == {(48, 32)} and f'confidence/{frames[5]}' in found
    capture = cv2.VideoCapture(str(film))
    first = np.ascontiguousarray(capture.read()[1][..., ::-1])
    np.testing.assert_array_equal(pixels(out / frames[0]), predictors.load(run).predict(first))
    capture = cv2.VideoCapture(str(out / 'film.mp4'))
    assert capture.get(cv2.CAP_PROP_FPS) == 12 and capture.get(cv2.CAP_PROP_FRAME_COUNT) == 6
    assert capture.read()[1].shape == (32, 48, 3)
    assert not list(out.glob('.*'))
    put(tmp_path / 'color.mp4', 'x')
    with pytest.raises(ValueError, match=r'color\.mp4: its frames would lie in color/'):
        predict(None, run, [str(tmp_path / 'color.mp4')], out)
    with pytest.raises(ValueError, match=r'--for_labelling: got the video .*film\.avi'):
        predict(None, run, [str(film)], out, asked=Asked(for_labelling=True))


def test_confident_predictions_come_back_as_a_folder(run, tmp_path):
    source, out = tmp_path / 'photos', tmp_path / 'out'
    for number in range(4):
        put(source / f'p{number}.png', image(number, 44, 60))
    every = [image(number, 44, 60) for number in range(4)]
    maps = predictors.load(run).maps(every)
    threshold = float(np.median([one.confidence for one in maps]))
    predict(None, run, [str(source)], out, asked=Asked(for_labelling=True, threshold=threshold))

    plan = folders.read(out / predictions.LABELLING)
    assert plan.report[0].startswith("LabelMe's polygons") and plan.classes.names[1] == 'disc'
    found = folders.labels(plan) | folders.labels(plan, 'val')
    shown = 0
    for number, one in enumerate(maps):
        ignore = pixels(out / 'ignore' / f'p{number}.png')
        expected = np.where(ignore == 255, 255, one.labels)
        np.testing.assert_array_equal(found[f'p{number}'], expected)
        assert not ((ignore == 0) & (one.confidence < threshold)).any()
        dropped = (ignore == 255) & (one.confidence >= threshold)
        assert dropped.mean() < 0.1
        shown += (ignore == 0).sum()
    assert shown > 1000
    document = json.loads((out / predictions.LABELLING / 'p0.json').read_text())
    assert (document['imageHeight'], document['imageWidth']) == (44, 60)
    assert document['imagePath'] == 'p0.png' and document['imageData'] is None
    assert {'__ignore__'} < {shape['label'] for shape in document['shapes']}
    assert all(shape['shape_type'] == 'polygon' for shape in document['shapes'])

    # A second round: masks and polygons in one folder.
    both = tmp_path / 'both'
    folders.pairs(both, 'first', 'other')
    put(both / 'images' / 'p1.png', every[1])
    put(both / 'masks' / 'p1.json', (out / predictions.LABELLING / 'p1.json').read_bytes())
    with pytest.raises(ValueError, match=r'p1\.json has names .*first\.png their ids'):
        folders.read(both)
    put(both / 'classes.txt', (out / predictions.LABELLING / 'classes.txt').read_bytes())
    plan = folders.read(both)
    again = folders.labels(plan) | folders.labels(plan, 'val')
    np.testing.assert_array_equal(again['p1'], found['p1'])
    np.testing.assert_array_equal(again['first'], folders.ids(0))

    put(out / predictions.LABELLING / 'p0.json', 'corrected')
    with pytest.raises(ValueError, match=r'labelling/p0\.json is there, and may have been correct'):
        predict(None, run, [str(source)], out, asked=Asked(for_labelling=True))
    predict(None, run, [str(source)], out)
    assert (out / predictions.LABELLING / 'p0.json').read_text() == 'corrected'


@pytest.mark.parametrize('names', [('background', 'a', 'b'), ('sky', 'a', 'b')])
@pytest.mark.parametrize('kind', ['noise', 'pieces'])
def test_polygons_draw_the_label_map_that_they_were_made_of(names, kind, tmp_path):
    """With holes, with pieces that touch at corners, and of a pixel; void is a label as well."""
    table, file = classes.Table(names, (0, 1, 2)), tmp_path / 'a.json'
    for seed in range(20):
        rng = np.random.default_rng(seed)
        size = tuple(rng.integers(1, 30, 2).tolist())
        labels = rng.integers(0, 4, size)
        if kind == 'pieces':
            smooth = cv2.GaussianBlur(rng.random(size).astype(np.float32), (0, 0), 2)
            labels = (smooth * 16).astype(int) % 4
        labels[labels == 3] = 255
        document = labelme.document(labels, names, 'a.png')
        file.write_text(json.dumps(document))
        np.testing.assert_array_equal(labelme.draw(file, size, table), labels)
    if names[0] == 'sky':  # what is under no polygon would be nothing
        file.write_text(json.dumps(document | {'shapes': document['shapes'][1:]}))
        with pytest.raises(ValueError, match='has no background, which is what lies under no'):
            labelme.draw(file, size, table)


def test_small_pieces_are_void():
    labels = np.zeros((8, 8), np.int32)
    labels[1:3, 1:3], labels[5:8, 5:8], labels[0, 7] = 1, 2, 255
    cleaned = labelme.without_small(labels, 5)
    assert (cleaned[1:3, 1:3] == 255).all() and (cleaned[5:8, 5:8] == 2).all()
    assert (cleaned == 255).sum() == 5 and labels[1, 1] == 1


def test_of_several_evaluations_one_is_chosen_and_named(run, photos, tmp_path, monkeypatch, caplog):
    (one,) = methods.METHODS['css_mix'].evaluations(predictors.load(run).config).values()
    several = methods.METHODS['css_mix']._replace(
        evaluations=lambda config: {'coarse': one, 'fine': one}
    )
    monkeypatch.setitem(methods.METHODS, 'css_mix', several)
    caplog.set_level(logging.INFO, 'css_jax')
    given = [str(photos / 'dot.png')]
    predict(None, run, given, tmp_path / 'a')
    assert 'the classes are those of coarse; --evaluation takes coarse, fine' in caplog.text
    predict(None, run, given, tmp_path / 'b', asked=Asked(evaluation='fine'))
    assert json.loads((tmp_path / 'b' / predictions.FILE).read_text())['evaluation'] == 'fine'
    with pytest.raises(ValueError, match="evaluation: got 'x', expected one of"):
        predict(None, run, given, tmp_path / 'c', asked=Asked(evaluation='x'))
    assert not (tmp_path / 'c').exists()


def command(arguments, workdir):
    """Run the program in this process, in which jax has computed: it joins no others."""
    with flagsaver.flagsaver(), mock.patch.object(parallel, 'start'):
        main.main(main.parse(['main', f'--workdir={workdir}', '--mode=predict', *arguments]))


def test_the_command_takes_paths_as_a_shell_gives_them(run, photos, tmp_path):
    out = tmp_path / 'out'
    files = [str(photos / name) for name in ('grey.bmp', 'dot.png', 'black.tif')]
    flags = ['--checkpoint', '3', '--config.eval.flip', '--config.eval.network=student']
    command(['--source', *files, '--target', str(out), *flags], run)
    assert sorted(file.stem for file in out.glob('*.png')) == ['black', 'dot', 'grey']
    protocol = json.loads((out / predictions.FILE).read_text())['protocol']
    assert protocol.startswith('student') and 'over the mirror image' in protocol
    predictor = predictors.load(run, network='student')
    black = np.zeros((64, 64, 3), np.uint8)  # its mirror image as well
    both = [predictor.predict(x, probabilities=True) for x in (black, black[:, ::-1])]
    expected = (both[0] + both[1][:, ::-1]).argmax(-1)[:33, :33]
    np.testing.assert_array_equal(pixels(out / 'black.png'), expected)


@pytest.mark.parametrize(
    ('arguments', 'answer'),
    [
        ('--target=x', '--mode=predict: expected --source=PATH..., got none'),
        ('--source=x', '--mode=predict: expected --target=FOLDER, got none'),
        ('--source=x --target=y --threshold=0.5', '--threshold: expected with --for_labelling'),
        (
            '--source=x --target=y --for_labelling --threshold=2',
            '--threshold: got 2.0, expected a number from 0 to 1',
        ),
        ('--source=x --target=y --max_pixels=0', '--max_pixels: got 0, expected a number from 1'),
        ('--source=x --target=y --config.seed=7', '--source=x: there is no such file'),
    ],
)
def test_flags_that_make_no_sense_are_refused(arguments, answer, run, capsys):
    with pytest.raises(SystemExit):
        command(arguments.split(), run)
    assert answer in capsys.readouterr().err
