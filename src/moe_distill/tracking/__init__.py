"""Curves as files, and MLflow filled in from them."""
