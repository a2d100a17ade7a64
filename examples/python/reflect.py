#!/usr/bin/env python3
"""Classifies videos with nothing but the server's address: its definitions come from server reflection, as grpcurl's do.

    pip install -r requirements.txt
    ./reflect.py --server 127.0.0.1:50051 VIDEO...
"""

import argparse
import json
import sys

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

SERVICE = "kinetoscope.v1.VideoClassificationService"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", nargs="+", metavar="VIDEO")
    parser.add_argument("--server", default="127.0.0.1:50051")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds a video")
    args = parser.parse_args()

    # Videos exceed the client's 4 MiB; the server has its own limit.
    with grpc.insecure_channel(args.server, options=[("grpc.max_send_message_length", -1)]) as channel:
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        method = pool.FindServiceByName(SERVICE).FindMethodByName("ClassifyVideo")
        request_class, answer_class = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
        call = channel.unary_unary(
            f"/{SERVICE}/{method.name}",
            request_serializer=request_class.SerializeToString,
            response_deserializer=answer_class.FromString,
        )
        for path in args.videos:
            with open(path, "rb") as file:
                request = request_class(video={"content": file.read()})
            try:
                answer = MessageToDict(call(request, timeout=args.timeout))
            except grpc.RpcError as error:
                sys.exit(f"{path}: {error.code().name}: {error.details()}")
            labels = [{"label": label["label"], "score": label["score"]} for label in answer["classification"]["labels"]]
            print(json.dumps({"video": path, "labels": labels}))


if __name__ == "__main__":
    main()
