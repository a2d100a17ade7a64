// Classify classifies videos on a Kinetoscope server. One line of JSON a video: {"video", "labels": [{"label", "score"}]}.
//
//	protoc -I ../../proto --go_out=MODULES --go-grpc_out=MODULES kinetoscope/v1/kinetoscope.proto
//	go run classify.go -server 127.0.0.1:50051 VIDEO...
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	api "kinetoscope.v1/kinetoscope"
)

// codec is what gRPC itself uses since 1.37; older ones, as Debian has them, don't know today's generated messages.
type codec struct{}

func (codec) Marshal(message interface{}) ([]byte, error) {
	return proto.Marshal(message.(proto.Message))
}

func (codec) Unmarshal(data []byte, message interface{}) error {
	return proto.Unmarshal(data, message.(proto.Message))
}

func (codec) Name() string { return "proto" }

type label struct {
	Label string  `json:"label"`
	Score float32 `json:"score"`
}

type answer struct {
	Video  string  `json:"video"`
	Labels []label `json:"labels"`
}

func main() {
	server := flag.String("server", "127.0.0.1:50051", "address of the server")
	topK := flag.Uint("top-k", 5, "labels of each video")
	timeout := flag.Duration("timeout", time.Minute, "for each video")
	flag.Parse()
	log.SetFlags(0)
	connection, err := grpc.Dial(*server, grpc.WithInsecure(), grpc.WithDefaultCallOptions(grpc.ForceCodec(codec{})))
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	client := api.NewVideoClassificationServiceClient(connection)
	for _, video := range flag.Args() {
		if err := classify(client, video, uint32(*topK), *timeout); err != nil {
			log.Fatalf("%s: %s", video, explain(err))
		}
	}
}

func classify(client api.VideoClassificationServiceClient, video string, topK uint32, timeout time.Duration) error {
	content, err := os.ReadFile(video)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	response, err := client.ClassifyVideo(ctx, &api.ClassifyVideoRequest{
		Video:   &api.Video{Source: &api.Video_Content{Content: content}},
		Options: &api.ClassificationOptions{TopK: &topK},
	})
	if err != nil {
		return err
	}
	result := answer{Video: video}
	for _, found := range response.Classification.Labels {
		result.Labels = append(result.Labels, label{found.Label, found.Score})
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}

// explain adds the stable name of what went wrong, such as VIDEO_TOO_LARGE.
func explain(err error) string {
	failed, ok := status.FromError(err)
	if !ok {
		return err.Error()
	}
	for _, detail := range failed.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			return fmt.Sprintf("%s (%s): %s", failed.Code(), info.Reason, failed.Message())
		}
	}
	return err.Error()
}
