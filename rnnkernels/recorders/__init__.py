"""How layers meet what records programs: torch.fx, Dynamo, TorchScript and the ONNX exporter."""
