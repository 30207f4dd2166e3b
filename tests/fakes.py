"""Small archives with the layout of the published ones, as {member: bytes} to change at will."""

import gzip
import io
import tarfile
import zipfile

import cv2
import numpy as np
import scipy.io
import scipy.sparse
from PIL import Image

VOC_IDS = {
    'train': ('2007_000039', '2007_000032'),  # not sorted, as a list may be
    'extra': ('2008_000002', '2008_000007', '2009_000005'),
    'val': ('2007_000033', '2010_000001'),
}
VOC_SPLITS = {'train': 2, 'trainaug': 5, 'val': 2}
# SBD's own split cuts across VOC's.
SBD_IDS = {
    'train': ('2008_000002', '2007_000032', '2007_000033'),
    'val': ('2009_000005', '2010_000001', '2008_000007'),
}
CITYSCAPES_IDS = {
    'train': ('aachen_000000_000019', 'aachen_000001_000019', 'hamburg_000000_080169'),
    'val': ('frankfurt_000001_062250', 'munster_000000_000019'),
}
CITYSCAPES_SPLITS = {'train': 3, 'val': 2}
ADE20K_IDS = {
    'train': ('ADE_train_00000001', 'ADE_train_00000002', 'ADE_train_00020210'),
    'val': ('ADE_val_00000001', 'ADE_val_00002000'),
}
ADE20K_SPLITS = {'train': 3, 'val': 2}


def voc_label(image_id: str, author: str = 'voc') -> np.ndarray:
    """Gives a label uint8 [H, W] that depends on its author; only VOC's has void."""
    seed = [*image_id.encode(), *author.encode()]
    height, width = 24 + int(image_id[-1]), 40 - int(image_id[-2])
    values = [*range(21), 255] if author == 'voc' else range(21)
    label = np.resize(values, (height, width)).astype(np.uint8)
    return np.random.default_rng(seed).permuted(label)


def voc_members() -> dict[str, bytes]:
    """Gives VOCtrainval_11-May-2012.tar: images, palette labels, lists, and what nobody reads."""
    folder, members = 'VOCdevkit/VOC2012', {}
    for split, ids in VOC_IDS.items():
        for image_id in ids:
            size = voc_label(image_id).shape
            members[f'{folder}/JPEGImages/{image_id}.jpg'] = jpeg(image_id, size)
            members[f'{folder}/Annotations/{image_id}.xml'] = b'<annotation/>'
            if split != 'extra':
                label = png(voc_label(image_id), palette=True)
                members[f'{folder}/SegmentationClass/{image_id}.png'] = label
                members[f'{folder}/SegmentationObject/{image_id}.png'] = label
    for split in ('train', 'val'):
        text = '\n'.join(VOC_IDS[split]) + '\n'
        members[f'{folder}/ImageSets/Segmentation/{split}.txt'] = text.encode()
    members[f'{folder}/ImageSets/Segmentation/trainval.txt'] = b'not read'
    return members


def sbd_members() -> dict[str, bytes]:
    """Gives benchmark.tgz: .mat labels of SBD's author for its ids, images, then the lists."""
    folder, members = 'benchmark_RELEASE/dataset', {}
    for image_id in [image_id for ids in SBD_IDS.values() for image_id in ids]:
        members[f'{folder}/cls/{image_id}.mat'] = mat(voc_label(image_id, 'sbd'))
        members[f'{folder}/img/{image_id}.jpg'] = b'not read'
        members[f'{folder}/inst/{image_id}.mat'] = b'not read'
    for split, ids in SBD_IDS.items():
        members[f'{folder}/{split}.txt'] = ('\n'.join(ids) + '\n').encode()
    return members


def png_members() -> dict[str, bytes]:
    """Gives SegmentationClassAug.zip: grey labels of all images, and what macOS adds."""
    members = {'SegmentationClassAug/': b''}
    for split, ids in VOC_IDS.items():
        for image_id in ids:
            label = voc_label(image_id, 'sbd' if split == 'extra' else 'voc')
            members[f'SegmentationClassAug/{image_id}.png'] = png(label)
            members[f'__MACOSX/SegmentationClassAug/._{image_id}.png'] = b'not read'
    return members


def cityscapes_label_ids(image_id: str) -> np.ndarray:
    """Gives a label uint8 [20, 40] with all ids 0..33 and 255."""
    label = np.resize([*range(34), 255], (20, 40)).astype(np.uint8)
    return np.random.default_rng([*image_id.encode()]).permuted(label)


