"""Before anything is imported: no test may reach a network (TRL reports the use of its trainers)."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
