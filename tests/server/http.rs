//! The HTTP API: one video in each way and form, its errors, models, the page.

use std::time::Duration;

use bytes::Bytes;
use kinetoscope::server::{AllowedOrigin, ServeOptions};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tonic::codegen::http::Request;

use crate::http_client::{Lines, form, get, post, send, send_chunks, url, whole};
use crate::media::Media;
use crate::support::{Server, idle_timeout, limits, request, slow_engine};

const CLASSIFY: &str = "/v1/videos:classify";

fn make(media: &Media, name: &str, args: &str) -> Vec<u8> {
    let args = format!("-f lavfi -i testsrc2=size=64x64:rate=25 {args} -pix_fmt yuv420p");
    std::fs::read(media.make(name, &args)).unwrap()
}

/// Two seconds, which are four clips.
fn video(media: &Media) -> Vec<u8> {
    make(media, "video.mp4", "-t 2")
}

async fn slow_server(options: ServeOptions) -> Server {
    Server::with_models(vec![slow_engine(Duration::ZERO)], limits(), options).await
}

#[tokio::test]
async fn a_video_is_classified_as_over_grpc_in_each_way_to_send_it() {
    let media = Media::new();
    let server = Server::start().await;
    let video = video(&media);
    let expected = server.client().await.classify_video(request(video.clone())).await.unwrap().into_inner();
    let expected = expected.classification.unwrap();

    let raw = send(post(&server, CLASSIFY), video.clone()).await;
    assert_eq!((raw.status, raw.header("content-type")), (200, "application/json"));
    assert_eq!(raw.header("content-length"), raw.body.len().to_string());
    let (chunks, body) = mpsc::channel(1);
    let chunked = tokio::spawn(send_chunks(post(&server, CLASSIFY), body));
    for chunk in video.chunks(1000) {
        chunks.send(Bytes::copy_from_slice(chunk)).await.unwrap();
    }
    drop(chunks);
    let chunked = whole(chunked.await.unwrap()).await;
    let (as_form, body) = form(post(&server, CLASSIFY), &[], &video);
    let as_form = send(as_form, body).await;

    for answer in [&raw, &chunked, &as_form] {
        assert_eq!(answer.status, 200, "{}", answer.text());
        let answer = &answer.json()["classification"];
        assert_eq!(answer["model"]["name"], "camera-motion");
        let labels = answer["labels"].as_array().unwrap();
        assert_eq!(labels.len(), 5);
        for (label, expected) in labels.iter().zip(&expected.labels) {
            assert_eq!(label["label"], expected.label.as_str());
            assert!((label["score"].as_f64().unwrap() - f64::from(expected.score)).abs() < 1e-6);
        }
        assert_eq!((&answer["video"]["frames"], &answer["video"]["duration"]), (&json!("50"), &json!("2s")));
        assert_eq!((&answer["partial"], &answer["segments"]), (&json!(false), &json!([])));
    }
    server.assert_nothing_left_behind().await;
}

