"""Judging text that a model wrote, safely. Stands below the tasks."""
