//! `ClassifyVideo` answers as it promises.

use std::ops::ControlFlow;
use std::time::Duration;

use candle_core::{DType, Device, Tensor};
use kinetoscope::model::builtin;
use kinetoscope::proto;
use kinetoscope::server::ServeOptions;
use kinetoscope::video::{DecodeOptions, Source, decode_clips};
use tonic::Request;

use crate::media::Media;
use crate::support::{Server, limits, request, slow_engine};

/// 2.2 s at 25 frames a second: 55 frames, 3 whole clips and a looped one.
fn video(media: &Media) -> Vec<u8> {
    let args = "-f lavfi -i testsrc2=size=200x120:rate=25 -t 2.2 -pix_fmt yuv420p";
    std::fs::read(media.make("video.mp4", args)).unwrap()
}

async fn classify(options: proto::ClassificationOptions) -> proto::VideoClassification {
    let media = Media::new();
    let server = Server::start().await;
    let request = proto::ClassifyVideoRequest { options: Some(options), ..request(video(&media)) };
    let response = server.client().await.classify_video(request).await.unwrap();
    response.into_inner().classification.unwrap()
}

#[tokio::test]
async fn answer_describes_the_video_and_the_model() {
    let answer = classify(proto::ClassificationOptions::default()).await;
    let info = answer.video.unwrap();
    assert_eq!((info.frames, info.clips, info.width, info.height), (55, 4, 200, 120));
    assert_eq!((info.codec.as_str(), info.stream_index, info.corrupt_packets), ("h264", 0, 0));
    assert_eq!(info.duration.unwrap(), prost_types::Duration { seconds: 2, nanos: 200_000_000 });
    assert_eq!(answer.labels.len(), 5, "five labels unless asked otherwise");
    assert!(answer.segments.is_empty() && !answer.partial);
    assert!(answer.warnings.is_empty(), "{:?}", answer.warnings);
}

#[tokio::test]
async fn scores_are_the_mean_of_each_clips_softmax() {
    let answer = classify(proto::ClassificationOptions { top_k: Some(0), ..Default::default() }).await;

    let media = Media::new();
    let model = builtin::model().unwrap();
    let network = model.network(DType::F32, &Device::Cpu).unwrap();
    let table = model.spec.preprocessing.lookup_table();
    let mut expected = vec![0f64; model.spec.labels.len()];
    let mut clips = 0.0;
    let source = Source::Bytes(video(&media).into());
    decode_clips(&source, &model.spec.clip, &model.spec.preprocessing, &DecodeOptions::default(), |clip| {
        let values: Vec<f32> =
            (0..3).flat_map(|c| clip.rgb.iter().skip(c).step_by(3).map(move |&p| table[c][usize::from(p)])).collect();
        let input = Tensor::from_vec(values, (1, 3, 16, 112, 112), &Device::Cpu).unwrap();
        let logits = network.forward(&input).unwrap().swap_remove(0);
        let scores = candle_nn::ops::softmax(&logits, 1).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        expected.iter_mut().zip(scores).for_each(|(sum, score)| *sum += f64::from(score));
        clips += 1.0;
        ControlFlow::Continue(())
    })
    .unwrap();

    assert_eq!(answer.labels.len(), expected.len());
    for label in &answer.labels {
        // The engine may sum in another order than the reference network.
        let difference = (f64::from(label.score) - expected[label.index as usize] / clips).abs();
        assert!(difference < 1e-4, "{label:?} differs by {difference}");
    }
    assert!(answer.labels.is_sorted_by(|a, b| a.score >= b.score), "best first");
}

#[tokio::test]
async fn clip_segments_cover_the_video_without_gaps() {
    let options = proto::ClassificationOptions {
        segments: proto::SegmentMode::Clip.into(),
        top_k: Some(1),
        ..Default::default()
    };
    let answer = classify(options.clone()).await;
    let seconds = |time: &Option<prost_types::Duration>| {
        let time = time.unwrap();
        time.seconds as f64 + f64::from(time.nanos) / 1e9
    };
    let spans = |answer: &proto::VideoClassification| -> Vec<_> {
        answer.segments.iter().map(|segment| (seconds(&segment.start), seconds(&segment.end))).collect()
    };
    assert_eq!(spans(&answer), [(0.0, 0.64), (0.64, 1.28), (1.28, 1.92), (1.92, 2.2)]);
    assert!(answer.segments.iter().all(|segment| segment.clips == 1 && segment.labels.len() == 1));
    let every_other = classify(proto::ClassificationOptions { clip_stride: 2, ..options }).await;
    assert_eq!(spans(&every_other), [(0.0, 1.28), (1.28, 2.2)]);
}

