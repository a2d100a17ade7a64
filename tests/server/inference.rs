//! The Open Inference Protocol answers as Triton's and KServe's clients expect.

use std::collections::HashMap;

use kinetoscope::engine::Engine;
use kinetoscope::metrics::Metrics;
use kinetoscope::model::builtin;
use kinetoscope::oip::grpc_inference_service_client::GrpcInferenceServiceClient;
use kinetoscope::oip::infer_parameter::ParameterChoice;
use kinetoscope::oip::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use kinetoscope::oip::{self, InferParameter, InferTensorContents, ModelInferRequest};
use kinetoscope::server::ServeOptions;
use kinetoscope::video::Limits;
use tonic::Code;
use tonic::transport::Channel;

use crate::media::Media;
use crate::support::{Server, engine_config, limits, reason, request};

pub(crate) type Client = GrpcInferenceServiceClient<Channel>;

const MODEL: &str = "camera-motion";

pub(crate) async fn client(server: &Server) -> Client {
    Client::new(server.channel().await).max_encoding_message_size(usize::MAX)
}

/// A request about encoded videos, their lengths before them.
pub(crate) fn videos(id: &str, videos: &[&[u8]]) -> ModelInferRequest {
    let raw: Vec<u8> = videos.iter().flat_map(|video| [&(video.len() as u32).to_le_bytes(), *video].concat()).collect();
    let tensor = InferInputTensor {
        name: "VIDEO".to_owned(),
        datatype: "BYTES".to_owned(),
        shape: vec![videos.len() as i64, 1],
        ..Default::default()
    };
    ModelInferRequest {
        model_name: MODEL.to_owned(),
        id: id.to_owned(),
        inputs: vec![tensor],
        raw_input_contents: vec![raw.into()],
        ..Default::default()
    }
}

fn floats(raw: &[u8]) -> Vec<f32> {
    raw.chunks_exact(4).map(|value| f32::from_le_bytes(value.try_into().unwrap())).collect()
}

fn video(media: &Media) -> Vec<u8> {
    let args = "-f lavfi -i testsrc2=size=160x120:rate=25 -t 1 -pix_fmt yuv420p";
    std::fs::read(media.make("video.mp4", args)).unwrap()
}

#[tokio::test]
async fn encoded_videos_get_the_scores_of_classify_video() {
    let media = Media::new();
    let server = Server::start().await;
    let video = video(&media);
    let response = client(&server).await.model_infer(videos("a", &[&video, &video])).await.unwrap().into_inner();
    assert_eq!((response.id.as_str(), response.model_name.as_str()), ("a", MODEL));
    let output = &response.outputs[0];
    assert_eq!(
        (output.name.as_str(), output.datatype.as_str(), &output.shape[..]),
        ("PROBABILITIES", "FP32", &[2, 10][..])
    );
    assert!(output.contents.is_none(), "values are in raw_output_contents");
    let scores = floats(&response.raw_output_contents[0]);
    assert_eq!(scores[..10], scores[10..]);

    let answer = server.client().await.classify_video(request(video)).await.unwrap().into_inner();
    for label in answer.classification.unwrap().labels {
        assert_eq!(scores[label.index as usize], label.score);
    }
}

#[tokio::test]
async fn clips_of_pixels_and_of_normalised_values_agree() {
    let engine = Engine::start(builtin::model().unwrap(), engine_config(), &Metrics::default()).unwrap();
    let limits = Limits { max_bytes: 16 << 20, ..limits() };
    let server = Server::with_models(vec![engine], limits, ServeOptions::default()).await;
    let rgb: Vec<u8> = (0..2 * 16 * 112 * 112 * 3).map(|index: usize| (index * 31 % 251) as u8).collect();
    let table = kinetoscope::model::builtin::spec().preprocessing.lookup_table();
    let len = 16 * 112 * 112;
    let normalised: Vec<f32> = (0..2)
        .flat_map(|clip| (0..3).flat_map(move |c| (0..len).map(move |i| (clip, c, i))))
        .map(|(clip, c, i): (usize, usize, usize)| table[c][usize::from(rgb[(clip * len + i) * 3 + c])])
        .collect();
    let tensor = |datatype: &str, shape: [i64; 5], contents| InferInputTensor {
        name: "CLIPS".to_owned(),
        datatype: datatype.to_owned(),
        shape: shape.into(),
        contents,
        ..Default::default()
    };
    let request = |tensor, raw: Vec<bytes::Bytes>| ModelInferRequest {
        model_name: MODEL.to_owned(),
        inputs: vec![tensor],
        raw_input_contents: raw,
        outputs: ["PROBABILITIES", "EMBEDDING"]
            .map(|name| InferRequestedOutputTensor { name: name.to_owned(), ..Default::default() })
            .into(),
        ..Default::default()
    };
    let values = InferTensorContents { fp32_contents: normalised.clone(), ..Default::default() };
    let raw: bytes::Bytes = normalised.iter().flat_map(|value| value.to_le_bytes()).collect();
    let requests = [
        request(tensor("UINT8", [2, 16, 112, 112, 3], None), vec![rgb.into()]),
        request(tensor("FP32", [2, 3, 16, 112, 112], None), vec![raw]),
        request(tensor("FP32", [2, 3, 16, 112, 112], Some(values)), Vec::new()),
    ];
    let mut client = client(&server).await;
    let mut answers = Vec::new();
    for request in requests {
        let response = client.model_infer(request).await.unwrap().into_inner();
        assert_eq!(response.outputs[1].shape[0], 2);
        answers.push(response.raw_output_contents.iter().map(|raw| floats(raw)).collect::<Vec<_>>());
    }
    assert!(answers[0][0][..10] != answers[0][0][10..], "the clips differ");
    for answer in &answers[1..] {
        for (expected, actual) in answers[0].iter().flatten().zip(answer.iter().flatten()) {
            assert!((expected - actual).abs() <= 1e-6 * expected.abs().max(1.0), "{expected} and {actual}");
        }
    }
}

