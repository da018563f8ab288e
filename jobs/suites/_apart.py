"""A part of a suite in a process of its own, where memory, start-up or a second core are what is measured."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any


def start(function: Callable[..., Any], *arguments: object) -> subprocess.Popen[str]:
    """Begin ``function``, one of a module's own, with arguments that JSON knows; ``result`` waits for its end."""
    code = (
        "import json, sys\n"
        f"from {function.__module__} import {function.__name__} as function\n"
        "print(json.dumps(function(*json.loads(sys.argv[1]))))"
    )
    command = [sys.executable, "-c", code, json.dumps(arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def result(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What the function returned; raises CalledProcessError if it raised."""
    out, _ = process.communicate()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args, out)
    return dict(json.loads(out.splitlines()[-1]))
