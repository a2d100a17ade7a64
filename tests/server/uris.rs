//! Videos that clients name by URI: what a server fetches, how much of it, and what it refuses to.

use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use kinetoscope::proto;
use kinetoscope::proto::classify_videos_response::Result as Answer;
use kinetoscope::proto::{
    ClassificationOptions, ClassifyVideoRequest, ClassifyVideosRequest, Video, VideoClassification, video,
};
use kinetoscope::server::{Pace, ServeOptions};
use kinetoscope::uri::{UriOptions, Uris};
use kinetoscope::video::Limits;
use tonic::{Code, Request, Status};

use crate::media::Media;
use crate::support::{Server, limits, reason, request, slow_engine};
use crate::web::Web;

fn options(allow: &[&str]) -> UriOptions {
    UriOptions {
        allow: allow.iter().map(|prefix| prefix.parse().unwrap()).collect(),
        allow_private_addresses: true,
        idle_timeout: Duration::from_secs(10),
        ..UriOptions::default()
    }
}

async fn server(options: UriOptions) -> Server {
    let pace = Pace { idle_timeout: options.idle_timeout, ..Pace::default() };
    let options = ServeOptions { uris: Uris::new(options).unwrap(), pace, ..ServeOptions::default() };
    let limits = Limits { max_bytes: 16 << 20, ..limits() };
    Server::with_models(vec![slow_engine(Duration::ZERO)], limits, options).await
}

/// A server that takes everything from `web`, however it behaves.
async fn server_of(web: &Web, idle_timeout: Duration) -> Server {
    server(UriOptions { idle_timeout, ..options(&[&web.uri("")]) }).await
}

fn of_uri(uri: impl Into<String>) -> ClassifyVideoRequest {
    let video = Video { source: Some(video::Source::Uri(uri.into())) };
    ClassifyVideoRequest { video: Some(video), options: None }
}

async fn classify(server: &Server, uri: impl Into<String>) -> Result<VideoClassification, Status> {
    let response = server.client().await.classify_video(of_uri(uri)).await?;
    Ok(response.into_inner().classification.unwrap())
}

async fn refusal(server: &Server, uri: impl Into<String>) -> (Code, String) {
    reason(&classify(server, uri).await.expect_err("a refusal"))
}

fn is(code: Code, reason: &str) -> (Code, String) {
    (code, reason.to_owned())
}

/// Ten seconds of noise, some megabytes, the index last.
fn large(media: &Media) -> Vec<u8> {
    let args = "-f lavfi -i testsrc2=size=320x240:rate=25,noise=alls=60:allf=t -t 10 -g 25 -c:v mpeg4 -q:v 12";
    let video = std::fs::read(media.make("large.mp4", args)).unwrap();
    assert!(video.len() > 3 << 20, "{} bytes", video.len());
    video
}

fn small(media: &Media) -> Vec<u8> {
    let args = "-f lavfi -i testsrc2=size=64x64:rate=25 -frames:v 40 -pix_fmt yuv420p";
    std::fs::read(media.make("small.mp4", args)).unwrap()
}

/// URI of a directory of the media's.
fn directory(media: &Media, name: &str) -> String {
    format!("file://{}/{name}", media.path("any").parent().unwrap().display())
}

#[tokio::test]
async fn a_uri_gets_the_answer_of_the_bytes_it_names() {
    let media = Media::new();
    let (small, large) = (small(&media), large(&media));
    let web = Web::start([("small.mp4", small.clone()), ("large.mp4", large.clone())]).await;
    let root = directory(&media, "");
    let server = server(options(&[&root, &web.uri("")])).await;
    let mut client = server.client().await;
    for (name, video) in [("small.mp4", small), ("large.mp4", large)] {
        let expected = client.classify_video(request(video)).await.unwrap().into_inner().classification;
        for uri in [
            format!("{root}{name}"),
            web.uri(&format!("clips/{name}?signature=a%2Fb")),
            web.uri(&format!("no-ranges/{name}")),
        ] {
            let answer = classify(&server, &uri).await;
            assert_eq!(Some(answer.unwrap()), expected, "{uri}");
        }
    }
    assert_eq!(web.asked()[0].query.as_deref(), Some("signature=a%2Fb"), "a presigned URL is asked for as it came");
    server.assert_nothing_left_behind().await;
}

