"""From plain metrics (arm -> seed -> metric -> value) to outcomes of claims. Nothing here knows of training."""

from kdlib.errors import needs

needs("judge", "scipy")
