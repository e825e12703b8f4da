"""Limits the number of threads, because many threads make small matrices slower."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
