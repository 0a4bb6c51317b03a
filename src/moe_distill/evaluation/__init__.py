"""Measure what was learned: bits per byte, agreement with the teacher, calibration, and a report."""