#[tokio::test]
async fn options_stand_in_the_query_the_form_or_the_json() {
    let media = Media::new();
    let server = Server::start().await;
    let video = video(&media);
    let check = |answer: &Value| {
        let answer = &answer["classification"];
        assert_eq!(answer["labels"].as_array().unwrap().len(), 2, "{answer}");
        assert_eq!(answer["segments"].as_array().unwrap().len(), 2, "{answer}");
        assert_eq!(answer["segments"][1]["start"], "0.640s");
    };
    let query = format!("{CLASSIFY}?topK=2&segments=clip&max_clips=2");
    check(&send(post(&server, &query), video.clone()).await.json());

    let fields = [("topK", "2"), ("options", r#"{"segments": "SEGMENT_MODE_CLIP", "maxClips": "2"}"#)];
    let (request, body) = form(post(&server, CLASSIFY), &fields, &video);
    check(&send(request, body).await.json());

    use base64::Engine;
    let content = base64::engine::general_purpose::STANDARD.encode(&video);
    let options = json!({"segments": "SEGMENT_MODE_CLIP", "max_clips": 2});
    let body = json!({"video": {"content": content}, "options": options}).to_string();
    let request = post(&server, &format!("{CLASSIFY}?topK=2&maxClips=1")).header("content-type", "application/json");
    check(&send(request, body).await.json());
}

#[tokio::test]
async fn events_come_in_order_as_lines_and_as_server_sent_events() {
    let media = Media::new();
    let server = Server::start().await;
    let video = video(&media);
    let lines = send(post(&server, CLASSIFY).header("accept", "application/x-ndjson"), video.clone()).await;
    assert_eq!((lines.status, lines.header("content-type")), (200, "application/x-ndjson"));
    let lines = lines.lines();
    let clips: Vec<&Value> = lines.iter().filter_map(|event| event.get("clip")).collect();
    let starts: Vec<&str> = clips.iter().map(|clip| clip["start"].as_str().unwrap()).collect();
    assert_eq!(starts, ["0s", "0.640s", "1.280s", "1.920s"]);
    assert!(lines.last().unwrap().get("classification").is_some());

    let events = send(post(&server, CLASSIFY).header("accept", "text/event-stream"), video).await;
    let names: Vec<&str> = events.text().lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    assert_eq!(names.iter().filter(|&&name| name == "clip").count(), 4);
    assert_eq!(names.last(), Some(&"classification"));
    let data = events.text().lines().filter_map(|line| line.strip_prefix("data: "));
    let data: Vec<Value> = data.map(|json| serde_json::from_str(json).unwrap()).collect();
    assert_eq!(data.last().unwrap()["classification"]["labels"], lines.last().unwrap()["classification"]["labels"]);
    server.assert_nothing_left_behind().await;
}

#[tokio::test]
async fn clips_come_while_the_upload_runs() {
    let media = Media::new();
    let server = slow_server(ServeOptions::default()).await;
    let video = make(&media, "video.ts", "-t 4 -g 5 -f mpegts");
    let (sender, body) = mpsc::channel(1);
    let request = post(&server, CLASSIFY).header("accept", "application/x-ndjson");
    let response = tokio::spawn(send_chunks(request, body));
    sender.send(Bytes::copy_from_slice(&video[..video.len() / 2])).await.unwrap();
    let mut events = Lines::new(response.await.unwrap().into_body());
    let mut first = events.next().await.unwrap();
    while first.get("clip").is_none() {
        first = events.next().await.unwrap();
    }
    sender.send(Bytes::copy_from_slice(&video[video.len() / 2..])).await.unwrap();
    drop(sender);
    let mut last = first;
    while let Some(event) = events.next().await {
        last = event;
    }
    assert_eq!(last["classification"]["video"]["frames"], "100");
    server.assert_nothing_left_behind().await;
}

#[tokio::test]
async fn another_request_gets_the_events_of_an_upload() {
    let media = Media::new();
    let server = slow_server(ServeOptions::default()).await;
    let video = video(&media);
    let key = "0123456789abcdef-key";
    let path = format!("/v1/uploads/{key}/events");
    let listen =
        || send_chunks(Request::get(url(&server, &path)).header("accept", "application/x-ndjson"), mpsc::channel(1).1);
    let mut events = Lines::new(listen().await.into_body());
    assert_eq!(get(&server, &path).await.error(), (409, "KEY_IN_USE".to_owned()));
    let answer = send(post(&server, &format!("{CLASSIFY}?events={key}")), video.clone()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let (mut clips, mut last) = (0, Value::Null);
    while let Some(event) = events.next().await {
        clips += usize::from(event.get("clip").is_some());
        last = event;
    }
    assert_eq!((clips, &last["classification"]), (4, &answer.json()["classification"]));
    // The key can be used again, and an upload that fails says so.
    let mut events = Lines::new(listen().await.into_body());
    let failed = send(post(&server, &format!("{CLASSIFY}?events={key}")), "no video").await;
    assert_eq!(failed.error().0, 415);
    assert_eq!(events.next().await.unwrap()["error"]["reason"], failed.error().1.as_str());
    assert!(events.next().await.is_none());
    server.assert_nothing_left_behind().await;
}

#[tokio::test]
async fn nobody_waits_for_ever_for_an_upload_that_does_not_come() {
    let options = ServeOptions { pace: idle_timeout(Duration::from_millis(100)), ..ServeOptions::default() };
    let server = slow_server(options).await;
    for _ in 0..2 {
        let answer = get(&server, "/v1/uploads/0123456789abcdef/events").await;
        assert!(answer.text().starts_with(":\n\nevent: error\ndata: {"), "{}", answer.text());
        assert!(answer.text().contains("CLIENT_IDLE"));
    }
    server.assert_nothing_left_behind().await;
}

#[tokio::test]
async fn segments_come_as_subtitles_and_as_a_table() {
    let media = Media::new();
    let server = slow_server(ServeOptions::default()).await;
    let video = video(&media);
    let vtt =
        send(post(&server, &format!("{CLASSIFY}?segments=clip&topK=1")).header("accept", "text/vtt"), video.clone())
            .await;
    assert_eq!(vtt.header("content-type"), "text/vtt; charset=utf-8");
    assert!(vtt.text().starts_with("WEBVTT\n\n1\n00:00:00.000 --> 00:00:00.640\n"), "{}", vtt.text());
    assert_eq!(vtt.text().matches(" --> ").count(), 4);
    // Without a word about segments they are merged ones.
    let csv = send(post(&server, &format!("{CLASSIFY}?topK=1")).header("accept", "text/csv"), video).await;
    let lines: Vec<&str> = csv.text().lines().collect();
    assert_eq!(lines[0], "start_seconds,end_seconds,rank,index,label,score");
    assert!(lines.len() == 2 && lines[1].starts_with("0.000,2.000,1,"), "{lines:?}");
}

#[tokio::test]
async fn what_is_wrong_has_its_status_and_reason() {
    let media = Media::new();
    let server = slow_server(ServeOptions::default()).await;
    let video = video(&media);
    let path = |query: &str| format!("{CLASSIFY}?{query}");
    let json =
        |body: &str| (post(&server, CLASSIFY).header("content-type", "application/json"), body.to_owned().into_bytes());
    let with = |header: &str, value: &str| (post(&server, CLASSIFY).header(header, value), video.clone());
    for ((request, body), expected) in [
        ((post(&server, CLASSIFY), b"no video at all".to_vec()), (415, "NOT_A_VIDEO")),
        ((post(&server, CLASSIFY), Vec::new()), (400, "VIDEO_EMPTY")),
        ((post(&server, CLASSIFY), vec![0; 3 << 20]), (413, "VIDEO_TOO_LARGE")),
        ((post(&server, &path("topk=1")), video.clone()), (400, "INVALID_OPTION")),
        ((post(&server, &path("topK=many")), video.clone()), (400, "INVALID_OPTION")),
        ((post(&server, &path("timeout=soon")), video.clone()), (400, "INVALID_OPTION")),
        ((post(&server, &path("timeout=0")), video.clone()), (400, "INVALID_OPTION")),
        ((post(&server, &path("events=short")), video.clone()), (400, "INVALID_OPTION")),
        ((post(&server, &path("scoreThreshold=2")), video.clone()), (400, "INVALID_SCORE_THRESHOLD")),
        ((post(&server, &path("model=other")), video.clone()), (404, "MODEL_NOT_FOUND")),
        (with("accept", "image/png"), (406, "NOT_ACCEPTABLE")),
        (with("content-encoding", "gzip"), (415, "UNSUPPORTED_MEDIA_TYPE")),
        (with("content-type", "multipart/form-data"), (400, "MALFORMED_REQUEST")),
        (json("{"), (400, "MALFORMED_REQUEST")),
        (json("{}"), (400, "VIDEO_MISSING")),
        (json(r#"{"url": "http://a.example/a.mp4"}"#), (400, "MALFORMED_REQUEST")),
        (json(r#"{"uri": "http://a.example/a.mp4"}"#), (403, "URI_NOT_ALLOWED")),
        (json(r#"{"uri": "a.mp4"}"#), (400, "URI_INVALID")),
        ((post(&server, "/v1/videos"), Vec::new()), (404, "PATH_NOT_FOUND")),
        ((post(&server, "/v1/models"), Vec::new()), (405, "METHOD_NOT_ALLOWED")),
        ((Request::get(url(&server, CLASSIFY)), Vec::new()), (405, "METHOD_NOT_ALLOWED")),
        ((Request::get(url(&server, "/nothing")), Vec::new()), (404, "PATH_NOT_FOUND")),
        (
            (post(&server, "/kinetoscope.v1.VideoClassificationService/ListModels"), Vec::new()),
            (415, "UNSUPPORTED_MEDIA_TYPE"),
        ),
    ] {
        let told = format!("{request:?}");
        let answer = send(request, body).await;
        assert_eq!(answer.error(), (expected.0, expected.1.to_owned()), "{told}");
    }
    server.assert_nothing_left_behind().await;
}

#[tokio::test]
async fn an_error_after_the_first_event_is_the_last_event() {
    let media = Media::new();
    let server =
        slow_server(ServeOptions { pace: idle_timeout(Duration::from_millis(300)), ..ServeOptions::default() }).await;
    let video = make(&media, "video.ts", "-t 4 -g 5 -f mpegts");
    let (sender, body) = mpsc::channel(1);
    let request = post(&server, CLASSIFY).header("accept", "application/x-ndjson");
    let response = tokio::spawn(send_chunks(request, body));
    sender.send(Bytes::copy_from_slice(&video[..video.len() / 2])).await.unwrap();
    let mut events = Lines::new(response.await.unwrap().into_body());
    let mut last = Value::Null;
    while let Some(event) = events.next().await {
        last = event;
    }
    assert_eq!(last["error"]["reason"], "CLIENT_IDLE");
    let counted = "kinetoscope_requests_total{method=\"POST /v1/videos:classify\",code=\"DEADLINE_EXCEEDED\"}";
    server.assert_nothing_left_behind().await;
    assert_eq!(server.metric(counted).await, 1.0);
}

#[tokio::test]
async fn models_are_listed_with_limits_and_described_with_labels() {
    let server = Server::start().await;
    let list = get(&server, "/v1/models").await.json();
    assert_eq!((&list["models"][0]["name"], &list["models"][0]["default"]), (&json!("camera-motion"), &json!(true)));
    assert_eq!((&list["models"][0]["labels"], &list["limits"]["maxFrames"]), (&json!([]), &json!("400")));
    let model = get(&server, "/v1/models/camera-motion").await.json();
    assert_eq!(
        model["model"]["labels"].as_array().unwrap().len(),
        model["model"]["classes"].as_u64().unwrap() as usize
    );
    assert_eq!(get(&server, "/v1/models/other").await.error(), (404, "MODEL_NOT_FOUND".to_owned()));
    assert_eq!(get(&server, "/v1/models/camera-motion?version=0").await.error().0, 404);
}

#[tokio::test]
async fn every_path_of_the_description_is_served() {
    let server = slow_server(ServeOptions::default()).await;
    let document = get(&server, "/openapi.json").await.json();
    assert_eq!(document["openapi"], "3.1.0");
    for (path, methods) in document["paths"].as_object().unwrap() {
        let path = path.replace("{key}", "short").replace("{name}", "none");
        for method in methods.as_object().unwrap().keys() {
            let request = Request::builder().method(method.to_uppercase().as_str()).uri(url(&server, &path));
            let answer = send(request, Bytes::new()).await;
            let reason = answer.json()["error"]["reason"].as_str().unwrap_or_default().to_owned();
            assert!(!["PATH_NOT_FOUND", "METHOD_NOT_ALLOWED"].contains(&reason.as_str()), "{method} {path}: {reason}");
        }
    }
}

#[tokio::test]
async fn a_full_server_says_when_to_come_back() {
    let media = Media::new();
    let options = ServeOptions { max_requests: 1, ..ServeOptions::default() };
    let server = Server::with_models(vec![slow_engine(Duration::from_millis(100))], limits(), options).await;
    let video = video(&media);
    let (first, body) = (post(&server, CLASSIFY), video.clone());
    let first = tokio::spawn(async move { send(first, body).await });
    while server.metric("kinetoscope_decodes{state=\"open\"}").await == 0.0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for accept in ["application/json", "application/x-ndjson"] {
        let refused = send(post(&server, CLASSIFY).header("accept", accept), video.clone()).await;
        assert_eq!(refused.error(), (429, "TOO_MANY_REQUESTS".to_owned()));
        assert_eq!((refused.header("retry-after"), &refused.json()["error"]["retryDelay"]), ("1", &json!("1s")));
    }
    assert_eq!(first.await.unwrap().status, 200);
    server.assert_nothing_left_behind().await;
}

/// Sends bytes and gives what comes back until the server closes the connection or `until` has come.
async fn raw(server: &Server, sent: &str, until: &str) -> String {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(sent.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !String::from_utf8_lossy(&answer).contains(until) {
        if stream.read_buf(&mut answer).await.unwrap() == 0 {
            break;
        }
    }
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn a_client_that_asks_before_it_sends_sends_nothing_if_it_is_refused() {
    let server = slow_server(ServeOptions::default()).await;
    let head = |length: usize| {
        format!(
            "POST {CLASSIFY} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    let refused = raw(&server, &head(100 << 20), "VIDEO_TOO_LARGE").await;
    assert!(refused.starts_with("HTTP/1.1 413 "), "{refused}");
    let taken = raw(&server, &head(1000), "\r\n\r\n").await;
    assert!(taken.starts_with("HTTP/1.1 100 Continue\r\n\r\n"), "{taken}");
    server.assert_nothing_left_behind().await;
}

#[tokio::test]
async fn pages_of_other_sites_can_not_drive_the_server() {
    let media = Media::new();
    let allowed: AllowedOrigin = "https://app.example.org".parse().unwrap();
    let options = ServeOptions { allowed_origins: vec![allowed], ..ServeOptions::default() };
    let server = slow_server(options).await;
    let video = video(&media);
    let from = |origin: &str| post(&server, CLASSIFY).header("origin", origin);
    let refused = send(from("https://evil.example"), video.clone()).await;
    assert_eq!(refused.error(), (403, "ORIGIN_NOT_ALLOWED".to_owned()));
    assert_eq!(refused.header("access-control-allow-origin"), "");
    assert_eq!(send(from("null"), video.clone()).await.error().0, 403);
    let own = send(from(&format!("http://{}", server.address)), video.clone()).await;
    assert_eq!((own.status, own.header("access-control-allow-origin")), (200, ""));
    let other = send(from("https://app.example.org"), video.clone()).await;
    assert_eq!((other.status, other.header("access-control-allow-origin")), (200, "https://app.example.org"));
    let preflight = |origin: &str| Request::options(url(&server, CLASSIFY)).header("origin", origin);
    let told = send(preflight("https://app.example.org"), Bytes::new()).await;
    assert!(told.status == 204 && told.header("access-control-allow-headers").contains("authorization"), "{told:?}");
    assert_eq!(send(preflight("https://evil.example"), Bytes::new()).await.error().0, 403);
    // A name of the page's own that leads to this machine.
    let rebound = send(post(&server, CLASSIFY).header("host", "evil.example"), video).await;
    assert_eq!(rebound.error(), (403, "HOST_NOT_ALLOWED".to_owned()));
}

#[cfg(feature = "web")]
#[tokio::test]
async fn the_page_is_served_with_a_policy_and_cached() {
    let server = slow_server(ServeOptions::default()).await;
    let page = get(&server, "/").await;
    assert_eq!((page.status, page.header("content-type")), (200, "text/html; charset=utf-8"));
    assert!(page.header("content-security-policy").starts_with("default-src 'self';"));
    assert!(page.text().contains("Kinetoscope"));
    let etag = page.header("etag");
    let again = send(Request::get(url(&server, "/")).header("if-none-match", etag), Bytes::new()).await;
    assert_eq!((again.status, again.body.len()), (304, 0));
    let packed = send(Request::get(url(&server, "/")).header("accept-encoding", "br, gzip"), Bytes::new()).await;
    assert!(packed.body.len() < page.body.len() && packed.header("content-encoding") == "gzip");
    assert_eq!(get(&server, "/assets/none.js").await.error().0, 404);
}

#[tokio::test]
async fn grpc_web_calls_the_same_services() {
    let server = Server::start().await;
    let request = post(&server, "/kinetoscope.v1.VideoClassificationService/ListModels");
    let request = request.header("content-type", "application/grpc-web+proto").header("x-grpc-web", "1");
    let answer = send(request, vec![0; 5]).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, "application/grpc-web+proto"));
    let text = String::from_utf8_lossy(&answer.body);
    assert!(text.contains("camera-motion") && text.contains("grpc-status:0"), "{text}");
    let foreign = post(&server, "/kinetoscope.v1.VideoClassificationService/ListModels");
    let foreign = foreign.header("content-type", "application/grpc-web+proto").header("origin", "https://evil.example");
    let refused = send(foreign, vec![0; 5]).await;
    assert!(!String::from_utf8_lossy(&refused.body).contains("camera-motion"));
    assert_eq!(refused.header("grpc-status"), "7");
}

#[tokio::test]
async fn tokens_are_those_of_grpc_and_the_page_needs_none() {
    use sha2::Digest;
    let media = Media::new();
    let hash: String = sha2::Sha256::digest("secret").iter().map(|byte| format!("{byte:02x}")).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("page {hash}\n")).unwrap();
    let tokens = kinetoscope::server::Tokens::read(file.path()).unwrap();
    let server = slow_server(ServeOptions { tokens: Some(tokens), ..ServeOptions::default() }).await;
    let video = video(&media);
    let missing = send(post(&server, CLASSIFY), video.clone()).await;
    assert_eq!((missing.error(), missing.header("www-authenticate")), ((401, "TOKEN_MISSING".to_owned()), "Bearer"));
    let bearing = |token: &str| post(&server, CLASSIFY).header("authorization", format!("Bearer {token}"));
    assert_eq!(send(bearing("wrong"), video.clone()).await.error(), (401, "TOKEN_UNKNOWN".to_owned()));
    assert_eq!(send(bearing("secret"), video).await.status, 200);
    assert_eq!(get(&server, "/v2/models/camera-motion").await.status, 401);
    for public in ["/openapi.json", "/v2/health/ready"] {
        assert_eq!(get(&server, public).await.status, 200, "{public}");
    }
}

#[tokio::test]
async fn a_refused_upload_is_read_to_its_end_so_that_its_client_sees_why() {
    let server = slow_server(ServeOptions::default()).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let length = 64 << 20;
    let head = format!("POST {CLASSIFY} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    // As a client that reads nothing before it has sent all.
    let chunk = vec![0; 1 << 20];
    for _ in 0..64 {
        stream.write_all(&chunk).await.expect("the server takes what it does not want");
    }
    let mut answer = vec![0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, b"HTTP/1.1 413");
}

#[tokio::test]
async fn previews_are_pictures_of_clips() {
    let media = Media::new();
    let server = slow_server(ServeOptions::default()).await;
    let video = video(&media);
    for (query, has_previews) in [("", false), ("?previews=true", true)] {
        let request = post(&server, &format!("{CLASSIFY}{query}")).header("accept", "application/x-ndjson");
        let lines = send(request, video.clone()).await.lines();
        let clips: Vec<&Value> = lines.iter().filter_map(|event| event.get("clip")).collect();
        assert_eq!(clips.len(), 4);
        for clip in clips {
            let preview = clip["preview"].as_str().unwrap();
            // What a JPEG begins with, in base64.
            assert_eq!(preview.starts_with("/9j/"), has_previews, "{preview}");
        }
    }
}
