import com.google.protobuf.ByteString;
import io.grpc.ManagedChannel;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.netty.NettyChannelBuilder;
import io.kinetoscope.v1.ClassificationOptions;
import io.kinetoscope.v1.ClassifyVideoRequest;
import io.kinetoscope.v1.LabelScore;
import io.kinetoscope.v1.Video;
import io.kinetoscope.v1.VideoClassificationServiceGrpc;
import io.kinetoscope.v1.VideoClassificationServiceGrpc.VideoClassificationServiceBlockingStub;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.StringJoiner;
import java.util.concurrent.TimeUnit;

/**
 * Classifies videos on a Kinetoscope server. One line of JSON a video: {"video", "labels": [{"label", "score"}]}.
 *
 * <pre>java -cp ... Classify --server 127.0.0.1:50051 VIDEO...</pre>
 */
public final class Classify {
  private static final long TIMEOUT_SECONDS = 60;

  public static void main(String[] args) throws Exception {
    boolean named = args.length > 1 && args[0].equals("--server");
    String server = named ? args[1] : "127.0.0.1:50051";
    ManagedChannel channel = NettyChannelBuilder.forTarget(server).usePlaintext().build();
    try {
      VideoClassificationServiceBlockingStub client = VideoClassificationServiceGrpc.newBlockingStub(channel);
      for (String video : Arrays.asList(args).subList(named ? 2 : 0, args.length)) {
        System.out.println(classify(client, video));
      }
    } catch (StatusRuntimeException error) {
      Status status = error.getStatus();
      System.err.println(status.getCode() + ": " + status.getDescription());
      System.exit(1);
    } finally {
      channel.shutdown().awaitTermination(5, TimeUnit.SECONDS);
    }
  }

  private static String classify(VideoClassificationServiceBlockingStub client, String video) throws IOException {
    ClassifyVideoRequest request = ClassifyVideoRequest.newBuilder()
        .setVideo(Video.newBuilder().setContent(ByteString.copyFrom(Files.readAllBytes(Path.of(video)))))
        .setOptions(ClassificationOptions.newBuilder().setTopK(5))
        .build();
    StringJoiner labels = new StringJoiner(", ");
    for (LabelScore label : client.withDeadlineAfter(TIMEOUT_SECONDS, TimeUnit.SECONDS)
        .classifyVideo(request).getClassification().getLabelsList()) {
      labels.add(String.format("{\"label\": %s, \"score\": %s}", quoted(label.getLabel()), label.getScore()));
    }
    return String.format("{\"video\": %s, \"labels\": [%s]}", quoted(video), labels);
  }

  private static String quoted(String text) {
    return '"' + text.replace("\\", "\\\\").replace("\"", "\\\"") + '"';
  }
}
