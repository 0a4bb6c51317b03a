"""Curves as TSV files, and MLflow runs that are filled in from them."""
