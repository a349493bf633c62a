"""A region store: what a frozen teacher said of the regions of images, in a folder of files.

It needs files.py and wording.py of this repository, and no torch. In reading order: spec.py, what
identifies a dump, with images.py, its list of images; kinds.py, what is kept of a region;
tensors.py, a file of tensors, and layout.py, which files there are; reader.py and writer.py. Around
them fit.py, whether a store is what a run needs; and what lies beside a store: contents.py, the
bytes of its images; record.py, how long the dump took; teacher_text.py, text features of other
classes. docs/REGION_STORE.md is the format in words.
"""

from regions.store.fit import RunNeeds
from regions.store.reader import RegionRows, RegionStore
from regions.store.tensors import RegionStoreError

__all__ = ["RegionRows", "RegionStore", "RegionStoreError", "RunNeeds"]
