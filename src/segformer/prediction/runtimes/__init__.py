"""What runs a model: PyTorch, OpenVINO or ONNX Runtime. Pixels in, logits out."""
