"""The teacher runs once: forward passes become records of its distribution and its states."""
