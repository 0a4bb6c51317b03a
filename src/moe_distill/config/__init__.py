"""Every key of params.yaml and of a profile: type, range, meaning; both files read and checked."""
