"""torchvision's own networks, and IG-65M's R(2+1)D made of its parts."""

import torch.nn as nn
from torchvision.models import video
from torchvision.models.video import resnet

from .residual import BLOCKS


def with_parts(net):
    """Gives a VideoResNet `embed` and `classify`."""

    def embed(x):
        x = net.stem(x)
        for stage in range(1, 5):
            x = getattr(net, f"layer{stage}")(x)
        return net.avgpool(x).flatten(1)

    net.embed, net.classify = embed, lambda features: net.fc(features)
    return net


def mc3(_, classes):
    return with_parts(video.mc3_18(weights=None, num_classes=classes))


def r2plus1d(settings, classes):
    counts, bottleneck = BLOCKS[settings["depth"]]
    block = resnet.Bottleneck if bottleneck else resnet.BasicBlock
    net = resnet.VideoResNet(
        block, [resnet.Conv2Plus1D] * 4, list(counts), resnet.R2Plus1dStem, num_classes=classes)
    if settings["middle"] == "conv":
        # IG-65M counts the middle's channels from each convolution, torchvision from the block's input.
        for layer, width in [(net.layer2, 128), (net.layer3, 256), (net.layer4, 512)]:
            middle = 27 * width * width // (9 * width + 3 * width)
            layer[0].conv2[0] = resnet.Conv2Plus1D(width, width, middle)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm3d):
            norm.eps = settings["epsilon"]
    return with_parts(net)
