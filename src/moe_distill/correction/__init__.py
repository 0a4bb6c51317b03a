"""A teacher that was not trained on such text, tuned lightly on the training text before it is captured."""
