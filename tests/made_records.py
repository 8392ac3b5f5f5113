"""Records made up for tests of figures: an accuracy, and an entropy, for each arm and seed."""

from kdlib.report.evidence import Record


def record(arm, seed, accuracy):
    return Record("full", seed, f"{arm}{seed}", {arm: "final"}, "CIFAR-10", {"data": "d", "config": {"train_pictures": 50_000}},
                  {"final": {"accuracy": accuracy, "entropy": 1 - accuracy}}, [], {}, "")


def records_of(arms, seeds=2):
    """Every arm at an accuracy of its own; the teacher has seed 0 only."""
    return [record(arm, seed, 0.5 + 0.004 * place + 0.002 * seed) for place, arm in enumerate(arms)
            for seed in range(1 if arm == "teacher" else seeds)]
