"""Attribution of whole data sets: streamed to disk, resumed after a crash, split among processes."""

from .run import Explained, attribute_dataset

__all__ = ["Explained", "attribute_dataset"]
