"""Two sources of rows beside real labelled pairs: generated pairs, and real images that a model labelled."""

from __future__ import annotations

from dakter.config import setting
from dakter.errors import ConfigError
from dakter.students.search import Range
from dakter.students.streams import shared_rows
from dakter.students.train import StudentsConfig

_DEFAULT = 0.5


class MixedStudentsConfig(StudentsConfig):
    """What all students share, with how the two sources are mixed."""

    unlabelled_share: float | None = setting(
        None,
        "of the rows that are no real labelled pairs, the share of real images with the model's labels "
        "(paths.labelled); 0: generated pairs alone, 1: none of them; null: 0.5 if there is such a corpus",
        ge=0,
        le=1,
    )

    def share(self, *, with_labelled: bool) -> float:
        """Share of real images with a model's labels, in [0, 1].

        Args:
            with_labelled: there is a corpus of them.

        Raises:
            ConfigError: a share is set, and there is none.
        """
        if not with_labelled:
            if self.unlabelled_share is not None:
                raise ConfigError(
                    f"students.unlabelled_share is {self.unlabelled_share:g} without a corpus of labelled real images; "
                    "make one with jobs/label.py and give it as paths.labelled (the pipeline: --label), or leave the "
                    "setting out"
                )
            return 0.0
        return _DEFAULT if self.unlabelled_share is None else self.unlabelled_share


def check_rows(share: float, synthetic_share: Range, batch_size: int) -> None:
    """Refuse a mix in which one source would never get a row, since every batch is shared out alike.

    Args:
        share: of real images with a model's labels, in [0, 1].
        synthetic_share: range of the share that both sources have of a batch.

    Raises:
        ConfigError: so few rows that one source gets none.
    """
    rows = max(1, round(batch_size * synthetic_share[0]))
    if 0 < share < 1 and 0 in shared_rows((1 - share, share), rows):
        raise ConfigError(
            f"students.unlabelled_share {share:g} of the {rows} rows that sweep.synthetic_share {synthetic_share[0]:g} "
            f"leaves of students.batch_size {batch_size} rounds to all or none of them; expected at least one row for "
            "either source: raise the batch size or the lowest synthetic share, or choose 0 or 1"
        )
