"""Where a command logs to."""

import pytest
import structlog
from structlog.testing import capture_logs

from worker.log import log_to_stderr


def test_a_command_logs_beside_what_it_prints_also_after_a_captured_log(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = structlog.get_config()
    structlog.reset_defaults()
    with capture_logs():
        pass

    log_to_stderr()
    structlog.get_logger().warning("told")
    structlog.configure(**before)

    said = capsys.readouterr()
    assert (said.out, "told" in said.err) == ("", True)
