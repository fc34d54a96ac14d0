"""Pages of a list: by number from 0, or after the id of the last row seen."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Final, Generic, TypedDict, TypeVar

from fastapi import Depends, Query
from pydantic import BaseModel

PAGE_SIZE_MAX: Final = 100
PAGE_NUMBER_MAX: Final = 10_000_000

T = TypeVar("T")


class Page(BaseModel, Generic[T]):
    """The envelope of every list, newest first."""

    items: list[T]


class Rows(TypedDict, Generic[T]):
    """The arguments by which a store selects the rows of a page."""

    page: int
    offset: int
    after: T | None


@dataclass(frozen=True, slots=True)
class Paging:
    """The page that a request asks for."""

    size: int
    offset: int
    after: str | None

    def rows(self, kind: Callable[[str], T]) -> Rows[T]:
        """Return the store's arguments; `kind` makes the id of a row from text."""
        after = None if self.after is None else kind(self.after)
        return Rows(page=self.size, offset=self.offset, after=after)


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
            description="Id of the last row seen; pages are counted from there. Stable while new"
            " rows come.",
        ),
    ] = None,
) -> Paging:
    return Paging(size=page_size, offset=page_number * page_size, after=starting_after)


Paged = Annotated[Paging, Depends(_paging)]
