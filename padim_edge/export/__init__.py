"""Export: from a torchvision backbone to embedding.onnx. The only place that imports torch.

The way: `backbone` builds the truncated network with its weights, `channels` chooses among its
channels, `onnx` traces it, drops what nobody chose and assembles the graph, and `validate`
compares the graph with the network in torch before a file appears under its name.
"""
