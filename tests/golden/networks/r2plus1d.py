"""R(2+1)D of the authors' code of 2020: a 3D ResNet whose convolutions are a spatial and a temporal one."""

import torch.nn as nn
import torch.nn.functional as F

from .residual import BLOCKS, WIDTHS, Residual, conv, shortcut


PAIR = ("conv{}_s", "bn{}_s", "conv{}_t", "bn{}_t")


def pair(module, number, cin, cout, kernel, stride=1, spatial_stride=None):
    """Sets `convN_s`, `bnN_s`, `convN_t` of a module. Both have as many weights as the convolution that they stand for."""
    kernel_t, kernel_s = kernel
    middle = (kernel_t * kernel_s**2 * cin * cout) // (kernel_s**2 * cin + kernel_t * cout)
    across = stride if spatial_stride is None else spatial_stride
    setattr(module, f"conv{number}_s", nn.Conv3d(
        cin, middle, (1, kernel_s, kernel_s), stride=(1, across, across),
        padding=(0, kernel_s // 2, kernel_s // 2), bias=False))
    setattr(module, f"bn{number}_s", nn.BatchNorm3d(middle))
    setattr(module, f"conv{number}_t", nn.Conv3d(
        middle, cout, (kernel_t, 1, 1), stride=(stride, 1, 1), padding=(kernel_t // 2, 0, 0), bias=False))
    setattr(module, f"bn{number}_t", nn.BatchNorm3d(cout))


def apply_pair(module, number, x):
    conv_s, bn_s, conv_t, bn_t = (getattr(module, name.format(number)) for name in PAIR)
    return bn_t(conv_t(F.relu(bn_s(conv_s(x)))))


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, cin, planes, stride, kind):
        super().__init__()
        pair(self, 1, cin, planes, (3, 3), stride)
        pair(self, 2, planes, planes, (3, 3))
        self.downsample = shortcut(kind, cin, planes, stride)

    def forward(self, x):
        y = apply_pair(self, 2, F.relu(apply_pair(self, 1, x)))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, cin, planes, stride, kind):
        super().__init__()
        self.conv1, self.bn1 = conv(cin, planes, 1), nn.BatchNorm3d(planes)
        pair(self, 2, planes, planes, (3, 3), stride)
        self.conv3, self.bn3 = conv(planes, planes * 4, 1), nn.BatchNorm3d(planes * 4)
        self.downsample = shortcut(kind, cin, planes * 4, stride)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu(apply_pair(self, 2, y))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class R2Plus1d(Residual):
    def __init__(self, settings, classes):
        counts, bottleneck = BLOCKS[settings["depth"]]
        self.settings = settings["stem"]
        kind = Bottleneck if bottleneck else BasicBlock
        widths = [int(width * settings["widen_factor"]) for width in WIDTHS]
        super().__init__(widths[0], widths, counts,
                         lambda cin, width, stride: kind(cin, width, stride, settings["shortcut"]), classes)

    def make_stem(self, channels):
        pair(self, 1, 3, channels, (self.settings["kernel_t"], 7), self.settings["stride_t"], spatial_stride=2)

    def start(self, x):
        x = F.relu(apply_pair(self, 1, x))
        return F.max_pool3d(x, 3, stride=2, padding=1) if self.settings["max_pool"] else x