#[tokio::test]
async fn a_source_that_tells_no_length_is_read_to_its_end_and_to_the_limit() {
    let media = Media::new();
    let (small, too_large) = (small(&media), vec![0; 17 << 20]);
    let web = Web::start([("small.mp4", small.clone()), ("large.mp4", too_large), ("empty.mp4", Vec::new())]).await;
    let server = server_of(&web, Duration::from_secs(10)).await;
    let expected = server.client().await.classify_video(request(small)).await.unwrap().into_inner().classification;
    for behaviour in ["no-length", "part-of-unknown"] {
        let answer = classify(&server, web.uri(&format!("{behaviour}/small.mp4"))).await;
        assert_eq!(Some(answer.unwrap()), expected, "{behaviour}");
    }
    let refused = refusal(&server, web.uri("no-length/large.mp4")).await;
    assert!(
        [is(Code::InvalidArgument, "VIDEO_TOO_LARGE"), is(Code::InvalidArgument, "NOT_A_VIDEO")].contains(&refused)
    );
    assert_eq!(refusal(&server, web.uri("no-length/empty.mp4")).await.0, Code::InvalidArgument);
    server.assert_nothing_left_behind().await;
}

#[tokio::test]
async fn only_what_may_pass_is_worth_another_try() {
    let media = Media::new();
    let web = Web::start([("small.mp4", small(&media))]).await;
    let server = server_of(&web, Duration::from_secs(10)).await;
    let rejected = refusal(&server, web.uri("rejected/small.mp4")).await;
    assert_eq!(rejected, is(Code::FailedPrecondition, "SOURCE_REJECTED"));
    let busy = refusal(&server, web.uri("busy/small.mp4")).await;
    assert_eq!(busy, is(Code::Unavailable, "SOURCE_UNAVAILABLE"));
}

#[tokio::test]
async fn of_a_short_range_little_more_than_it_is_fetched() {
    let media = Media::new();
    let large = large(&media);
    let web = Web::start([("large.mp4", large.clone())]).await;
    let server = server_of(&web, Duration::from_secs(10)).await;
    let at = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let options = ClassificationOptions { start: at(8), end: at(9), ..Default::default() };
    let request = ClassifyVideoRequest { options: Some(options), ..of_uri(web.uri("clips/large.mp4")) };
    let answer = server.client().await.classify_video(request).await.unwrap().into_inner().classification.unwrap();
    assert_eq!(answer.video.unwrap().frames, 25);
    let asked = web.asked();
    let fetched: usize = asked.iter().map(|asked| asked.range.clone().unwrap().len()).sum();
    assert!(fetched < large.len() / 2, "{fetched} of {}: {asked:?}", large.len());
    assert!(asked.len() < 10, "{asked:?}");
    server.assert_nothing_left_behind().await;
}

#[tokio::test]
async fn videos_of_a_stream_may_be_uris_and_fail_alone() {
    let media = Media::new();
    let web = Web::start([("small.mp4", small(&media))]).await;
    let server = server_of(&web, Duration::from_secs(10)).await;
    let keyed = |key: &str, path: &str| ClassifyVideosRequest {
        key: key.to_owned(),
        video: of_uri(web.uri(path)).video,
        options: None,
    };
    let videos = vec![keyed("there", "clips/small.mp4"), keyed("not there", "clips/other.mp4")];
    let mut answers = server.client().await.classify_videos(tokio_stream::iter(videos)).await.unwrap().into_inner();
    for _ in 0..2 {
        let answer = answers.message().await.unwrap().unwrap();
        match answer.result.unwrap() {
            Answer::Classification(_) => assert_eq!(answer.key, "there"),
            Answer::Error(error) => {
                assert_eq!((answer.key.as_str(), error.reason.as_str()), ("not there", "VIDEO_NOT_FOUND"))
            }
        }
    }
    server.assert_nothing_left_behind().await;
}

#[tokio::test]
async fn no_uri_is_taken_unless_it_is_allowed() {
    let media = Media::new();
    let web = Web::start([("small.mp4", small(&media))]).await;
    let file = format!("file://{}", media.path("small.mp4").display());
    std::fs::create_dir(media.path("small")).unwrap();
    let uris = [file.as_str(), &web.uri("clips/small.mp4"), "s3://bucket/a.mp4", "gs://bucket/a.mp4", "az://c/a.mp4"];
    let nothing = server(UriOptions { idle_timeout: Duration::from_secs(1), ..UriOptions::default() }).await;
    let other_path = server(options(&[&web.uri("other/"), &directory(&media, "small")])).await;
    let other_port = server(options(&["http://127.0.0.1:1/"])).await;
    for uri in uris {
        for server in [&nothing, &other_path, &other_port] {
            assert_eq!(refusal(server, uri).await, is(Code::PermissionDenied, "URI_NOT_ALLOWED"), "{uri}");
        }
    }
    for uri in ["", "small.mp4", "ftp://host/a.mp4", &format!("{}/../small.mp4", web.uri("other"))] {
        assert_eq!(refusal(&other_path, uri).await, is(Code::InvalidArgument, "URI_INVALID"), "{uri}");
    }
    assert!(web.asked().is_empty(), "nobody was asked");
}

