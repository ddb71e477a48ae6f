"""Nets behind one face: images in [0, 1] in, logits and features out."""
