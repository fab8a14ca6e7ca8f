"""Runs a service as `deploy.local` does, with a saboteur inside: `python -m tests.support.saboteur SERVICE PORT`."""

import os
import runpy
import sys
from pathlib import Path

from deploy.local.services import service_command
from tests.support.saboteur.orders import FOLDER
from tests.support.saboteur.strikes import Saboteur

if __name__ == "__main__":
    service, port = sys.argv[1:]
    Saboteur(Path(os.environ[FOLDER]) / service).install()
    command = service_command(service, int(port))
    module = command.index("-m") + 1
    sys.argv = list(command[module:])
    runpy.run_module(command[module], run_name="__main__", alter_sys=True)
