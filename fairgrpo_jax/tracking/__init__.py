"""Tracking of a run: ``metrics.jsonl``, the live display, and the seconds of each phase."""

from fairgrpo_jax.tracking.log import MetricsLog as MetricsLog, read_metrics as read_metrics, read_rows as read_rows
from fairgrpo_jax.tracking.phases import Phases as Phases
from fairgrpo_jax.tracking.progress import Progress as Progress
