"""Leaves that any package may use: whole files, checksummed JSON, device and precision, signals, disk space."""
