"""How far an import has come: kept beside the file, so that a killed import goes on."""

import json
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Final, Self

from metering.errors import ConfigurationError, FieldProblem, InvalidInputError
from metering.ids import BusinessId
from worker.local.files import write_private

HEAD_BYTES_MAX: Final = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The part that was acknowledged: `offset` bytes and `lines` of the file, to a line's end.

    head_bytes, head_sha256   the head of the file: the same file may grow, but not change
    refused_bytes             length of the refusals file at that moment
    too_old                   how many events were refused for their age
    options                   those that decide what is sent
    """

    business_id: BusinessId
    head_bytes: int
    head_sha256: str
    refused_file: str
    offset: int = 0
    lines: int = 0
    sent: int = 0
    refused: int = 0
    refused_bytes: int = 0
    too_old: int = 0
    options: str = ""

    @classmethod
    def begin(
        cls, file: BinaryIO, business_id: BusinessId, refused_file: Path, options: str
    ) -> Self:
        """Return the progress of an import that has not begun."""
        head = file.read(HEAD_BYTES_MAX)
        file.seek(0)
        return cls(
            business_id=business_id,
            head_bytes=len(head),
            head_sha256=sha256(head).hexdigest(),
            refused_file=str(refused_file),
            options=options,
        )

    def save(self, path: Path) -> None:
        """Replace the file in one step."""
        write_private(path, json.dumps(asdict(self)))


def load_progress(path: Path) -> Progress | None:
    """Return the saved progress. Returns None if there is none.

    Raises:
        ConfigurationError: the file is damaged.

    """
    try:
        return Progress(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        raise ConfigurationError(
            f"{path} is damaged: without it the import starts again, and sends duplicates only"
        ) from None


def check_same(saved: Progress, now: Progress, file: BinaryIO, path: Path) -> None:
    """Raise InvalidInputError if the file, the business or the refusals file is another one."""
    head = file.read(saved.head_bytes)
    if sha256(head).hexdigest() != saved.head_sha256 or file.seek(0, 2) < saved.offset:
        reason = f"is not the one that {path} is about: remove that to begin anew"
        raise InvalidInputError(FieldProblem("file", reason))
    file.seek(0)
    for name, before, given in (
        ("business", saved.business_id, now.business_id),
        ("refused", saved.refused_file, now.refused_file),
    ):
        if before != given:
            reason = f"was {before} when the import began"
            raise InvalidInputError(FieldProblem(name, reason))
