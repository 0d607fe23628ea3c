"""Every test: one thread, fixed seeds, no network, no progress bars."""

from __future__ import annotations

import gc
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import random

import numpy as np
import pytest
import torch
from hypothesis import settings
from transformers.utils import logging

from asterism.core.progress import quiet

torch.set_num_threads(1)
logging.disable_progress_bar()
settings.register_profile("asterism", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("asterism")


@pytest.fixture(autouse=True)
def _seeded_and_quiet():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    with quiet():
        yield


def pytest_collection_finish() -> None:
    """What the imports made is no garbage; every training run would search it otherwise, for half a second."""
    gc.collect()
    gc.freeze()
