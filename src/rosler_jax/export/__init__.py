"""From a trained model file to what runs elsewhere: C, ONNX, TFLite, StableHLO."""
