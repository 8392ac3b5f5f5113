"""Records for tests of figures, with a made-up accuracy and entropy for each arm and seed."""

from kdlib.run.records import Record


def record(arm, seed, accuracy):
    return Record(
        "full",
        seed,
        f"{arm}{seed}",
        {arm: "final"},
        "CIFAR-10",
        {"data": "d", "config": {"train_pictures": 50_000}},
        {"final": {"accuracy": accuracy, "entropy": 1 - accuracy}},
        [],
        {},
        "",
    )


def records_of(arms, seeds=2):
    """Return records with another accuracy for every arm; the teacher has seed 0 only."""
    return [
        record(arm, seed, 0.5 + 0.004 * place + 0.002 * seed)
        for place, arm in enumerate(arms)
        for seed in range(1 if arm == "teacher" else seeds)
    ]
