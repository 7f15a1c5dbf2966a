"""Detections on disk scored: LVIS AP, pairwise bias. Never imports torch."""
