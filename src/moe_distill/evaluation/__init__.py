"""Evaluate the students: bits per byte, agreement with the teacher, calibration."""
