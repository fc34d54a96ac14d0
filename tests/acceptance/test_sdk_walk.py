"""The official SDK against everything real: API, workers and beat of a stack."""

import subprocess
import sys
from pathlib import Path

from worker.local.up import Stack

WALK = Path(__file__).with_name("sdk_walk.py")


def test_the_walk_with_the_official_sdk_ends_well(stack: Stack) -> None:
    walked = subprocess.run(
        [sys.executable, str(WALK), stack.api_url, stack.api_key],
        capture_output=True,
        text=True,
        check=False,
    )

    assert walked.returncode == 0, walked.stdout + walked.stderr
