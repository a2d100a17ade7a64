"""The reference networks in PyTorch, by the settings that a golden's `architecture` holds.

A network has its publisher's parameter names. `embed(clips)` gives the features that the last layer sees, `classify(features)`
the logits, and calling it does both.
"""

from .c3d import C3d
from .densenet import DenseNet
from .r2plus1d import R2Plus1d
from .residual import PreActivation, ResNet3d, ResNeXt, WideResNet
from .torchvision_models import mc3, r2plus1d

FAMILIES = {
    "resnet3d": ResNet3d,
    "torchvision-r3d": ResNet3d,
    "r2plus1d": R2Plus1d,
    "torchvision-r2plus1d": r2plus1d,
    "mc3": mc3,
    "resnext": ResNeXt,
    "wide-resnet": WideResNet,
    "preact-resnet": PreActivation,
    "densenet": DenseNet,
    "c3d": C3d,
}


def make(architecture, classes):
    return FAMILIES[architecture["family"]](architecture, classes)
