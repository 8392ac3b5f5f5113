"""From plain metrics (arm -> seed -> metric -> value) to outcomes of claims. Nothing here knows of training."""
