"""3D ResNets and their relatives with the authors' names: ResNeXt, wide and pre-activation ResNets."""

import torch.nn as nn
import torch.nn.functional as F

WIDTHS = (64, 128, 256, 512)


def conv(cin, cout, kernel, stride=1, groups=1):
    return nn.Conv3d(cin, cout, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)


class ShortcutA(nn.Module):
    """Average pool of kernel 1, then zero channels (He et al. 2016, option A)."""

    def __init__(self, channels, stride):
        super().__init__()
        self.channels, self.stride = channels, stride

    def forward(self, x):
        x = F.avg_pool3d(x, kernel_size=1, stride=self.stride)
        return F.pad(x, (0, 0, 0, 0, 0, 0, 0, self.channels - x.shape[1]))


def shortcut(kind, cin, cout, stride):
    if stride == 1 and cin == cout:
        return None
    if kind == "a":
        return ShortcutA(cout, stride)
    return nn.Sequential(nn.Conv3d(cin, cout, 1, stride=stride, bias=False), nn.BatchNorm3d(cout))


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, cin, planes, stride, kind):
        super().__init__()
        self.conv1, self.bn1 = conv(cin, planes, 3, stride), nn.BatchNorm3d(planes)
        self.conv2, self.bn2 = conv(planes, planes, 3), nn.BatchNorm3d(planes)
        self.downsample = shortcut(kind, cin, planes, stride)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, cin, planes, stride, kind, groups=1):
        super().__init__()
        cout = planes * self.expansion
        self.conv1, self.bn1 = conv(cin, planes, 1), nn.BatchNorm3d(planes)
        self.conv2, self.bn2 = conv(planes, planes, 3, stride, groups), nn.BatchNorm3d(planes)
        self.conv3, self.bn3 = conv(planes, cout, 1), nn.BatchNorm3d(cout)
        self.downsample = shortcut(kind, cin, cout, stride)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class TorchvisionBlock(nn.Module):
    """torchvision's BasicBlock: the same arithmetic under other names."""

    expansion = 1

    def __init__(self, cin, planes, stride, kind):
        super().__init__()
        self.conv1 = nn.Sequential(conv(cin, planes, 3, stride), nn.BatchNorm3d(planes), nn.ReLU())
        self.conv2 = nn.Sequential(conv(planes, planes, 3), nn.BatchNorm3d(planes))
        self.downsample = shortcut(kind, cin, planes, stride)

    def forward(self, x):
        y = self.conv2(self.conv1(x))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class NarrowBottleneck(Bottleneck):
    """That of ResNeXt and wide networks: twice its middle's channels."""

    expansion = 2


class PreActivationBlock(nn.Module):
    """Norm and ReLU come before each convolution and nothing after the sum (He et al. 2016, "Identity mappings")."""

    expansion = 1

    def __init__(self, cin, planes, stride, kind):
        super().__init__()
        sizes = self.convolutions(cin, planes, stride)
        for number, (source, target, kernel, step) in enumerate(sizes, 1):
            setattr(self, f"bn{number}", nn.BatchNorm3d(source))
            setattr(self, f"conv{number}", conv(source, target, kernel, step))
        self.count = len(sizes)
        self.downsample = shortcut(kind, cin, planes * self.expansion, stride)

    @staticmethod
    def convolutions(cin, planes, stride):
        return [(cin, planes, 3, stride), (planes, planes, 3, 1)]

    def forward(self, x):
        y = x
        for number in range(1, self.count + 1):
            y = getattr(self, f"conv{number}")(F.relu(getattr(self, f"bn{number}")(y)))
        # The shortcut takes the block's input as it is.
        return y + (x if self.downsample is None else self.downsample(x))


class PreActivationBottleneck(PreActivationBlock):
    expansion = 4

    @staticmethod
    def convolutions(cin, planes, stride):
        return [(cin, planes, 1, 1), (planes, planes, 3, stride), (planes, planes * 4, 1, 1)]


