"""The names that a runtime may rely on, in both files.

With i, j counting levels from coarse to fine:

    frame                 uint8 [N, h, w, 3] RGB       input instead of image: fit --frame-input
    image                 uint8 [N, H, W, 3] RGB       input of both files
    normalised            float32 [N, 3, H, W]         what the backbone itself takes
    features.<layer>      float32 [N, d, h, w]         selected maps: where a runtime cuts the graph
    embedding             float32 [N, d, h, w]         output of embedding.onnx
    features.whitened     float32 [N, d, h, w]         the only selected map of a whitened detector
    projection.<layer>    float32 [d, c, 1, 1]         of which it is made, of each pooled layer
    projection.offset     float32 [d]
    mean.i                float32 [1, d_i, h_i, w_i]
    whitening.i.j         [P_i, d_i, d_j], tree order  rows of level i, columns of level j <= i
    whitening.i.j.scale   float32 [P_i, d_i, 1]        int8 constants only
    smoothing.rows        float32 [H, h]
    smoothing.columns     float32 [w, W]
    roi                   bool [H, W]                  where it is judged: fit --roi only
    distance_map          float32 [N, h, w]            Mahalanobis distance, not squared
    score_map, score      float32 [N, H, W], [N]       outputs of padim.onnx
"""

from __future__ import annotations

FEATURES = "features."
NORMALISED = "normalised"
ROI = "roi"
OPSET = 18
# Readers as old as ONNX Runtime 1.14 and TensorRT 10 take this; the library's default is newer.
IR_VERSION = 8
