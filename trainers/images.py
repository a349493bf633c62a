"""Images as training and test samples, read as everywhere here; on Dassl as on dassl-lite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dassl.data import DataManager
from torch.utils.data import Dataset

from inputs import read_image


class ImageItems(Dataset):
    """Samples of a list of Datum: label, domain, impath, index and img, or img, img2, ... where
    there are several transforms. Takes what Dassl gives its DatasetWrapper."""

    def __init__(
        self,
        cfg: Any,
        data_source: Sequence[Any],
        transform: Callable | Sequence[Callable] | None = None,
        is_train: bool = False,
    ) -> None:
        views = cfg.DATALOADER.K_TRANSFORMS if is_train else 1
        if views > 1 or cfg.DATALOADER.RETURN_IMG0:
            raise ValueError(
                "DATALOADER.K_TRANSFORMS above 1 and RETURN_IMG0 are of no use to a trainer here; "
                "leave them at 1 and False."
            )
        self.data_source, self.transform = data_source, transform

    def __len__(self) -> int:
        return len(self.data_source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.data_source[index]
        image, several = read_image(item.impath), isinstance(self.transform, list | tuple)
        views = [view(image) for view in (self.transform if several else [self.transform])]
        return {
            "label": item.label,
            "domain": item.domain,
            "impath": item.impath,
            "index": index,
            **{f"img{number}" if number > 1 else "img": v for number, v in enumerate(views, 1)},
        }


def data_manager(cfg: Any) -> DataManager:
    """Dassl's loaders of a run's data set, with our way of reading an image."""
    return DataManager(cfg, dataset_wrapper=ImageItems)
