#!/usr/bin/env python3
"""Classifies videos on a Kinetoscope server with Triton's client, over the Open Inference Protocol.

    pip install -r requirements.txt
    ./oip.py --server 127.0.0.1:50051 VIDEO...
"""

import argparse
import json
import queue
import sys

import numpy
import tritonclient.grpc as triton


def video_input(path):
    with open(path, "rb") as file:
        tensor = triton.InferInput("VIDEO", [1, 1], "BYTES")
        tensor.set_data_from_numpy(numpy.array([[file.read()]], dtype=numpy.object_))
        return tensor


def labels(result):
    texts = [text.decode() for text in result.as_numpy("PROBABILITIES").reshape(-1)]
    parts = [text.split(":", 2) for text in texts]
    return [{"label": label, "score": float(score)} for score, _, label in parts]


def infer(client, model, paths, top_k):
    for path in paths:
        outputs = [triton.InferRequestedOutput("PROBABILITIES", class_count=top_k)]
        result = client.infer(model, [video_input(path)], outputs=outputs, request_id=path)
        yield path, labels(result)


def infer_stream(client, model, paths, top_k):
    answers = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    for path in paths:
        outputs = [triton.InferRequestedOutput("PROBABILITIES", class_count=top_k)]
        client.async_stream_infer(model, [video_input(path)], outputs=outputs, request_id=path)
    for _ in paths:
        result, error = answers.get(timeout=60)
        if error:
            raise error
        yield result.get_response().id, labels(result)
    client.stop_stream()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", nargs="+", metavar="VIDEO")
    parser.add_argument("--server", default="127.0.0.1:50051")
    parser.add_argument("--model", help="the server's first if absent")
    parser.add_argument("--stream", action="store_true", help="all videos over one stream")
    parser.add_argument("--top-k", type=int, default=5)
    args = parser.parse_args()

    with triton.InferenceServerClient(args.server) as client:
        if not client.is_server_ready():
            sys.exit("the server is not ready")
        model = args.model or client.get_model_repository_index().models[0].name
        call = infer_stream if args.stream else infer
        try:
            for path, best in call(client, model, args.videos, args.top_k):
                print(json.dumps({"video": path, "model": model, "labels": best}))
        except triton.InferenceServerException as error:
            sys.exit(f"{error.status()}: {error.message()}")


if __name__ == "__main__":
    main()
