"""Tables, figures and pages of replications, and the sessions that write or compare them."""

from kdlib.errors import needs

needs("suite", "jinja2", "markdown_it", "markupsafe", "pandas", "tabulate")
needs("figures", "matplotlib")

from kdlib.report.sessions import Replication, check, record, replicate  # noqa: E402 - after the check of its packages

__all__ = ["Replication", "check", "record", "replicate"]
