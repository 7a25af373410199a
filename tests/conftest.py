"""One thread per test process: small tensors gain nothing from more, and workers share cores."""

import torch

torch.set_num_threads(1)
