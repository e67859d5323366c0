"""From a graph to a file that a runtime serves: ONNX export, its proof against the graph, and its latency."""
