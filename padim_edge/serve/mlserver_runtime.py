"""A detector in MLServer: the class that ``model-settings.json`` names. Imported there alone."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from padim_edge.detect.detector import Detector
from padim_edge.errors import MissingDependencyError, PadimEdgeError

try:
    from mlserver import MLModel
    from mlserver.codecs import NumpyCodec
    from mlserver.errors import InferenceError
    from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput
    from mlserver.utils import get_model_uri
except ImportError as error:
    raise MissingDependencyError("this runtime", "mlserver", "mlserver") from error

import numpy as np


class PadimEdgeModel(MLModel):  # type: ignore[misc]  # whose types are not known here
    """A padim.onnx in the engine that ``auto`` takes, one batch at a time."""

    async def load(self) -> bool:
        """Open the file that the settings name."""
        self._detector = Detector(await get_model_uri(self._settings))
        self._engine = ThreadPoolExecutor(1, thread_name_prefix="padim-edge")
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Judge prepared images, uint8 [N, H, W, 3]."""
        if len(payload.inputs) != 1 or payload.inputs[0].name != "image":
            raise InferenceError("one input is needed: 'image'")
        try:
            images = NumpyCodec.decode_input(payload.inputs[0])
            loop = asyncio.get_running_loop()
            results = await loop.run_in_executor(self._engine, self._detector.judge, images)
        except (PadimEdgeError, ValueError) as error:
            raise InferenceError(str(error)) from error
        tensors = {
            "score": np.array([one.score for one in results], np.float32),
            "score_map": np.stack([one.score_map for one in results]),
        }
        wanted = [one.name for one in payload.outputs or ()] or list(tensors)
        if missing := [name for name in wanted if name not in tensors]:
            raise InferenceError(f"there is no output {missing[0]!r}: score and score_map are")
        return InferenceResponse(
            model_name=self.name,
            model_version=self.version,
            # Not by the codec, which says [N, 1] of what the graph says is [N].
            outputs=[
                ResponseOutput(
                    name=name,
                    datatype="FP32",
                    shape=list(tensors[name].shape),
                    data=tensors[name].ravel().tolist(),
                )
                for name in wanted
            ],
        )

    async def unload(self) -> bool:
        """Close it."""
        self._engine.shutdown()
        self._detector.close()
        return True
