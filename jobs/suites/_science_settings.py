"""Settings of suite ``science``, apart from the rest so that ``--help`` need not load a network."""

from __future__ import annotations

import os

from dakter.config import Config, setting
from dakter.errors import ConfigError

ROOT_VARIABLE = "DAKTER_SOS_ROOT"


class ScienceConfig(Config):
    """What of the suite to do, where its images are, and for how long."""

    root: str | None = setting(
        None,
        f"folder of the labelled set; null: the environment's {ROOT_VARIABLE} (tiers short and sim need none)",
        unit="path or s3:// URL",
    )
    unlabelled_root: str | None = setting(
        None,
        "folder of the images without labels; null: a folder 'unlabelled' beside the labelled set, if there is one",
        unit="path or s3:// URL",
    )
    cells: str = setting(
        "*", "cells to do, as comma-separated names or shell patterns; what they stand on is done too", min_length=1
    )
    workers: int = setting(
        1,
        "cells done at a time, each in a process of its own; a GPU has room for as many as the machine has cores",
        ge=1,
    )
    budget_minutes: float | None = setting(
        None, "begin no cell that would not end within this time; a generator stops at a checkpoint", unit="min", gt=0
    )

    def roots(self) -> tuple[str, str | None]:
        """The labelled and the unlabelled folder.

        Raises:
            ConfigError: neither setting nor environment names the set.
        """
        root = self.root or os.environ.get(ROOT_VARIABLE)
        if not root:
            raise ConfigError(
                f"science.root is null and {ROOT_VARIABLE} is not set; expected the folder of the SOS set (with train/ "
                "and test/ in it): set one of them, or choose --tier short or sim"
            )
        beside = os.path.join(os.path.dirname(root.rstrip("/")), "unlabelled")
        return root, self.unlabelled_root or (beside if os.path.isdir(beside) else None)
