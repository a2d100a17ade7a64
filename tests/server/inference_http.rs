//! The Open Inference Protocol over HTTP.

use std::time::Duration;

use base64::Engine;
use kinetoscope::server::ServeOptions;
use serde_json::{Value, json};

use crate::http_client::{Answer, get, post, send};
use crate::inference;
use crate::media::Media;
use crate::support::{Server, limits, slow_engine};

const INFER: &str = "/v2/models/camera-motion/infer";

fn video(media: &Media) -> Vec<u8> {
    let args = "-f lavfi -i testsrc2=size=64x64:rate=25 -t 1 -pix_fmt yuv420p";
    std::fs::read(media.make("video.mp4", args)).unwrap()
}

/// Sends JSON with binary data behind it.
async fn infer(server: &Server, json: Value, tensors: &[u8]) -> Answer {
    let json = json.to_string();
    let request = post(server, INFER).header("inference-header-content-length", json.len());
    send(request, [json.as_bytes(), tensors].concat()).await
}

fn floats(raw: &[u8]) -> Vec<f32> {
    raw.chunks_exact(4).map(|value| f32::from_le_bytes(value.try_into().unwrap())).collect()
}

#[tokio::test]
async fn a_video_gives_the_scores_that_it_gives_over_grpc() {
    let media = Media::new();
    let server = Server::start().await;
    let video = video(&media);
    let mut client = inference::Client::new(server.channel().await);
    let expected = client.model_infer(inference::videos("it", &[&video])).await.unwrap().into_inner();
    let expected = floats(&expected.raw_output_contents[0]);

    let element = [&(video.len() as u32).to_le_bytes()[..], &video].concat();
    let input =
        json!({"name": "VIDEO", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": element.len()}});
    let output = json!({"name": "PROBABILITIES", "parameters": {"binary_data": true}});
    let answer = infer(&server, json!({"id": "7", "inputs": [input], "outputs": [output]}), &element).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let json_length: usize = answer.header("inference-header-content-length").parse().unwrap();
    let (head, tensors) = answer.body.split_at(json_length);
    let head: Value = serde_json::from_slice(head).unwrap();
    assert_eq!(
        (&head["id"], &head["outputs"][0]["parameters"]["binary_data_size"]),
        (&json!("7"), &json!(tensors.len()))
    );
    assert_eq!(floats(tensors), expected);

    let data = base64::engine::general_purpose::STANDARD.encode(&video);
    let input = json!({"name": "VIDEO", "datatype": "BYTES", "shape": [1], "data": [data], "parameters": {"content_type": "base64"}});
    let outputs = json!([{"name": "PROBABILITIES"}, {"name": "PROBABILITIES", "parameters": {"classification": 1}}]);
    let answer = send(post(&server, INFER), json!({"inputs": [input], "outputs": outputs}).to_string()).await;
    let outputs = &answer.json()["outputs"];
    let given: Vec<f32> =
        outputs[0]["data"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap() as f32).collect();
    assert_eq!(given, expected);
    assert_eq!(outputs[1]["data"][0].as_str().unwrap().split(':').count(), 3, "score, index and label");
    server.assert_nothing_left_behind().await;
}

#[tokio::test]
async fn clips_may_be_nested_arrays_of_json() {
    let server = Server::start().await;
    let row: Vec<Vec<u8>> = vec![vec![9, 8, 7]; 112];
    let clip = vec![vec![row; 112]; 16];
    let input = json!({"name": "CLIPS", "datatype": "UINT8", "shape": [1, 16, 112, 112, 3], "data": [clip]});
    let answer = send(post(&server, INFER), json!({"inputs": [input]}).to_string()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["outputs"][0]["shape"][0], 1);
}

#[tokio::test]
async fn the_server_and_its_models_are_described_in_the_protocol_s_words() {
    let server = Server::start().await;
    assert_eq!(get(&server, "/v2").await.json()["name"], "kinetoscope");
    for path in ["/v2/health/live", "/v2/health/ready", "/v2/models/camera-motion/ready"] {
        assert_eq!(get(&server, path).await.status, 200, "{path}");
    }
    let metadata = get(&server, "/v2/models/camera-motion").await.json();
    let version = metadata["versions"][0].as_str().unwrap();
    assert_eq!((&metadata["inputs"][0]["name"], &metadata["inputs"][0]["shape"]), (&json!("VIDEO"), &json!([-1, 1])));
    let of_version = get(&server, &format!("/v2/models/camera-motion/versions/{version}")).await.json();
    assert_eq!(of_version, metadata);
    let config = get(&server, "/v2/models/camera-motion/config").await.json();
    assert_eq!((&config["max_batch_size"], &config["input"][0]["data_type"]), (&json!(8), &json!("TYPE_STRING")));
    for path in ["/v2/models/stats", "/v2/models/camera-motion/stats"] {
        assert_eq!(get(&server, path).await.json()["model_stats"][0]["name"], "camera-motion", "{path}");
    }
    let index = send(post(&server, "/v2/repository/index"), "").await.json();
    assert_eq!((&index[0]["name"], &index[0]["state"]), (&json!("camera-motion"), &json!("READY")));
}

#[tokio::test]
async fn errors_are_texts_as_the_protocol_has_them() {
    let server = Server::with_models(vec![slow_engine(Duration::ZERO)], limits(), ServeOptions::default()).await;
    let input =
        |name: &str, data: Value| json!({"inputs": [{"name": name, "datatype": "BYTES", "shape": [1], "data": data}]});
    let infer = |body: Value| (post(&server, INFER), body.to_string());
    let load = || post(&server, "/v2/repository/models/camera-motion/load");
    for ((request, body), status, words) in [
        (infer(json!({"inputs": []})), 400, "the request has 0 inputs"),
        (infer(input("AUDIO", json!(["a"]))), 400, "there is no input"),
        (infer(input("VIDEO", json!(["no video"]))), 415, "not a video"),
        (infer(json!(3)), 400, "can't be read"),
        ((post(&server, "/v2/models/other/infer"), input("VIDEO", json!(["a"])).to_string()), 404, "no model"),
        ((load(), String::new()), 403, "may not load"),
        ((load().header("content-type", "text/plain"), String::new()), 415, "application/json"),
        ((load(), json!({"parameters": {"config": "{}"}}).to_string()), 400, "not supported"),
        ((post(&server, "/v2/repository/models/camera-motion/unload"), String::new()), 403, "may not load"),
    ] {
        let told = format!("{request:?} {body}");
        let answer = send(request, body).await;
        let message = answer.json()["error"].as_str().unwrap().to_owned();
        assert!(answer.status == status && message.contains(words), "{told}: {} {message}", answer.status);
    }
    assert_eq!(get(&server, "/v2/models/other/ready").await.status, 404);
    server.assert_nothing_left_behind().await;
}
