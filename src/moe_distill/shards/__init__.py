"""The on-disk format of windows, vocabulary map and teacher targets: safetensors files with an index of hashes."""
