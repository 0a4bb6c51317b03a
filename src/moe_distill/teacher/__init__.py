"""Run the teacher once over its windows, and store its distribution and some of its states for each position."""