#[tokio::test]
async fn clips_count_as_much_as_they_have_frames_if_asked_for() {
    let options = proto::ClassificationOptions {
        segments: proto::SegmentMode::Clip.into(),
        top_k: Some(0),
        weight_by_frames: true,
        ..Default::default()
    };
    let answer = classify(options).await;
    // 55 frames.
    let weights = [16.0, 16.0, 16.0, 7.0];
    for label in &answer.labels {
        let score = |segment: &proto::Segment| {
            let same = segment.labels.iter().find(|other| other.index == label.index).expect("all labels");
            f64::from(same.score)
        };
        let sum: f64 = answer.segments.iter().zip(weights).map(|(segment, weight)| weight * score(segment)).sum();
        assert!((f64::from(label.score) - sum / 55.0).abs() < 1e-6, "{label:?}, expected {}", sum / 55.0);
    }
}

#[tokio::test]
async fn merged_segments_join_neighbours() {
    let options = proto::ClassificationOptions { segments: proto::SegmentMode::Merged.into(), ..Default::default() };
    let answer = classify(options).await;
    assert_eq!(answer.segments.iter().map(|segment| segment.clips).sum::<u32>(), 4);
    let best = answer.segments.iter().map(|segment| segment.labels[0].index).collect::<Vec<_>>();
    assert!(best.windows(2).all(|pair| pair[0] != pair[1]), "{best:?}");
}

#[tokio::test]
async fn labels_under_the_threshold_are_left_out() {
    let options = proto::ClassificationOptions { score_threshold: 0.2, top_k: Some(0), ..Default::default() };
    let answer = classify(options).await;
    assert!(answer.labels.len() < 5 && answer.labels.iter().all(|label| label.score >= 0.2), "{:?}", answer.labels);
}

#[tokio::test]
async fn parts_of_a_video_are_classified_as_asked() {
    let merged = |options| proto::ClassificationOptions { segments: proto::SegmentMode::Clip.into(), ..options };
    let starts = |answer: &proto::VideoClassification| -> Vec<i64> {
        let start = |segment: &proto::Segment| segment.start.unwrap();
        answer.segments.iter().map(start).map(|at| at.seconds * 1000 + i64::from(at.nanos) / 1_000_000).collect()
    };
    let every_other = classify(merged(proto::ClassificationOptions { clip_stride: 2, ..Default::default() })).await;
    assert_eq!(starts(&every_other), [0, 1280]);
    let first = classify(merged(proto::ClassificationOptions { max_clips: 1, ..Default::default() })).await;
    assert_eq!(starts(&first), [0]);
    assert!(!first.partial, "it is what was asked for");
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let range = proto::ClassificationOptions { start: seconds(1), end: seconds(2), ..Default::default() };
    let second = classify(merged(range)).await;
    assert_eq!((starts(&second), second.video.unwrap().frames), (vec![1000, 1640], 25));
}

#[tokio::test]
async fn what_is_known_at_the_deadline_is_answered_if_asked_for() {
    let media = Media::new();
    let engine = slow_engine(Duration::from_millis(150));
    let server = Server::with_models(vec![engine], limits(), ServeOptions::default()).await;
    let options = proto::ClassificationOptions { partial_at_deadline: true, ..Default::default() };
    let request = proto::ClassifyVideoRequest { options: Some(options), ..request(video(&media)) };
    let mut request = Request::new(request);
    request.set_timeout(Duration::from_millis(500));
    let answer = server.client().await.classify_video(request).await.unwrap().into_inner().classification.unwrap();
    assert_eq!(answer.partial_reason(), proto::PartialReason::Deadline, "{}", answer.partial_detail);
    assert!(!answer.labels.is_empty());
    server.assert_nothing_left_behind().await;
}