def cityscapes_members() -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Gives leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip."""
    images, labels = {'README': b'', 'license.txt': b''}, {'README': b'', 'license.txt': b''}
    splits = {**CITYSCAPES_IDS, 'test': ('berlin_000000_000019',)}
    for split, ids in splits.items():
        for image_id in reversed(ids):
            place = f'{split}/{image_id.split("_")[0]}/{image_id}'
            images[f'leftImg8bit/{place}_leftImg8bit.png'] = png(picture(image_id, (20, 40)))
            label = cityscapes_label_ids(image_id)
            labels[f'gtFine/{place}_gtFine_labelIds.png'] = png(label)
            labels[f'gtFine/{place}_gtFine_instanceIds.png'] = b'not read'
            labels[f'gtFine/{place}_gtFine_polygons.json'] = b'{}'
    return images, labels


def ade20k_label(image_id: str) -> np.ndarray:
    """Gives a label uint8 [H, W] as in the files, with all of 0 (no class) to 150."""
    height, width = 12 + int(image_id[-1]), 14 + int(image_id[-1]) % 3
    label = np.resize(np.arange(151), (height, width)).astype(np.uint8)
    return np.random.default_rng([*image_id.encode()]).permuted(label)


def ade20k_members() -> dict[str, bytes]:
    """Gives ADEChallengeData2016.zip: images, labels, and what nobody reads."""
    root, members = 'ADEChallengeData2016', {}
    for split, ids in ADE20K_IDS.items():
        folder = {'train': 'training', 'val': 'validation'}[split]
        for part in ('images', 'annotations'):
            members[f'{root}/{part}/{folder}/'] = b''
        for image_id in reversed(ids):
            label = ade20k_label(image_id)
            members[f'{root}/images/{folder}/{image_id}.jpg'] = jpeg(image_id, label.shape)
            members[f'{root}/annotations/{folder}/{image_id}.png'] = png(label)
            members[f'__MACOSX/{root}/images/{folder}/._{image_id}.jpg'] = b'not read'
    members[f'{root}/objectInfo150.txt'] = b'not read'
    members[f'{root}/sceneCategories.txt'] = b'not read'
    return members


def picture(name: str, size: tuple[int, int]) -> np.ndarray:
    """Gives a smooth image uint8 [*size, 3] that depends on the name."""
    rng = np.random.default_rng([*name.encode()])
    return cv2.resize(rng.integers(0, 256, (4, 4, 3), np.uint8), size[::-1])


def jpeg(name: str, size: tuple[int, int]) -> bytes:
    """Encodes `picture` as JPEG."""
    out = io.BytesIO()
    Image.fromarray(picture(name, size)).save(out, 'JPEG')
    return out.getvalue()


def png(array: np.ndarray, palette: bool = False) -> bytes:
    """Encodes uint8 [H, W] (grey, or indices of a palette like VOC's) or [H, W, 3] as PNG."""
    image, out = Image.fromarray(array), io.BytesIO()
    if palette:
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
    image.save(out, 'PNG')
    return out.getvalue()


def mat(label: np.ndarray) -> bytes:
    """Encodes a label as SBD does: a structure GTcls with boundaries, classes and the label."""
    boundaries = np.empty((20, 1), object)
    for index in range(20):
        boundaries[index, 0] = scipy.sparse.csc_matrix(label == index + 1)
    present = np.setdiff1d(label, [0])[:, None]
    fields = {'Boundaries': boundaries, 'Segmentation': label, 'CategoriesPresent': present}
    out = io.BytesIO()
    scipy.io.savemat(out, {'GTcls': fields}, do_compression=True)
    return out.getvalue()


def tar(members: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    """Writes a tar with its folders, and symbolic links name -> target at its end."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode='w') as archive:
        for folder in sorted({name.rpartition('/')[0] for name in members if '..' not in name}):
            info = tarfile.TarInfo(folder)
            info.type = tarfile.DIRTYPE
            archive.addfile(info)
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return out.getvalue()


def tgz(members: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    """Writes a compressed tar."""
    return gzip.compress(tar(members, links))


def zipped(members: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    """Writes a zip, with symbolic links name -> target at its end."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        for name, target in (links or {}).items():
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o120777 << 16
            archive.writestr(info, target)
    return out.getvalue()
