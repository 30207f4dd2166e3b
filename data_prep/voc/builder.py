"""TFDS builder of `voc`: PASCAL VOC 2012 and the labels that SBD adds to it.

VOC labels 1,464 images to train with and 1,449 to evaluate on. SBD labels 11,355 images of VOC,
evaluation images among them. What the field calls `trainaug` is derived here: VOC's train images
with VOC's own labels, and those of SBD that are in neither of VOC's lists; 10,582 in all.
"""

import functools
import io
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath

import numpy as np
import scipy.io
import tensorflow_datasets as tfds

from data_prep import archives, images, records
from data_prep.splits import lists

CLASS_NAMES = (
    'background', 'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair',
    'cow', 'diningtable', 'dog', 'horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa',
    'train', 'tvmonitor',
)  # fmt: skip
SPLITS = {'train': 1464, 'trainaug': 10_582, 'val': 1449}  # images
UNIONS = {'trainaug': ('train', 'extra')}  # extra: labelled by SBD alone

VOC = 'VOCtrainval_11-May-2012.tar'
SBD = 'benchmark.tgz'
SBD_AS_PNG = 'SegmentationClassAug.zip'
# Address and SHA-256 as on https://github.com/pytorch/vision/blob/017e9b99b5daddec3d82d5b05fe26f6834
# c48fa9/torchvision/prototype/datasets/_builtin/voc.py, and sbd.py beside it at 0ceda79669013dca973
# 597c42836d8649503dd06. VOC's host now redirects: https://github.com/pytorch/vision/pull/9216
PUBLISHED = {
    VOC: (
        'http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar',
        'e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb',
    ),
    SBD: (
        'https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/'
        'benchmark.tgz',
        '6a5a2918d5c73ce032fdeba876574d150d9d04113ab87540a1304cbcc715be53',
    ),
}
NEEDED_FROM_USER = f"""\
FOLDER has the archives, as published:
  {VOC} (2 GB), {PUBLISHED[VOC][0]}
and the labels of SBD, either
  {SBD} (1.4 GB), {PUBLISHED[SBD][0]}
or the same as PNG files, found with many public programs:
  {SBD_AS_PNG}
--download fetches what is missing of the first two."""

_FOLDER = 'VOCdevkit/VOC2012'
_SBD_FOLDER = 'benchmark_RELEASE/dataset'
_IDS = {value: value for value in [*range(len(CLASS_NAMES)), records.VOID]}
_EXPECTED = f'0..{len(CLASS_NAMES) - 1}, or {records.VOID} for void'

Labels = dict[str, tuple[str, Callable[[], bytes]]]  # id -> name for messages, reader of a PNG


