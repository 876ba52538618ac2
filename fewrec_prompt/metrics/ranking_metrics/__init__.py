"""A folder that `evaluate.load` can load: it holds one script of the folder's own name."""
