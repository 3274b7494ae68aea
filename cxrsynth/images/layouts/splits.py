"""Names of splits: train, val and test in the words of data sets and of file names."""

import re
from pathlib import PurePosixPath
from typing import Final

_NAMES: Final = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


def split_named(word: str) -> str:
    """The split that a word names; a word of the data set's own (`train_val`) stays as it is."""
    return _NAMES.get(word.strip().casefold(), word.strip())


def split_of_path(path: str) -> str:
    """The split that a file or folder is named after, as Hugging Face has it: `data/train-00000-of-00001.parquet`.

    Empty where none is named. The file's own name goes before those of its folders.
    """
    for part in reversed(PurePosixPath(path).parts):
        for word in re.split(r"[^A-Za-z]+", part):
            if (name := _NAMES.get(word.casefold())) is not None:
                return name
    return ""
