"""The loader: sharded images as augmented, normalised batches, every sample exactly once an epoch.

from loader import Loader, LoaderConfig

with Loader("shards", "train", LoaderConfig(batch_size=256)) as loader:
    for images, labels, ids in loader: ...
"""

from loader.batch import Batch
from loader.config import LoaderConfig
from loader.gpu import GPU_DECODER
from loader.loader import Loader
from loader.receipt import Coverage, coverage
from loader.remote import dataset_folder, read_pieces

__all__ = ["GPU_DECODER", "Batch", "Coverage", "Loader", "LoaderConfig", "coverage", "dataset_folder", "read_pieces"]
