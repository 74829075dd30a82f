"""For every test: the models here are tiny, and a second thread costs more than it brings, on a
busy machine a hundred times more (each little operation waits for both)."""

import torch

torch.set_num_threads(1)
