"""Layers, cells and functions with the manners of ``torch.nn``: checks, options, masks, layers on top of each other."""
