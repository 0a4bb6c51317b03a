"""Every key of params.yaml and of a profile with type, range and meaning; both files are validated when read."""
