"""C3D (Tran et al. 2015) with the names of its PyTorch ports."""

import torch.nn as nn
import torch.nn.functional as F

# Convolutions between the pools: name and channels.
STAGES = ((("conv1", 64),), (("conv2", 128),), (("conv3a", 256), ("conv3b", 256)), (("conv4a", 512), ("conv4b", 512)),
          (("conv5a", 512), ("conv5b", 512)))


class C3d(nn.Module):
    """Takes clips of 16x112x112."""

    def __init__(self, settings, classes):
        super().__init__()
        factor, self.pool5 = settings["widen_factor"], settings["pool5"]
        channels = 3
        for name, width in (layer for stage in STAGES for layer in stage):
            setattr(self, name, nn.Conv3d(channels, int(width * factor), 3, padding=1))
            channels = int(width * factor)
        hidden = int(4096 * factor)
        self.fc6 = nn.Linear(channels * 4 * 4, hidden)
        self.fc7 = nn.Linear(hidden, hidden)
        self.fc8 = nn.Linear(hidden, classes)

    def embed(self, x):
        for number, stage in enumerate(STAGES, 1):
            for name, _ in stage:
                x = F.relu(getattr(self, name)(x))
            window = (1, 2, 2) if number == 1 else (2, 2, 2)
            if number < 5:
                x = F.max_pool3d(x, window, stride=window)
            elif self.pool5 == "ceil":
                x = F.max_pool3d(x, window, stride=window, ceil_mode=True)
            else:
                x = F.max_pool3d(x, window, stride=window, padding=(0, 1, 1))
        return F.relu(self.fc7(F.relu(self.fc6(x.flatten(1)))))

    def classify(self, features):
        return self.fc8(features)

    def forward(self, x):
        return self.classify(self.embed(x))