#[tokio::test]
async fn the_classification_parameter_answers_with_text() {
    let media = Media::new();
    let server = Server::start().await;
    let k = InferParameter { parameter_choice: Some(ParameterChoice::Int64Param(3)) };
    let output = InferRequestedOutputTensor {
        name: "PROBABILITIES".to_owned(),
        parameters: HashMap::from([("classification".to_owned(), k)]),
    };
    let request = ModelInferRequest { outputs: vec![output], ..videos("", &[&video(&media)]) };
    let response = client(&server).await.model_infer(request).await.unwrap().into_inner();
    assert_eq!((response.outputs[0].datatype.as_str(), &response.outputs[0].shape[..]), ("BYTES", &[1, 3][..]));
    let raw = &response.raw_output_contents[0];
    let first = std::str::from_utf8(&raw[4..][..u32::from_le_bytes(raw[..4].try_into().unwrap()) as usize]).unwrap();
    let parts: Vec<&str> = first.split(':').collect();
    let labels = kinetoscope::model::builtin::spec().labels;
    assert_eq!(parts[2], labels[parts[1].parse::<usize>().unwrap()], "score:index:label, not {first}");
}

#[tokio::test]
async fn a_stream_answers_by_id_and_goes_on_after_an_error() {
    let media = Media::new();
    let server = Server::start().await;
    let video = video(&media);
    let requests: Vec<_> =
        ["a", "bad", "b"].map(|id| if id == "bad" { videos(id, &[b"no video"]) } else { videos(id, &[&video]) }).into();
    let mut answers =
        client(&server).await.model_stream_infer(tokio_stream::iter(requests)).await.unwrap().into_inner();
    let mut ids = Vec::new();
    while let Some(answer) = answers.message().await.unwrap() {
        let response = answer.infer_response.unwrap();
        assert_eq!(answer.error_message.is_empty(), response.id != "bad", "{}", answer.error_message);
        ids.push(response.id);
    }
    ids.sort();
    assert_eq!(ids, ["a", "b", "bad"]);
}

#[tokio::test]
async fn models_are_described() {
    let media = Media::new();
    let server = Server::start().await;
    let mut client = client(&server).await;
    assert!(client.server_live(oip::ServerLiveRequest {}).await.unwrap().into_inner().live);
    assert!(client.server_ready(oip::ServerReadyRequest {}).await.unwrap().into_inner().ready);
    let model = |name: &str| oip::ModelReadyRequest { name: name.to_owned(), version: String::new() };
    assert!(client.model_ready(model(MODEL)).await.unwrap().into_inner().ready);
    assert!(!client.model_ready(model("elsewhere")).await.unwrap().into_inner().ready);
    assert_eq!(client.server_metadata(oip::ServerMetadataRequest {}).await.unwrap().into_inner().name, "kinetoscope");

    let name = MODEL.to_owned();
    let metadata = oip::ModelMetadataRequest { name: name.clone(), version: String::new() };
    let metadata = client.model_metadata(metadata).await.unwrap().into_inner();
    let inputs: Vec<_> = metadata.inputs.iter().map(|input| (input.name.as_str(), &input.shape[..])).collect();
    assert_eq!(inputs, [("VIDEO", &[-1, 1][..]), ("CLIPS", &[-1, 16, 112, 112, 3][..])]);
    let config = oip::ModelConfigRequest { name: name.clone(), version: String::new() };
    let config = client.model_config(config).await.unwrap().into_inner().config.unwrap();
    assert_eq!((config.max_batch_size, config.output[0].dims[0]), (8, 10));

    client.model_infer(videos("", &[&video(&media)])).await.unwrap();
    let statistics = oip::ModelStatisticsRequest { name, version: String::new() };
    let statistics = client.model_statistics(statistics).await.unwrap().into_inner().model_stats.remove(0);
    assert!(statistics.inference_count == 2 && statistics.last_inference > 0, "{statistics:?}");
    let index = oip::RepositoryIndexRequest::default();
    assert_eq!(client.repository_index(index).await.unwrap().into_inner().models[0].state, "READY");
}