#[tokio::test]
async fn nobody_gets_out_of_an_allowed_directory() {
    let media = Media::new();
    let video = small(&media);
    std::fs::create_dir(media.path("allowed")).unwrap();
    std::fs::write(media.path("allowed/a b.mp4"), video).unwrap();
    symlink(media.path("small.mp4"), media.path("allowed/link.mp4")).unwrap();
    let pipe = media.path("allowed/pipe.mp4");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    std::fs::write(media.path("allowed/empty.mp4"), []).unwrap();
    let root = directory(&media, "allowed/");
    let server = server(options(&[&root])).await;
    assert!(classify(&server, format!("{root}a%20b.mp4")).await.is_ok());
    let not_allowed = is(Code::PermissionDenied, "URI_NOT_ALLOWED");
    assert_eq!(refusal(&server, format!("{root}link.mp4")).await, not_allowed, "a link that leads out");
    assert_eq!(refusal(&server, format!("{root}pipe.mp4")).await, not_allowed, "a pipe that nobody writes to");
    assert_eq!(refusal(&server, "file:///proc/self/environ").await, not_allowed);
    let invalid = is(Code::InvalidArgument, "URI_INVALID");
    for path in ["../small.mp4", "%2e%2e/small.mp4", "..%2fsmall.mp4", "a b.mp4", ""] {
        assert_eq!(refusal(&server, format!("{root}{path}")).await, invalid, "{path}");
    }
    assert_eq!(refusal(&server, format!("{root}empty.mp4")).await, is(Code::InvalidArgument, "VIDEO_EMPTY"));
    let missing = classify(&server, format!("{root}missing.mp4")).await.unwrap_err();
    assert_eq!(reason(&missing), is(Code::NotFound, "VIDEO_NOT_FOUND"));
    assert!(!missing.message().contains("allowed/"), "{}", missing.message());
    server.assert_nothing_left_behind().await;
}

#[tokio::test]
async fn private_addresses_are_refused_by_number_and_by_name() {
    let media = Media::new();
    let web = Web::start([("small.mp4", small(&media))]).await;
    let by_name = format!("http://localhost:{}/", web.address.port());
    let in_other_form = format!("http://[::ffff:127.0.0.1]:{}/", web.address.port());
    let allow = [&web.uri(""), &by_name, &in_other_form, "http://169.254.169.254/"];
    let server = server(UriOptions { allow_private_addresses: false, ..options(&allow) }).await;
    for prefix in allow {
        let refused = refusal(&server, format!("{prefix}clips/small.mp4")).await;
        assert_eq!(refused, is(Code::PermissionDenied, "URI_NOT_ALLOWED"), "{prefix}");
    }
    assert!(web.asked().is_empty(), "nobody was asked");
}

#[tokio::test]
async fn what_a_web_server_answers_becomes_the_right_code() {
    let media = Media::new();
    let web = Web::start([("a.mp4", large(&media)), ("empty.mp4", Vec::new()), ("text.mp4", b"no video".into())]).await;
    let server = server_of(&web, Duration::from_secs(1)).await;
    for (path, expected) in [
        ("clips/missing.mp4", is(Code::NotFound, "VIDEO_NOT_FOUND")),
        ("denied/a.mp4", is(Code::PermissionDenied, "SOURCE_DENIED")),
        ("redirect/a.mp4", is(Code::PermissionDenied, "URI_NOT_ALLOWED")),
        ("broken/a.mp4", is(Code::Unavailable, "SOURCE_UNAVAILABLE")),
        ("broken-later/a.mp4", is(Code::Unavailable, "SOURCE_UNAVAILABLE")),
        ("changing/a.mp4", is(Code::Unavailable, "SOURCE_UNAVAILABLE")),
        ("clips/empty.mp4", is(Code::InvalidArgument, "VIDEO_EMPTY")),
        ("clips/text.mp4", is(Code::InvalidArgument, "NOT_A_VIDEO")),
        ("endless/a.mp4", is(Code::InvalidArgument, "VIDEO_TOO_LARGE")),
    ] {
        assert_eq!(refusal(&server, web.uri(path)).await, expected, "{path}");
    }
    let asked = web.asked();
    assert!(!asked.iter().any(|asked| asked.path == "clips/a.mp4"), "the redirect was not followed");
    assert_eq!(
        asked.iter().filter(|asked| asked.path == "broken/a.mp4").count(),
        3,
        "it was tried again, but not for ever"
    );
    let message = classify(&server, web.uri("broken/a.mp4?secret=1")).await.unwrap_err().message().to_owned();
    assert!(!message.contains("secret") && !message.contains("127.0.0.1"), "{message}");
    server.assert_nothing_left_behind().await;
}

