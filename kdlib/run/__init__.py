"""What is trained, where it is kept, and what is on record of it.

from kdlib.run import failures, prepare, records_of, train

session = prepare("ecg", "smoke", store=Path("runs"))
jobs = session.jobs()
summary = train(session, jobs)
records = records_of(session, jobs, summary)
"""

from kdlib.run.costs import costs
from kdlib.run.experiment import Arm, Compute, Experiment, Profile, Run, load_experiment, replications
from kdlib.run.records import Record, measured, read_records
from kdlib.run.session import Session, failures, prepare, records_of, train
from kdlib.run.store import FinishedRun, Result, Store

__all__ = [
    "Arm",
    "Compute",
    "Experiment",
    "FinishedRun",
    "Profile",
    "Record",
    "Result",
    "Run",
    "Session",
    "Store",
    "costs",
    "failures",
    "load_experiment",
    "measured",
    "prepare",
    "read_records",
    "records_of",
    "replications",
    "train",
]
