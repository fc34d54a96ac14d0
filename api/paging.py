"""Pages: by number from 0, as the contract has them, or after an id, which stays put."""

from collections.abc import Callable
from typing import Annotated, Final, Generic, TypeVar

from fastapi import Depends, Query
from pydantic import BaseModel

PAGE_SIZE_MAX: Final = 100
PAGE_NUMBER_MAX: Final = 10_000_000

T = TypeVar("T")


class Page(BaseModel, Generic[T]):
    """The envelope of every list, newest first."""

    items: list[T]


class Paging(BaseModel):
    """Which page is wanted: `offset` rows are passed over, or all up to `after`."""

    size: int
    offset: int
    after: str | None

    def after_as(self, kind: Callable[[str], T]) -> T | None:
        """Return `after` as an id of its kind."""
        return None if self.after is None else kind(self.after)


async def _paging(
    page_number: Annotated[
        int, Query(ge=0, le=PAGE_NUMBER_MAX, description="From 0. Rows move while new ones come.")
    ] = 0,
    page_size: Annotated[int, Query(ge=1, le=PAGE_SIZE_MAX)] = 10,
    starting_after: Annotated[
        str | None,
        Query(
            min_length=1,
            max_length=255,
            description="Id of the last row seen, from which pages are counted then: stable while"
            " new rows come.",
        ),
    ] = None,
) -> Paging:
    return Paging(size=page_size, offset=page_number * page_size, after=starting_after)


Paged = Annotated[Paging, Depends(_paging)]
