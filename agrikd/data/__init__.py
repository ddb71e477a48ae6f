"""Photos and their labels: the manifest, splits, views and the loader."""