#[tokio::test]
async fn a_video_that_is_too_large_is_refused_before_it_is_fetched() {
    let media = Media::new();
    let web = Web::start([("large.mp4", large(&media))]).await;
    let options = ServeOptions { uris: Uris::new(options(&[&web.uri("")])).unwrap(), ..ServeOptions::default() };
    let limits = Limits { max_bytes: 1 << 20, ..limits() };
    let server = Server::with_models(vec![slow_engine(Duration::ZERO)], limits, options).await;
    for path in ["clips/large.mp4", "no-ranges/large.mp4"] {
        assert_eq!(refusal(&server, web.uri(path)).await, is(Code::InvalidArgument, "VIDEO_TOO_LARGE"), "{path}");
    }
    let fetched: usize = web.asked().iter().filter_map(|asked| Some(asked.range.clone()?.len())).sum();
    assert!(fetched <= 512 << 10, "{fetched}");
}

#[tokio::test]
async fn a_server_that_falls_silent_holds_nothing_for_long() {
    let media = Media::new();
    let web = Web::start([("a.mp4", large(&media))]).await;
    let server = server_of(&web, Duration::from_millis(300)).await;
    for path in ["silent/a.mp4", "silent-later/a.mp4", "silent-without-ranges/a.mp4"] {
        let begun = Instant::now();
        assert_eq!(refusal(&server, web.uri(path)).await, is(Code::Unavailable, "SOURCE_UNAVAILABLE"), "{path}");
        assert!(begun.elapsed() < Duration::from_secs(2), "{path}: {:?}", begun.elapsed());
        server.assert_nothing_left_behind().await;
        web.assert_nobody_waits().await;
    }
}

#[tokio::test]
async fn deadlines_and_cancels_end_transfers() {
    let media = Media::new();
    let web = Web::start([("a.mp4", large(&media))]).await;
    let server = server_of(&web, Duration::from_secs(60)).await;
    for path in ["silent/a.mp4", "silent-later/a.mp4", "silent-without-ranges/a.mp4"] {
        let mut late = Request::new(of_uri(web.uri(path)));
        late.set_timeout(Duration::from_millis(300));
        let status = server.client().await.classify_video(late).await.unwrap_err();
        assert!([Code::DeadlineExceeded, Code::Cancelled].contains(&status.code()), "{path}: {status:?}");
        let ended = Instant::now();
        server.assert_nothing_left_behind().await;
        web.assert_nobody_waits().await;
        assert!(ended.elapsed() < Duration::from_millis(400), "{path}: {:?}", ended.elapsed());

        let mut client = server.client().await;
        let call = tokio::spawn({
            let request = of_uri(web.uri(path));
            async move { client.classify_video(request).await }
        });
        tokio::time::sleep(Duration::from_millis(200)).await;
        call.abort();
        server.assert_nothing_left_behind().await;
        web.assert_nobody_waits().await;
    }
}