#[tokio::test]
async fn what_is_not_supported_is_refused_by_name() {
    let server = Server::start().await;
    let mut client = client(&server).await;
    let mut refusal = async |request: ModelInferRequest| {
        let status = client.model_infer(request).await.unwrap_err();
        let (code, reason) = reason(&status);
        (code, reason, status.message().to_owned())
    };
    let mut shared = videos("", &[b"x"]);
    let region = InferParameter { parameter_choice: Some(ParameterChoice::StringParam("region".to_owned())) };
    shared.inputs[0].parameters.insert("shared_memory_region".to_owned(), region);
    let (code, reason, message) = refusal(shared).await;
    assert_eq!((code, reason.as_str()), (Code::InvalidArgument, "INVALID_TENSOR"));
    assert!(message.contains("shared_memory_region"), "{message}");

    let (code, ..) = refusal(ModelInferRequest { model_name: "elsewhere".to_owned(), ..videos("", &[b"x"]) }).await;
    assert_eq!(code, Code::NotFound);
    let (code, reason, _) = refusal(videos("", &[b"no video"])).await;
    assert_eq!((code, reason.as_str()), (Code::InvalidArgument, "NOT_A_VIDEO"));
    let (code, reason, _) = refusal(ModelInferRequest { model_name: MODEL.to_owned(), ..Default::default() }).await;
    assert_eq!((code, reason.as_str()), (Code::InvalidArgument, "INVALID_TENSOR"));
}

/// Sends bytes as they are.
#[derive(Debug, Clone, Default)]
struct Raw;

impl tonic::codec::Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl tonic::codec::Encoder for Raw {
    type Item = Vec<u8>;
    type Error = tonic::Status;

    fn encode(&mut self, bytes: Vec<u8>, out: &mut tonic::codec::EncodeBuf<'_>) -> Result<(), tonic::Status> {
        bytes::BufMut::put_slice(out, &bytes);
        Ok(())
    }
}

impl tonic::codec::Decoder for Raw {
    type Item = ();
    type Error = tonic::Status;

    fn decode(&mut self, _: &mut tonic::codec::DecodeBuf<'_>) -> Result<Option<()>, tonic::Status> {
        Ok(Some(()))
    }
}

#[tokio::test]
async fn a_request_that_cannot_be_read_is_the_callers_fault() {
    let server = Server::start().await;
    let mut client = tonic::client::Grpc::new(server.channel().await);
    // Field 1 as text of two bytes that are no UTF-8; a length beyond the end.
    let (no_text, no_protobuf) = (vec![0x0a, 2, 0xff, 0xfe], vec![0x0a, 200, 1]);
    for (path, messages) in [
        ("/kinetoscope.v1.VideoClassificationService/ClassifyVideo", Vec::new()),
        ("/kinetoscope.v1.VideoClassificationService/ClassifyVideo", vec![no_protobuf.clone()]),
        ("/kinetoscope.v1.VideoClassificationService/ClassifyVideos", vec![no_protobuf.clone()]),
        ("/inference.GRPCInferenceService/ModelInfer", vec![no_text.clone()]),
        ("/inference.GRPCInferenceService/ModelStreamInfer", vec![no_text.clone()]),
        ("/grpc.health.v1.Health/Check", vec![no_text]),
        ("/grpc.health.v1.Health/Watch", Vec::new()),
    ] {
        client.ready().await.unwrap();
        let request = tonic::Request::new(tokio_stream::iter(messages));
        let status = match client.streaming(request, path.parse().unwrap(), Raw).await {
            Ok(answers) => answers.into_inner().message().await.unwrap_err(),
            Err(status) => status,
        };
        assert_eq!(reason(&status), (Code::InvalidArgument, "MALFORMED_REQUEST".to_owned()), "{path}: {status}");
    }
    server.assert_nothing_left_behind().await;
}

#[tokio::test]
async fn what_callers_send_is_cut_where_it_is_quoted() {
    let server = Server::start().await;
    let mut client = client(&server).await;
    let long = "\u{1F4A9}".repeat(20_000);
    let mut requests = [videos("", &[b"x"]), videos("", &[b"x"]), videos("", &[b"x"]), videos("", &[b"x"])];
    requests[0].inputs[0].name = long.clone();
    requests[1].inputs[0].datatype = long.clone();
    requests[2].inputs[0].shape = vec![i64::MIN; 20_000];
    requests[3].parameters.insert(long, InferParameter::default());
    for request in requests {
        let status = client.model_infer(request).await.unwrap_err();
        assert_eq!(reason(&status), (Code::InvalidArgument, "INVALID_TENSOR".to_owned()));
        assert!(status.message().len() + status.details().len() < 2000, "{status:?}");
    }
}
