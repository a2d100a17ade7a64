"""Calls a server by tritonclient.http, for check-http.sh: ADDRESS VIDEO."""

import pathlib
import sys

import numpy
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

MODEL = "camera-motion"


def main():
    address, video = sys.argv[1], pathlib.Path(sys.argv[2]).read_bytes()
    client = triton.InferenceServerClient(address)
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(MODEL)
    assert not client.is_model_ready("none")
    assert client.get_server_metadata()["name"] == "kinetoscope"
    assert [tensor["name"] for tensor in client.get_model_metadata(MODEL)["inputs"]] == ["VIDEO", "CLIPS"]
    frames, size = client.get_model_config(MODEL)["input"][1]["dims"][:2]
    assert client.get_model_repository_index()[0]["state"] == "READY"

    videos = triton.InferInput("VIDEO", [1], "BYTES").set_data_from_numpy(numpy.array([video], dtype=object))
    scores = [of_video(client, videos, binary) for binary in (True, False)]
    assert numpy.array_equal(*scores) and abs(scores[0].sum() - 1) < 1e-3, scores

    clips = numpy.full((2, frames, size, size, 3), 7, dtype=numpy.uint8)
    tensor = triton.InferInput("CLIPS", list(clips.shape), "UINT8")
    results = [client.infer(MODEL, [tensor.set_data_from_numpy(clips, binary)]) for binary in (True, False)]
    assert numpy.array_equal(*[result.as_numpy("PROBABILITIES") for result in results])

    assert client.get_inference_statistics(MODEL)["model_stats"][0]["inference_count"] > 0
    client.load_model(MODEL)
    try:
        client.unload_model(MODEL)
        raise SystemExit("the last model was unloaded")
    except InferenceServerException as error:
        assert "no model would be left" in str(error)
    print("tritonclient.http works")


def of_video(client, videos, binary):
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("PROBABILITIES", "EMBEDDING")]
    result = client.infer(MODEL, [videos], outputs=outputs, request_id="7", priority=1, timeout=60_000_000)
    assert result.get_response()["id"] == "7" and result.as_numpy("EMBEDDING").ndim == 2
    return result.as_numpy("PROBABILITIES")


main()
