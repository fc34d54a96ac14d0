"""How far an import has come: kept beside the file, so that a killed import goes on."""

import json
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Final, Self

from metering.errors import ConfigurationError, FieldProblem, InvalidInputError
from metering.ids import BusinessId
from worker.local.files import write_private

HEAD_BYTES_MAX: Final = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What has been acknowledged: `offset` bytes and `lines` of the file, ended at a line.

    `head_bytes` and `head_sha256` tell whether the file is still the same; one that has only grown
    is. `refused_bytes`: length of the refusals file at that moment. `too_old`: how many were
    refused for their age. `options`: those that decide what is sent.
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

    def moved(
        self, *, offset: int, lines: int, sent: int, refused: int, refused_bytes: int, too_old: int
    ) -> Self:
        """Return the progress after one more request; counts of events are added."""
        return replace(
            self,
            offset=offset,
            lines=lines,
            sent=self.sent + sent,
            refused=self.refused + refused,
            refused_bytes=refused_bytes,
            too_old=self.too_old + too_old,
        )

    def save(self, path: Path) -> None:
        """Replace the file in one step."""
        write_private(path, json.dumps(asdict(self)))


def load_progress(path: Path) -> Progress | None:
    """Return what was saved; None if nothing was.

    Raises:
        ConfigurationError: the file is not a progress.

    """
    try:
        return Progress(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        raise ConfigurationError(
            f"{path} is damaged: without it the import starts again, and sends duplicates only"
        ) from None


def check_same(
    progress: Progress, file: BinaryIO, path: Path, business_id: BusinessId, refused_file: Path
) -> None:
    """Refuse to go on with another file, business or refusals file.

    Raises:
        InvalidInputError: naming what differs.

    """
    head = file.read(progress.head_bytes)
    file.seek(0)
    if sha256(head).hexdigest() != progress.head_sha256 or file.seek(0, 2) < progress.offset:
        reason = f"is not the one that {path} is about: remove that to begin anew"
        raise InvalidInputError(FieldProblem("file", reason))
    file.seek(0)
    if progress.business_id != business_id:
        reason = f"was {progress.business_id} when the import began"
        raise InvalidInputError(FieldProblem("business", reason))
    if progress.refused_file != str(refused_file):
        reason = f"was {progress.refused_file} when the import began"
        raise InvalidInputError(FieldProblem("refused", reason))
