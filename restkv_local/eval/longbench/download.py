"""LongBench's official files from where its authors publish them, through the package `datasets`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from ...errors import ConfigError
from ..files import read_jsonl

URL = "https://huggingface.co/datasets/THUDM/LongBench/resolve/main/data.zip"


def download(names: Sequence[str], folder: Path, url: str = URL) -> list[Path]:
    """Put NAME.jsonl of each dataset into the folder and return their paths. Files that are there stay.

    The archive is fetched and unpacked by `datasets` into its cache; no code of the data set is run.
    Raises ConfigError when the package or the network is missing, or the archive lacks a dataset.
    """
    missing = [name for name in names if not (folder / f"{name}.jsonl").is_file()]
    if missing:
        try:
            from datasets import DownloadManager
        except ImportError:
            raise ConfigError(
                "downloading needs the package datasets (pip install datasets); or put the official files "
                f"({', '.join(f'{name}.jsonl' for name in missing)}) into '{folder}'"
            ) from None
        try:
            unpacked = Path(DownloadManager().download_and_extract(url))
        except Exception as err:  # whatever a network, a cache or an archive can raise
            raise ConfigError(f"{url} could not be fetched: {' '.join(str(err).split())}") from err
        folder.mkdir(parents=True, exist_ok=True)
        for name in missing:
            _take(unpacked, name, folder)
    return [folder / f"{name}.jsonl" for name in names]


def _take(unpacked: Path, name: str, folder: Path) -> None:
    """Copy one file, whole or not at all, and only if it can be read."""
    found = [path for path in (unpacked / "data" / f"{name}.jsonl", unpacked / f"{name}.jsonl") if path.is_file()]
    if not found:
        raise ConfigError(f"the archive of LongBench has no {name}.jsonl")
    for row in read_jsonl(found[0]):
        row.text("context")
    part = folder / f"{name}.jsonl.part"
    shutil.copyfile(found[0], part)
    os.replace(part, folder / f"{name}.jsonl")
