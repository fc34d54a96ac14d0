"""Commands log to stderr."""

import pytest
import structlog
from structlog.testing import capture_logs

from worker.log import log_to_stderr


def test_a_command_logs_to_stderr_also_after_a_captured_log(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = structlog.get_config()
    structlog.reset_defaults()
    with capture_logs():
        pass

    log_to_stderr()
    structlog.get_logger().warning("a warning")
    structlog.configure(**before)

    output = capsys.readouterr()
    assert (output.out, "a warning" in output.err) == ("", True)
