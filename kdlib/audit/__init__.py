"""A second derivation of everything that is committed: records, tables, verdicts, bands, README's table.

It shares no code with what wrote them (`kdlib.report`, `claims`, `judging`, `verdicts`, `intervals`, `recorded`): the rule
is written anew from its definition, so that an error in one of the two shows. `python -m kdlib.audit` runs it.
"""

from kdlib.audit.audit import audit
from kdlib.audit.faults import Fault

__all__ = ["Fault", "audit"]
