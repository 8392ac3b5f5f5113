"""Tables, figures and pages of replications, and the sessions that write or compare them."""

from kdlib.report.recording import record
from kdlib.report.sessions import Replication, check, replicate

__all__ = ["Replication", "check", "record", "replicate"]
