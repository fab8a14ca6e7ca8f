"""The embedded stack: Apache Kafka, PostgreSQL and the five services as processes of one machine.

Needs Linux, and the wheels of the `local` extra for the servers that are not configured elsewhere.
"""

from deploy.local.component import Component, State
from deploy.local.errors import LocalStackError
from deploy.local.stack import LocalStack, StackOptions

__all__ = ["Component", "LocalStack", "LocalStackError", "StackOptions", "State"]
