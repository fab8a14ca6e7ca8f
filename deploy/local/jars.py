"""Apache Kafka's jars from Maven Central, in a folder of the user's cache that all checkouts share.

The download runs in a process of its own (`SCRIPT`), which can be killed at any time: the folder appears whole or not
at all, and of several at once one downloads while the others wait.
"""

import fcntl
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path

from deploy.local.errors import LocalStackError

KAFKA_VERSION = "4.4.0"
COORDINATES = f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}+org.slf4j:slf4j-simple:1.7.36"
"""slf4j-simple: with a log4j binding the resolver picks kafka-clients 3.9.1, and the broker dies."""

SCRIPT = f"import sys; from {__name__} import main; sys.exit(main())"
"""What a Python runs, with the folder as its argument, to download."""


def cache_folder() -> Path:
    """Return where the jars are, or shall be."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if base.startswith("/") else Path.home() / ".cache"
    return root / "paperlane" / f"kafka-{KAFKA_VERSION}"


def download(folder: Path) -> None:
    """Fill the folder, unless another process does so first.

    Raises
    ------
    LocalStackError
        If a jar cannot be had.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}-") as draft:
            _resolve(Path(draft)).rename(folder)


def _resolve(draft: Path) -> Path:
    """Download into a draft folder; return the folder in it that has just the jars."""
    from jgo.env import EnvironmentBuilder, LinkStrategy  # noqa: PLC0415 - of an extra; missing is reported by kafka.py
    from jgo.maven import MavenContext  # noqa: PLC0415 - the same

    builder = EnvironmentBuilder(
        context=MavenContext(repo_cache=draft / "m2"), cache_dir=draft / "env", link_strategy=LinkStrategy.COPY
    )
    try:
        jars = builder.from_endpoint(endpoint=COORDINATES).all_jars
    except Exception as error:
        raise LocalStackError(
            f"cannot download Apache Kafka {KAFKA_VERSION} from Maven Central ({error}): it is needed once, "
            "so connect to the network, or set KAFKA_BOOTSTRAP_SERVERS to a running Kafka"
        ) from error
    (draft / "jars").mkdir()
    for jar in jars:
        shutil.move(jar, draft / "jars")
    return draft / "jars"


def main() -> int:
    """Download into the folder named on the command line; errors are one line."""
    logging.disable(logging.CRITICAL)  # jgo logs each attempt; what counts is in the error
    try:
        download(Path(sys.argv[1]))
    except (LocalStackError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0
