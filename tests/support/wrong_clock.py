"""Runs a service on a host whose clock is wrong: `python -m tests.support.wrong_clock SECONDS SERVICE PORT`."""

import runpy
import sys
import time
from datetime import timedelta

from deploy.local.services import service_command
from shared import clock

if __name__ == "__main__":
    seconds, service, port = sys.argv[1:]
    right_now, right_time, jump = clock.now, time.time, timedelta(seconds=float(seconds))
    clock.now = lambda: right_now() + jump
    time.time = lambda: right_time() + jump.total_seconds()  # which Kafka's records carry
    command = service_command(service, int(port))
    module = command.index("-m") + 1
    sys.argv = list(command[module:])
    runpy.run_module(command[module], run_name="__main__", alter_sys=True)
