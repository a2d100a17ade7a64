"""DenseNet of the authors' code: branch CVPR2018 has dots in the layers' names, master has none.

The last layer is `fc`, as `convert` calls the authors' `classifier`.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

LAYERS = {121: (6, 12, 24, 16), 169: (6, 12, 32, 32), 201: (6, 12, 48, 32), 264: (6, 12, 64, 48)}
BOTTLENECK = 4


class Layer(nn.Module):
    def __init__(self, channels, growth, separator):
        super().__init__()
        self.names = [f"{kind}{separator}{number}" for number in (1, 2) for kind in ("norm", "conv")]
        middle = BOTTLENECK * growth
        made = [nn.BatchNorm3d(channels), nn.Conv3d(channels, middle, 1, bias=False),
                nn.BatchNorm3d(middle), nn.Conv3d(middle, growth, 3, padding=1, bias=False)]
        for name, module in zip(self.names, made):
            # A dot in a name is a module within a module.
            owner, _, leaf = name.rpartition(".")
            if owner and owner not in self._modules:
                self.add_module(owner, nn.Module())
            (self._modules[owner] if owner else self).add_module(leaf, module)

    def forward(self, x):
        norm1, conv1, norm2, conv2 = (self.get_submodule(name) for name in self.names)
        return torch.cat([x, conv2(F.relu(norm2(conv1(F.relu(norm1(x))))))], dim=1)


class Transition(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm = nn.BatchNorm3d(channels)
        self.conv = nn.Conv3d(channels, channels // 2, 1, bias=False)

    def forward(self, x):
        return F.avg_pool3d(self.conv(F.relu(self.norm(x))), 2, stride=2)


class DenseNet(nn.Module):
    def __init__(self, settings, classes):
        super().__init__()
        dotted, growth = settings["names"] == "dotted", settings["growth"]
        first = 0 if dotted else 1
        channels = 2 * growth
        self.features = nn.Module()
        self.stem = [f"conv{first}", f"norm{first}"]
        self.features.add_module(self.stem[0], nn.Conv3d(3, channels, 7, stride=(1, 2, 2), padding=3, bias=False))
        self.features.add_module(self.stem[1], nn.BatchNorm3d(channels))
        counts = LAYERS[settings["depth"]]
        for block, count in enumerate(counts, 1):
            layers = nn.Sequential()
            for index in range(1, count + 1):
                layers.add_module(f"denselayer{index}", Layer(channels, growth, "." if dotted else ""))
                channels += growth
            self.features.add_module(f"denseblock{block}", layers)
            if block < len(counts):
                self.features.add_module(f"transition{block}", Transition(channels))
                channels //= 2
        self.features.norm5 = nn.BatchNorm3d(channels)
        self.fc = nn.Linear(channels, classes)

    def embed(self, x):
        parts = self.features._modules
        conv, norm = (parts[name] for name in self.stem)
        x = F.max_pool3d(F.relu(norm(conv(x))), 3, stride=2, padding=1)
        for name, part in parts.items():
            if name.startswith(("denseblock", "transition")):
                x = part(x)
        return F.relu(self.features.norm5(x)).mean(dim=(2, 3, 4))

    def classify(self, features):
        return self.fc(features)

    def forward(self, x):
        return self.classify(self.embed(x))
