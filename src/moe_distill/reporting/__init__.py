"""What a person reads of a run: the report, its pictures and tables, and the model card."""
