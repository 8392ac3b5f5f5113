"""Tables, figures and pages of replications, and the sessions that write or compare them."""

from kdlib.errors import needs

needs("suite", "jinja2", "markdown_it", "markupsafe", "pandas", "tabulate")

# After the check of their packages:
from kdlib.report.recording import record  # noqa: E402
from kdlib.report.sessions import Replication, check, replicate  # noqa: E402

__all__ = ["Replication", "check", "record", "replicate"]
