"""Exports: a Run's net as a file other runtimes read, never written before it answers as its source does."""
