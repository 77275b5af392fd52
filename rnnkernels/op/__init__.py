"""The op of one layer: its schema, shapes, autograd, vmap and autocast; no arithmetic."""