class Builder(records.FromFiles):
    """Read the archives."""

    SPLITS = SPLITS
    BUILDER_CONFIGS = (
        tfds.core.BuilderConfig(name='full', description='the image files as they are'),
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return records.dataset_info(
            self,
            CLASS_NAMES,
            UNIONS,
            description='PASCAL VOC 2012 segmentation, 21 classes, with the labels of SBD.',
            homepage='http://host.robots.ox.ac.uk/pascal/VOC/voc2012/',
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager  # it wants every archive registered; `archives` needs no more than a folder
        voc_file, extra_file = find_archives(self._source)
        members = archives.members(voc_file)
        labels = labels_by_split(voc_file, members, extra_file)
        counts = {split: len(found) for split, found in labels.items()}
        counts |= {split: sum(counts[part] for part in parts) for split, parts in UNIONS.items()}
        for split, count in self._splits.items():
            if counts[split] != count:
                raise ValueError(
                    f'{self._source}: split {split}: expected {count} images, '
                    f'found {counts[split]} in {voc_file.name} and {extra_file.name}'
                )
        for found in labels.values():
            archives.require(voc_file, members, map(_image, found))
        self.info.metadata['archives'] = {
            file.name: archives.fingerprint(file, PUBLISHED.get(file.name, ('', ''))[1])
            for file in (voc_file, extra_file)
        }
        return {
            split: self._generate_examples(split, voc_file, members, found)
            for split, found in labels.items()
        }

    def _generate_examples(
        self, split: str, voc_file: Path, members: archives.Members, labels: Labels
    ) -> Iterator[tuple[int, dict]]:
        items = (read_item(voc_file, members, image_id, *labels[image_id]) for image_id in labels)
        return records.examples(self.info.metadata, split, items)


def find_archives(source: Path) -> tuple[Path, Path]:
    """Find VOC's archive and one with the labels of SBD; of two of these, SBD's own.

    Raises:
        FileNotFoundError: one is missing; says where to get it.
    """
    voc, *extra = (source / name for name in (VOC, SBD, SBD_AS_PNG))
    found = [file for file in extra if file.is_file()]
    if not voc.is_file() or not found:
        missing = voc if not voc.is_file() else f'{extra[0]}, nor {extra[1]}'
        raise FileNotFoundError(
            f'--source {source}: there is no {missing}. In --source FOLDER,\n{NEEDED_FROM_USER}'
        )
    return voc, found[0]


def download(folder: Path) -> None:
    """Fetch the archives that `folder` lacks, SBD's only where its labels are not there as PNG.

    Raises:
        OSError, ValueError: as `archives.download`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, (url, sha256) in PUBLISHED.items():
        instead = folder / SBD_AS_PNG if name == SBD else folder / name
        if not (folder / name).is_file() and not instead.is_file():
            print(f'fetching {url}')
            archives.download(url, folder / name, sha256)


def labels_by_split(voc_file: Path, voc: archives.Members, extra_file: Path) -> dict[str, Labels]:
    """Derive the splits: train and val as VOC lists them, and extra.

    Args:
        voc_file: VOC's archive.
        voc: its members.
        extra_file: labels of SBD, in either form.

    Returns:
        split -> id -> label, in the order of the list (extra: of the ids).

    Raises:
        ValueError: a list or label is missing or cannot be read.
    """
    files = {split: f'{_FOLDER}/ImageSets/Segmentation/{split}.txt' for split in ('train', 'val')}
    archives.require(voc_file, voc, files.values())
    ids = {split: lists.parse(voc[name](), f'{voc_file}: {name}') for split, name in files.items()}
    labels = {}
    for split, listed in ids.items():
        names = {image_id: f'{_FOLDER}/SegmentationClass/{image_id}.png' for image_id in listed}
        archives.require(voc_file, voc, names.values())
        labels[split] = {key: (f'{voc_file}: {name}', voc[name]) for key, name in names.items()}
    read = png_labels if extra_file.suffix == '.zip' else sbd_labels
    extra = read(extra_file, {*ids['train'], *ids['val']})
    return {'train': labels['train'], 'extra': dict(sorted(extra.items())), 'val': labels['val']}


def png_labels(file: Path, without: Collection[str]) -> Labels:
    """Find SBD's labels as PNG files, SegmentationClassAug/ID.png, but for the ids `without`."""
    found = {}
    for name, read in archives.members(file).items():
        path = PurePosixPath(name)
        if name.startswith('SegmentationClassAug/') and path.suffix == '.png':
            found[path.stem] = (f'{file}: {name}', read)
    return {image_id: label for image_id, label in found.items() if image_id not in without}


def sbd_labels(file: Path, without: Collection[str]) -> Labels:
    """Read the labels of SBD's train and val from its release, but for the ids `without`.

    The archive is read once, in its own order; labels wait in memory as PNG, about 2 KB each.

    Raises:
        ValueError: a list or a label that it names is missing or cannot be read.
    """
    listed, labels = {}, {}

    def wanted(name: str) -> bool:
        path = PurePosixPath(name)
        if str(path.parent) == f'{_SBD_FOLDER}/cls':
            return path.suffix == '.mat' and path.stem not in without
        return name in (f'{_SBD_FOLDER}/train.txt', f'{_SBD_FOLDER}/val.txt')

    for name, data in archives.walk(file, wanted):
        path, full_name = PurePosixPath(name), f'{file}: {name}'
        if path.suffix == '.txt':
            listed[name] = lists.parse(data, full_name)
        else:
            png = images.encode_png(decode_mat(data, full_name))
            labels[path.stem] = (full_name, functools.partial(bytes, png))
    archives.require(file, listed, (f'{_SBD_FOLDER}/{split}.txt' for split in ('train', 'val')))
    ids = {image_id for found in listed.values() for image_id in found} - set(without)
    names = {f'{_SBD_FOLDER}/cls/{image_id}.mat': image_id for image_id in sorted(ids)}
    known = {f'{_SBD_FOLDER}/cls/{image_id}.mat' for image_id in labels}
    archives.require(file, known, names)
    return {image_id: labels[image_id] for image_id in names.values()}


def decode_mat(data: bytes, name: str) -> np.ndarray:
    """Decode a label of SBD: the field Segmentation of the MATLAB structure GTcls.

    Args:
        data: the .mat file.
        name: for messages.

    Returns:
        uint8 [H, W]; SBD has no void.

    Raises:
        ValueError: it is no such file.
    """
    try:
        label = scipy.io.loadmat(io.BytesIO(data))['GTcls']['Segmentation'][0, 0]
    except Exception as error:  # scipy has no one exception for broken files
        raise ValueError(f'{name} is no readable label of SBD: {error!r}') from error
    if label.ndim != 2 or label.dtype != np.uint8:
        raise ValueError(
            f'{name}: expected GTcls.Segmentation as uint8 [H, W], came {label.dtype} '
            f'of shape {label.shape}'
        )
    return label


def read_item(
    voc_file: Path,
    members: Mapping[str, Callable[[], bytes]],
    image_id: str,
    label_name: str,
    read_label: Callable[[], bytes],
) -> tuple[str, bytes, np.ndarray]:
    """Read one image and its label.

    Returns:
        id, encoded image, label uint8 [H, W].

    Raises:
        ValueError: a file cannot be read, the sizes differ, or a label value is no class.
    """
    name = _image(image_id)
    data = members[name]()
    image, label = images.decode_pair((f'{voc_file}: {name}', data), (label_name, read_label()))
    label = records.relabel(label, _IDS, label_name, _EXPECTED)
    return image_id, images.encoded(image, data), label


def _image(image_id: str) -> str:
    """Return the name of an image in VOC's archive."""
    return f'{_FOLDER}/JPEGImages/{image_id}.jpg'
