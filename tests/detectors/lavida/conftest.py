"""Small matrices on few cores: threads would only wait for each other, the more so beside other test processes."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
