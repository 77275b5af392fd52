"""For whole models and layers: convert, explain, quantize, run step by step, trace, load weights of Keras."""
