#!/usr/bin/env python3
"""Classifies videos on a Kinetoscope server, one message a video or, with --stream, while they are uploaded.

    pip install -r requirements.txt
    python -m grpc_tools.protoc -I ../../proto --python_out=. --grpc_python_out=. kinetoscope/v1/kinetoscope.proto
    ./classify.py --server 127.0.0.1:50051 VIDEO...
"""

import argparse
import json
import sys

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from kinetoscope.v1 import kinetoscope_pb2 as api
from kinetoscope.v1 import kinetoscope_pb2_grpc as services

CHUNK = 256 * 1024


def upload(path, options):
    yield api.ClassifyVideoStreamRequest(options=options)
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            yield api.ClassifyVideoStreamRequest(chunk=chunk)


def classify_stream(client, path, options, timeout):
    for event in client.ClassifyVideoStream(upload(path, options), timeout=timeout):
        kind = event.WhichOneof("event")
        if kind == "clip":
            start = event.clip.start.ToTimedelta().total_seconds()
            print(f"{path}: at {start:.2f} s {event.clip.labels[0].label}", file=sys.stderr)
        elif kind == "classification":
            return event.classification
    raise RuntimeError("the stream ended without an answer")


def classify(client, path, options, timeout):
    with open(path, "rb") as file:
        video = api.Video(content=file.read())
    request = api.ClassifyVideoRequest(video=video, options=options)
    return client.ClassifyVideo(request, timeout=timeout).classification


def reason(error):
    """The stable name of what went wrong, such as VIDEO_TOO_LARGE; none if it was not the server that said it."""
    status = rpc_status.from_call(error)
    info = error_details_pb2.ErrorInfo()
    for detail in status.details if status else []:
        if detail.Unpack(info):
            return info.reason
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", nargs="+", metavar="VIDEO")
    parser.add_argument("--server", default="127.0.0.1:50051")
    parser.add_argument("--stream", action="store_true", help="upload in chunks and tell each clip's label on the way")
    parser.add_argument("--top-k", type=int, default=5)
    parser.add_argument("--timeout", type=float, default=60, help="seconds")
    args = parser.parse_args()

    failed = False
    # Videos exceed gRPC's usual limits on messages; the server has its own.
    limits = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(args.server, options=limits) as channel:
        client = services.VideoClassificationServiceStub(channel)
        options = api.ClassificationOptions(top_k=args.top_k)
        for path in args.videos:
            try:
                call = classify_stream if args.stream else classify
                answer = call(client, path, options, args.timeout)
            except grpc.RpcError as error:
                print(f"{path}: {error.code().name} ({reason(error)}): {error.details()}", file=sys.stderr)
                failed = True
                continue
            labels = [{"label": label.label, "score": label.score} for label in answer.labels]
            print(json.dumps({"video": path, "model": answer.model.name, "labels": labels, "partial": answer.partial}))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