# Blocks in the stages, and whether they are bottlenecks.
BLOCKS = {
    10: ((1, 1, 1, 1), False),
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
    200: ((3, 24, 36, 3), True),
}


class Residual(nn.Module):
    """`conv1`, `bn1`, max pool, four stages of blocks, global mean, `fc`."""

    def __init__(self, stem_channels, widths, counts, block, classes):
        super().__init__()
        self.make_stem(stem_channels)
        cin = stem_channels
        for stage, (width, count) in enumerate(zip(widths, counts)):
            blocks = []
            for index in range(count):
                made = block(cin, width, 2 if stage > 0 and index == 0 else 1)
                blocks.append(made)
                cin = width * made.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(cin, classes)

    def make_stem(self, channels):
        self.conv1 = nn.Conv3d(3, channels, 7, stride=(1, 2, 2), padding=3, bias=False)
        self.bn1 = nn.BatchNorm3d(channels)

    def start(self, x):
        return F.max_pool3d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)

    def embed(self, x):
        x = self.start(x)
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return x.mean(dim=(2, 3, 4))

    def classify(self, features):
        return self.fc(features)

    def forward(self, x):
        return self.classify(self.embed(x))


class ResNet3d(Residual):
    """The authors' network (arXiv 1708.07632, table 1), or torchvision's VideoResNet by `family`."""

    def __init__(self, settings, classes):
        counts, bottleneck = BLOCKS[settings["depth"]]
        self.settings = settings["stem"]
        self.torchvision_names = settings["family"] == "torchvision-r3d"
        kind = Bottleneck if bottleneck else BasicBlock
        if self.torchvision_names:
            assert not bottleneck
            kind = TorchvisionBlock
        widths = [int(width * settings["widen_factor"]) for width in WIDTHS]
        super().__init__(widths[0], widths, counts,
                         lambda cin, width, stride: kind(cin, width, stride, settings["shortcut"]), classes)

    def make_stem(self, channels):
        kernel_t, stride_t = self.settings["kernel_t"], self.settings["stride_t"]
        first = nn.Conv3d(3, channels, (kernel_t, 7, 7), stride=(stride_t, 2, 2),
                          padding=(kernel_t // 2, 3, 3), bias=False)
        if self.torchvision_names:
            self.stem = nn.Sequential(first, nn.BatchNorm3d(channels), nn.ReLU())
        else:
            self.conv1, self.bn1 = first, nn.BatchNorm3d(channels)

    def start(self, x):
        x = self.stem(x) if self.torchvision_names else F.relu(self.bn1(self.conv1(x)))
        return F.max_pool3d(x, 3, stride=2, padding=1) if self.settings["max_pool"] else x


class ResNeXt(Residual):
    """`resnext.py` of the authors' code of 2018: 3x3x3 convolutions in groups."""

    def __init__(self, settings, classes):
        counts, _ = BLOCKS[settings["depth"]]
        widths = [int(2 * width * settings["widen_factor"]) for width in WIDTHS]
        super().__init__(int(64 * settings["widen_factor"]), widths, counts,
                         lambda cin, width, stride: NarrowBottleneck(cin, width, stride, "b", settings["cardinality"]),
                         classes)


class WideResNet(Residual):
    """`wide_resnet.py` of the authors' code of 2018: the factor leaves the stem as it is."""

    def __init__(self, settings, classes):
        counts, _ = BLOCKS[settings["depth"]]
        widths = [int(width * settings["widen_factor"]) for width in WIDTHS]
        super().__init__(64, widths, counts,
                         lambda cin, width, stride: NarrowBottleneck(cin, width, stride, "b"), classes)


class PreActivation(Residual):
    """`pre_act_resnet.py` of the authors' code of 2018: no norm before the mean."""

    def __init__(self, settings, classes):
        counts, bottleneck = BLOCKS[settings["depth"]]
        kind = PreActivationBottleneck if bottleneck else PreActivationBlock
        widths = [int(width * settings["widen_factor"]) for width in WIDTHS]
        super().__init__(widths[0], widths, counts, lambda cin, width, stride: kind(cin, width, stride, "b"), classes)
