"""Teacher and student: where they come from, and how a model folder is opened."""
