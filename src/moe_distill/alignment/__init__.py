"""From text to windows: token bytes, common byte boundaries, aligned positions, the vocabulary map."""