#[tokio::test]
async fn each_cloud_is_asked_for_ranges_with_its_credentials() {
    let media = Media::new();
    let web = Web::start([("in/large.mp4", large(&media))]).await;
    let endpoint = format!("http://{}", web.address);
    let endpoint = endpoint.as_str();
    let account = [("AZURE_STORAGE_ACCOUNT_NAME", "us"), ("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0")];
    let clouds = [
        (
            "s3://bucket",
            "AWS4-HMAC-SHA256 Credential=us/",
            vec![("AWS_ENDPOINT", endpoint), ("AWS_ACCESS_KEY_ID", "us"), ("AWS_SECRET_ACCESS_KEY", "secret")],
        ),
        ("gs://bucket", "", vec![("GOOGLE_BASE_URL", endpoint), ("GOOGLE_SKIP_SIGNATURE", "true")]),
        ("az://bucket", "SharedKey us:", [&account[..], &[("AZURE_STORAGE_ENDPOINT", endpoint)]].concat()),
    ];
    for (bucket, credentials, settings) in clouds {
        let plain = ["AWS_ALLOW_HTTP", "GOOGLE_ALLOW_HTTP", "AZURE_ALLOW_HTTP"].map(|name| (name, "true"));
        let cloud_settings = settings.iter().chain(&plain).map(|&(name, value)| (name.into(), value.into())).collect();
        let options = UriOptions { cloud_settings, allow_private_addresses: false, ..options(&[bucket]) };
        let server = server(options).await;
        let classified = classify(&server, &format!("{bucket}/in/large.mp4")).await.unwrap();
        assert_eq!(classified.video.unwrap().frames, 250, "{bucket}");
        for asked in web.asked() {
            assert!(asked.path == "bucket/in/large.mp4" && asked.range.is_some(), "{asked:?}");
            assert!(asked.authorization.unwrap_or_default().starts_with(credentials), "{bucket}");
        }
        let missing = refusal(&server, &format!("{bucket}/missing.mp4")).await;
        assert_eq!(missing, is(Code::NotFound, "VIDEO_NOT_FOUND"), "{bucket}");
        server.assert_nothing_left_behind().await;
        web.asked();
    }
}

#[tokio::test]
async fn a_cloud_is_reached_as_its_settings_say() {
    let media = Media::new();
    let (small, large) = (small(&media), large(&media));
    let web = Web::start([("a b.mp4", small), ("in/large.mp4", large)]).await;
    let settings = |plain: &str| {
        [
            ("AWS_ENDPOINT", format!("http://{}", web.address)),
            ("AWS_ALLOW_HTTP", plain.to_owned()),
            ("AWS_ACCESS_KEY_ID", "us".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "secret".to_owned()),
            ("AWS_BUCKET", "another".to_owned()),
            ("AWS_SOMETHING_NEW", "ignored".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    };
    // Addresses that the operator configured may be private.
    let with = |plain: &str, prefix: &str| UriOptions {
        cloud_settings: settings(plain),
        allow_private_addresses: false,
        ..options(&[prefix])
    };
    let store = server(with("true", "s3://bucket")).await;
    assert!(classify(&store, "s3://bucket/a%20b.mp4").await.is_ok());
    assert_eq!(classify(&store, "s3://bucket/in/large.mp4").await.unwrap().video.unwrap().frames, 250);
    assert!(web.asked().iter().all(|asked| asked.range.is_some()));
    assert_eq!(refusal(&store, "s3://bucket/missing.mp4").await, is(Code::NotFound, "VIDEO_NOT_FOUND"));
    assert_eq!(refusal(&store, "s3://other/in/large.mp4").await, is(Code::PermissionDenied, "URI_NOT_ALLOWED"));
    let below = server(with("true", "s3://bucket/in/")).await;
    assert_eq!(refusal(&below, "s3://bucket/a.mp4").await, is(Code::PermissionDenied, "URI_NOT_ALLOWED"));
    web.asked();
    let encrypted = server(with("false", "s3://bucket")).await;
    let refused = refusal(&encrypted, "s3://bucket/in/large.mp4").await;
    assert_eq!(refused, is(Code::Unavailable, "SOURCE_UNAVAILABLE"), "plain HTTP is not allowed");
    assert!(web.asked().is_empty(), "nobody was asked");
    store.assert_nothing_left_behind().await;
}

#[tokio::test]
async fn a_model_that_is_not_there_costs_no_transfer() {
    let media = Media::new();
    let web = Web::start([("small.mp4", small(&media))]).await;
    let server = server_of(&web, Duration::from_secs(10)).await;
    let model = proto::ModelSelector { name: "none".to_owned(), version: String::new() };
    let options = ClassificationOptions { model: Some(model), ..Default::default() };
    let request = ClassifyVideoRequest { options: Some(options), ..of_uri(web.uri("clips/small.mp4")) };
    let status = server.client().await.classify_video(request).await.unwrap_err();
    assert_eq!(reason(&status), is(Code::NotFound, "MODEL_NOT_FOUND"));
    assert!(web.asked().is_empty());
}

#[test]
fn prefixes_that_can_never_be_read_are_told_at_the_start() {
    let error = Uris::new(options(&["file:///no/such/directory/"])).unwrap_err().to_string();
    assert!(error.contains("file:///no/such/directory/"), "{error}");
    let error = Uris::new(options(&["az://container/"])).unwrap_err().to_string();
    assert!(error.contains("az://container/") && error.to_lowercase().contains("account"), "{error}");
}
