"""Benchmarks without training triplets: those of another data set stand in for them."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING

from data_modules.base import CIRDataModule
from data_modules.errors import UserError
from data_modules.missing import find_missing, leave_out, refuse_missing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from data_modules.records import Benchmark


class ZeroShotDataModule(CIRDataModule):
    """A benchmark that has evaluation sets only; it implements :meth:`read_own` instead of :meth:`read`.

    Attributes:
        train: the data set whose triplets it is trained on; of its other options only those that say what it reads matter. None where
            nothing is trained: its files are not needed then.
    """

    train: CIRDataModule | None

    @abstractmethod
    def read_own(self) -> Benchmark:
        """Read the benchmark's own records, as :meth:`read` does."""

    def prepare_data(self) -> None:
        """What the training set has to make."""
        if self.train:
            self.train.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """As :meth:`CIRDataModule.setup`.

        Raises:
            UserError: there is nothing to train on, too.
        """
        if stage == "fit" and not self.train:
            raise UserError(
                f"{type(self).__name__} is a zero-shot benchmark without training triplets; name the data set to train on "
                "(--data.train=data_modules.cirr.CIRR), or score a checkpoint with cir test"
            )
        super().setup(stage)

    def read(self) -> Benchmark:
        """Read the benchmark's own records and the triplets of the training set."""
        own = self.read_own()
        if not self.train:
            return own
        try:
            other = replace(self.train.read(), val=(), test=(), hidden=())
        except UserError as error:
            raise UserError(f"data.train: {str(error).replace('--data.', '--data.train.')}") from error
        if self.missing == "skip":
            other = leave_out(other, find_missing(other.pictures, self.train.root))
        return with_triplets(own, other)

    def require_pictures(self, positions: Sequence[int]) -> None:
        """As :meth:`CIRDataModule.require_pictures`; what the training set lacks is said of that set."""
        if self.train:
            paired = {name for triplet in self.triplets for name in (triplet.reference, triplet.target)}
            borrowed = (self.pictures[at] for at in positions if self.pictures[at].name in paired)
            refuse_missing(borrowed, type(self.train).__name__.lower(), self.train.root)
        super().require_pictures(positions)


def with_triplets(own: Benchmark, other: Benchmark) -> Benchmark:
    """A benchmark with the triplets of another one and the pictures that they need.

    Raises:
        UserError: the other one has no triplets, or names a picture as this one does.
    """
    if not other.triplets:
        raise UserError("data.train has no training triplets itself; name another data set there")
    paired = {name for triplet in other.triplets for name in (triplet.reference, triplet.target)}
    if clashes := sorted(paired.intersection(picture.name for picture in own.pictures)):
        raise UserError(
            f"data.train has a picture {clashes[0]!r}, and so has the benchmark itself ({len(clashes):,} such names); name another data set"
        )
    pictures = (picture for picture in other.pictures if picture.name in paired)
    return replace(own, pictures=(*own.pictures, *pictures), triplets=other.triplets, skipped_triplets=other.skipped_triplets)
