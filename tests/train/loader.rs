//! Batches of clips from real files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::Tensor;
use kinetoscope::model::spec::{ClipSpec, Preprocessing};
use kinetoscope::train::augment::{Augment, ColorJitter, TrainCrop};
use kinetoscope::train::dataset::{Example, Label};
use kinetoscope::train::loader::{Batch, Loader, LoaderError, LoaderOptions, Shard};
use kinetoscope::train::loss::Labels;
use kinetoscope::video::{Choice, Crop, DecodeOptions, Source, TimeRange, decode_chosen_clip};

use crate::media::{Media, decode, decode_with};

const CLIP: ClipSpec = ClipSpec { frames: 8, size: 32, temporal_stride: 1 };

/// H.264 with B frames and a key frame every 12 frames, at 25 frames a second.
fn video(media: &Media, name: &str, frames: usize) -> PathBuf {
    let args =
        format!("-f lavfi -i testsrc2=size=96x64:rate=25 -frames:v {frames} -c:v libx264 -g 12 -pix_fmt yuv420p");
    media.make(name, &args)
}

fn examples(videos: impl IntoIterator<Item = PathBuf>) -> Arc<[Example]> {
    let example = |(i, video): (usize, PathBuf)| Example::of_class(i.to_string(), video, i % 3, TimeRange::ALL);
    videos.into_iter().enumerate().map(example).collect()
}

/// Seven videos of 5 to 35 frames.
fn seven(media: &Media) -> Arc<[Example]> {
    examples((1..=7).map(|i| video(media, &format!("{i}.mp4"), i * 5)))
}

fn loader(examples: &Arc<[Example]>, options: LoaderOptions) -> Loader {
    Loader::new(Arc::clone(examples), CLIP, Preprocessing::AUTHORS_2018, options)
}

fn batches(loader: &Loader, epoch: u64, first: usize) -> Vec<Batch> {
    loader.epoch(epoch, first).map(|batch| batch.expect("a batch")).collect()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().and_then(|flat| flat.to_vec1()).expect("f32 on the CPU")
}

/// Of clips that show one class.
fn classes(batch: &Batch) -> Vec<u32> {
    match &batch.labels {
        Labels::Classes(classes) => classes.to_vec1().expect("labels"),
        Labels::Parts(parts) => panic!("clips show one class: {parts}"),
    }
}

fn assert_same(a: &[Batch], b: &[Batch]) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        assert_eq!(a.examples, b.examples);
        assert_eq!(classes(a), classes(b));
        assert!(values(&a.clips) == values(&b.clips), "pixels differ");
    }
}

fn order(batches: &[Batch]) -> Vec<usize> {
    batches.iter().flat_map(|batch| batch.examples.clone()).collect()
}

#[test]
fn batches_are_the_same_whatever_the_number_of_threads() {
    let media = Media::new();
    let examples = seven(&media);
    let color_jitter = Some(ColorJitter { brightness: 0.2, contrast: 0.2, saturation: 0.2 });
    for crop in [TrainCrop::CornerMultiScale, TrainCrop::RANDOM_RESIZED] {
        let augment = Augment { crop, color_jitter, ..Augment::PAPER };
        let with = |threads, prefetch_batches| {
            let options = LoaderOptions {
                threads,
                prefetch_batches,
                batch_size: 3,
                augment: augment.clone(),
                ..Default::default()
            };
            batches(&loader(&examples, options), 4, 0)
        };
        let one = with(1, 1);
        assert_same(&one, &with(4, 1));
        assert_same(&one, &with(3, 9));
    }
}

#[test]
fn epoch_begun_in_its_midst_goes_on_with_the_same_batches() {
    let media = Media::new();
    let loader = loader(&seven(&media), LoaderOptions { batch_size: 2, ..Default::default() });
    assert_same(&batches(&loader, 1, 0)[2..], &batches(&loader, 1, 2));
    assert!(batches(&loader, 1, 9).is_empty());
}

#[test]
fn every_epoch_shows_every_example_once_in_another_order() {
    let media = Media::new();
    let loader = loader(&seven(&media), LoaderOptions { batch_size: 4, ..Default::default() });
    assert_eq!(loader.batches_per_epoch(), 2);
    let orders: Vec<Vec<usize>> = (0..3).map(|epoch| order(&batches(&loader, epoch, 0))).collect();
    for order in &orders {
        assert_eq!(order.iter().collect::<BTreeSet<_>>().len(), 7, "{order:?}");
    }
    assert!(orders[0] != orders[1] && orders[1] != orders[2], "{orders:?}");
}

#[test]
fn balanced_epochs_show_as_many_examples_of_each_class() {
    let media = Media::new();
    let mut examples = seven(&media).to_vec();
    // Six of one class, one of another.
    for (place, example) in examples.iter_mut().enumerate() {
        example.labels = vec![Label::of(usize::from(place == 3))];
    }
    let examples: Arc<[Example]> = examples.into();
    let loader = loader(&examples, LoaderOptions { batch_size: 7, balanced: true, ..Default::default() });
    let mut rare_counts = BTreeSet::new();
    let mut seen = BTreeSet::new();
    for epoch in 0..8 {
        let order = order(&batches(&loader, epoch, 0));
        rare_counts.insert(order.iter().filter(|&&example| example == 3).count());
        seen.extend(order);
    }
    assert_eq!(rare_counts, [3, 4].into(), "of seven clips, half but for one");
    assert_eq!(seen.len(), 7, "over the epochs, all examples are seen");
    assert_same(&batches(&loader, 5, 0), &batches(&loader, 5, 0));
}

#[test]
fn batch_has_shape_labels_and_normalised_pixels() {
    let media = Media::new();
    let examples = seven(&media);
    let loader = loader(&examples, LoaderOptions { batch_size: 4, augment: Augment::NONE, ..Default::default() });
    let batches = batches(&loader, 0, 0);
    assert_eq!(
        batches.iter().map(|batch| batch.clips.dims().to_vec()).collect::<Vec<_>>(),
        [[4, 3, 8, 32, 32], [3, 3, 8, 32, 32]]
    );
    assert_eq!(order(&batches), [0, 1, 2, 3, 4, 5, 6], "validation goes in order");
    assert_eq!(classes(&batches[1]), [1, 2, 0]);
    // Pixel by pixel what decoding gives, by the model's preprocessing.
    let choose = |_| Choice { first_frame: 14, crop: Crop::Center };
    let source = Source::Path(examples[6].video.clone());
    let clip = decode_chosen_clip(&source, &CLIP, &Preprocessing::AUTHORS_2018, &DecodeOptions::default(), choose);
    let rgb = clip.expect("a good video").rgb;
    let mean = Preprocessing::AUTHORS_2018.mean;
    let expected =
        (0..3).flat_map(|channel| rgb.iter().skip(channel).step_by(3).map(move |&p| f32::from(p) - mean[channel]));
    assert!(values(&batches[1].clips.get(2).expect("the third clip")) == expected.collect::<Vec<f32>>());
}

#[test]
fn flipped_clip_is_the_mirror_image() {
    let media = Media::new();
    let examples = examples([video(&media, "a.mp4", 8), video(&media, "b.mp4", 8)]);
    let with = |flip| {
        let augment = Augment { crop: TrainCrop::Center, flip, ..Augment::PAPER };
        let loader = loader(&examples, LoaderOptions { batch_size: 2, augment, ..Default::default() });
        (0..8).flat_map(|epoch| batches(&loader, epoch, 0)).collect::<Vec<_>>()
    };
    let mut mirrored = 0;
    for (plain, flipped) in with(false).iter().zip(&with(true)) {
        for clip in 0..2 {
            let [plain, flipped] = [plain, flipped].map(|batch| batch.clips.get(clip).expect("a clip"));
            let back: Vec<f32> = values(&plain).chunks(32).flat_map(|row| row.iter().rev().copied()).collect();
            if values(&flipped) == back {
                mirrored += 1;
            } else {
                assert!(values(&flipped) == values(&plain));
            }
        }
    }
    assert!((2..=14).contains(&mirrored), "{mirrored} of 16 were mirrored");
}

#[test]
fn shards_share_the_examples_and_have_equally_many_batches() {
    let media = Media::new();
    let examples = seven(&media);
    let with = |world_size, drop_last| -> Vec<Vec<Batch>> {
        let shard = |rank| Shard { rank, world_size };
        let options = |rank| LoaderOptions { batch_size: 2, shard: shard(rank), drop_last, ..Default::default() };
        (0..world_size).map(|rank| batches(&loader(&examples, options(rank)), 0, 0)).collect()
    };
    let alone = order(&with(1, false)[0]);
    let three = with(3, false);
    assert!(three.iter().all(|shard| shard.len() == 2), "three examples each, in two batches");
    let together: Vec<usize> = (0..9).map(|position| order(&three[position % 3])[position / 3]).collect();
    assert_eq!(together, [alone.clone(), alone[..2].to_vec()].concat(), "two are seen twice");
    let three = with(3, true);
    assert!(three.iter().all(|shard| shard.len() == 1 && shard[0].examples.len() == 2));
    let seen: BTreeSet<usize> = three.iter().flat_map(|shard| order(shard)).collect();
    assert_eq!(seen.len(), 6, "nothing twice");
}

#[test]
fn unreadable_video_is_replaced_and_listed() {
    let media = Media::new();
    let good: Vec<PathBuf> = (0..4).map(|i| video(&media, &format!("{i}.mp4"), 20)).collect();
    let broken = media.write("broken.mp4", b"not a video at all");
    let gone = media.path("gone.mp4");
    let examples = examples([good, vec![broken.clone(), gone.clone()]].concat());
    let with = |threads| {
        let patience = Duration::ZERO;
        let loader = loader(&examples, LoaderOptions { batch_size: 6, threads, patience, ..Default::default() });
        let batches = [batches(&loader, 0, 0), batches(&loader, 1, 0)].concat();
        let unreadable = loader.unreadable();
        (batches, unreadable.into_iter().map(|unreadable| (unreadable.example, unreadable.video)).collect::<Vec<_>>())
    };
    let (batches, unreadable) = with(1);
    assert_eq!(unreadable, [(4, broken), (5, gone)]);
    for batch in &batches {
        assert_eq!(batch.examples.len(), 6);
        assert!((0..4).all(|good| batch.examples.contains(&good)) && batch.examples.iter().all(|&example| example < 4));
        let labels: Vec<u32> = batch.examples.iter().map(|&example| example as u32 % 3).collect();
        assert_eq!(classes(batch), labels, "labels are those of the substitutes");
    }
    let (again, _) = with(4);
    assert_same(&batches, &again);
}

#[test]
fn file_that_is_away_for_a_while_is_waited_for() {
    let media = Media::new();
    let examples = seven(&media);
    let loader = loader(&examples, LoaderOptions { batch_size: 7, threads: 3, ..Default::default() });
    let expected = batches(&loader, 0, 0);
    let away: Vec<PathBuf> = examples.iter().map(|example| example.video.with_extension("away")).collect();
    for (example, away) in examples.iter().zip(&away) {
        std::fs::rename(&example.video, away).expect("a file");
    }
    let begin = Instant::now();
    let batches = std::thread::scope(|scope| {
        let loading = scope.spawn(|| batches(&loader, 0, 0));
        // Once each thread has met a file that is away, and waits.
        while begin.elapsed() < Duration::from_millis(300) {
            std::thread::sleep(Duration::from_millis(10));
        }
        for (example, away) in examples.iter().zip(&away) {
            std::fs::rename(away, &example.video).expect("a file");
        }
        loading.join().expect("no panic")
    });
    assert_same(&batches, &expected);
    assert_eq!(loader.unreadable(), [], "nothing is remembered");
}

#[test]
fn data_that_stays_away_is_an_error_that_says_so() {
    let media = Media::new();
    let examples = examples((0..4).map(|i| media.path(&format!("{i}.mp4"))));
    let patience = Duration::from_millis(200);
    let loader = loader(&examples, LoaderOptions { batch_size: 2, patience, ..Default::default() });
    let mut epoch = loader.epoch(0, 0);
    let begin = Instant::now();
    let Some(Err(error @ LoaderError::Unavailable { .. })) = epoch.next() else { panic!("an error was expected") };
    assert!(begin.elapsed() >= patience, "{error}");
    assert!(error.to_string().contains("can't be read") && error.to_string().contains("No such file"), "{error}");
}

#[test]
fn file_that_stays_away_is_tried_again_in_the_next_epoch() {
    let media = Media::new();
    let examples = seven(&media);
    let (video, away) = (&examples[3].video, media.path("away"));
    std::fs::rename(video, &away).expect("a file");
    let options = LoaderOptions { batch_size: 7, patience: Duration::from_millis(50), ..Default::default() };
    let loader = loader(&examples, options);
    assert!(!order(&batches(&loader, 0, 0)).contains(&3));
    assert_eq!(loader.unreadable().len(), 1);
    std::fs::rename(&away, video).expect("a file");
    assert!(order(&batches(&loader, 1, 0)).contains(&3));
    assert_eq!(loader.unreadable(), []);
}

#[test]
fn validation_leaves_out_what_cannot_be_decoded() {
    let media = Media::new();
    let broken = |name: &str| media.write(name, b"not a video at all");
    let good: Vec<PathBuf> = (0..3).map(|i| video(&media, &format!("{i}.mp4"), 20)).collect();
    let [a, b, c] = good.try_into().expect("three");
    let examples = examples([a, broken("x.mp4"), broken("y.mp4"), broken("z.mp4"), b, c]);
    let options = LoaderOptions { batch_size: 2, augment: Augment::NONE, ..Default::default() };
    let loader = loader(&examples, options);
    let batches = batches(&loader, 0, 0);
    assert_eq!(batches.iter().map(|batch| batch.examples.clone()).collect::<Vec<_>>(), [vec![0], vec![4, 5]]);
    assert_eq!(loader.unreadable().len(), 3);
}

#[test]
fn frames_as_pictures_are_loaded_as_their_video_is() {
    let media = Media::new();
    for folder in ["png", "jpg", "flow"] {
        std::fs::create_dir(media.path(folder)).expect("a folder");
    }
    let source = "-f lavfi -i testsrc2=size=96x64:rate=25 -frames:v 120";
    let whole = media.make("a.mkv", &format!("{source} -c:v png -pix_fmt rgb24"));
    media.make("png/image_%05d.png", &format!("{source} -pix_fmt rgb24"));
    media.make("jpg/%d.jpg", &format!("{source} -q:v 2"));
    media.make("flow/flow_x_%05d.jpg", source);
    media.make("flow/img_%05d.jpg", &format!("{source} -q:v 2"));
    let with = |video: PathBuf| {
        let loader = loader(&examples([video]), LoaderOptions { batch_size: 1, ..Default::default() });
        (0..4).map(|epoch| values(&batches(&loader, epoch, 0)[0].clips)).collect::<Vec<_>>()
    };
    assert!(with(whole) == with(media.path("png")), "pixels differ");
    // The same pictures in another container.
    let copy = format!("-framerate 25 -i {}/%d.jpg -c copy", media.path("jpg").display());
    let expected = with(media.make("jpg.mkv", &copy));
    for folder in ["jpg", "flow"] {
        assert!(expected == with(media.path(folder)), "{folder}: pixels differ");
    }
}

#[test]
fn nothing_readable_is_an_error_and_not_a_hang() {
    let media = Media::new();
    let examples = examples((0..40).map(|i| media.write(&format!("{i}.mp4"), b"nothing")));
    let loader = loader(&examples, LoaderOptions { threads: 3, ..Default::default() });
    let mut epoch = loader.epoch(0, 0);
    let Some(Err(error @ LoaderError::NothingReadable { .. })) = epoch.next() else { panic!("an error was expected") };
    assert!(error.to_string().starts_with("none of 40 videos can be decoded"), "{error}");
    assert!(epoch.next().is_none());
    assert_eq!(loader.unreadable().len(), 40);
}

#[test]
fn no_examples_make_no_batches() {
    let loader = loader(&examples([]), LoaderOptions::default());
    assert_eq!((loader.batches_per_epoch(), loader.epoch(0, 0).count()), (0, 0));
}

#[test]
fn dropped_epoch_ends_at_once() {
    let media = Media::new();
    let loader = loader(&seven(&media), LoaderOptions { batch_size: 1, prefetch_batches: 1, ..Default::default() });
    let mut epoch = loader.epoch(0, 0);
    epoch.next().expect("a batch").expect("a good one");
    let begin = Instant::now();
    drop(epoch);
    assert!(begin.elapsed() < Duration::from_secs(5));
}

#[test]
fn waiting_is_counted() {
    let media = Media::new();
    let loader = loader(&seven(&media), LoaderOptions { batch_size: 7, ..Default::default() });
    assert_eq!(loader.waited(), Duration::ZERO);
    batches(&loader, 0, 0);
    assert!(loader.waited() > Duration::ZERO);
}

/// All frames of a file, as clips of one frame.
fn all_frames(path: &Path, range: TimeRange) -> Vec<Vec<u8>> {
    let one = ClipSpec { frames: 1, ..CLIP };
    let options = DecodeOptions { range, ..Default::default() };
    let mut frames = Vec::new();
    kinetoscope::video::decode_clips(
        &Source::Path(path.into()),
        &one,
        &Preprocessing::AUTHORS_2018,
        &options,
        |clip| {
            frames.push(clip.rgb);
            std::ops::ControlFlow::Continue(())
        },
    )
    .expect("a good video");
    frames
}

#[test]
fn chosen_clip_begins_at_its_frame_in_every_container() {
    let media = Media::new();
    let source = "-f lavfi -i testsrc2=size=96x64:rate=25 -frames:v 40";
    let part = TimeRange { start: Duration::from_millis(410), end: Some(Duration::from_millis(1300)) };
    for (name, codec) in [
        ("a.mp4", "-c:v libx264 -g 12 -bf 3 -pix_fmt yuv420p"),
        ("a.mkv", "-c:v libx264 -g 250 -pix_fmt yuv420p"),
        ("a.webm", "-c:v libvpx -g 10"),
        ("a.avi", "-c:v mpeg4 -bf 2 -g 12"),
        ("a.ts", "-c:v libx264 -g 12 -pix_fmt yuv420p"),
    ] {
        let path = media.make(name, &format!("{source} {codec}"));
        for range in [TimeRange::ALL, part] {
            let frames = all_frames(&path, range);
            for (first_frame, stride) in [(0, 1), (1, 1), (11, 1), (frames.len() - 8, 1), (frames.len() - 3, 1), (5, 2)]
            {
                let spec = ClipSpec { temporal_stride: stride, ..CLIP };
                let choose = |extent: kinetoscope::video::Extent| {
                    assert_eq!((extent.frames, extent.width, extent.height), (frames.len() as u64, 96, 64), "{name}");
                    Choice { first_frame: first_frame as u64, crop: Crop::Center }
                };
                let options = DecodeOptions { range, ..Default::default() };
                let source = Source::Path(path.clone());
                let clip = decode_chosen_clip(&source, &spec, &Preprocessing::AUTHORS_2018, &options, choose)
                    .expect("a good video");
                let shown: Vec<&Vec<u8>> = frames.iter().skip(first_frame).step_by(stride).take(8).collect();
                assert_eq!(clip.frames, shown.len(), "{name} from {first_frame}");
                let looped: Vec<u8> = shown.iter().cycle().take(8).flat_map(|frame| frame.iter().copied()).collect();
                assert!(clip.rgb == looped, "{name} from {first_frame}, every {stride}, {range:?}");
            }
        }
    }
}

#[test]
fn choice_beyond_the_end_takes_the_last_frame() {
    let media = Media::new();
    let path = video(&media, "a.mp4", 10);
    let choose = |_| Choice { first_frame: 99, crop: Crop::Center };
    let source = Source::Path(path);
    let clip = decode_chosen_clip(&source, &CLIP, &Preprocessing::AUTHORS_2018, &DecodeOptions::default(), choose);
    assert_eq!(clip.expect("a good video").frames, 1);
}

#[test]
fn box_is_the_part_of_the_frame_that_it_says() {
    let media = Media::new();
    // Red at the left, green at the top right, blue at the bottom right.
    let filter = "color=red:size=96x64:rate=25,drawbox=x=48:y=0:w=48:h=32:color=lime:t=fill,drawbox=x=48:y=32:w=48:h=32:color=blue:t=fill";
    let path = media.make("a.mp4", &format!("-f lavfi -i {filter} -frames:v 2 -c:v libx264 -crf 1 -pix_fmt yuv444p"));
    let options = |crop| DecodeOptions { crop, ..Default::default() };
    let whole = Crop::Box { left: 0.0, top: 0.0, width: 1.0, height: 1.0 };
    let top_right = Crop::Box { left: 0.55, top: 0.05, width: 0.4, height: 0.4 };
    let bottom_right = Crop::Box { left: 0.55, top: 0.55, width: 0.4, height: 0.4 };
    let pixel = |crop, x: usize, y: usize| {
        let (clips, _) =
            decode_with(&Source::Path(path.clone()), &Preprocessing::AUTHORS_2018, &options(crop)).expect("good");
        let brightest = clips[0].rgb[(y * 112 + x) * 3..][..3].iter().enumerate().max_by_key(|(_, value)| **value);
        brightest.expect("three").0
    };
    assert_eq!([(20, 20), (90, 20), (90, 90)].map(|(x, y)| pixel(whole, x, y)), [0, 1, 2]);
    assert_eq!([(3, 3), (108, 108)].map(|(x, y)| pixel(top_right, x, y)), [1, 1]);
    assert_eq!([(3, 3), (108, 108)].map(|(x, y)| pixel(bottom_right, x, y)), [2, 2]);
    assert!(decode(&path).is_ok());
}

#[test]
fn clip_of_several_labels_shows_those_of_its_time() {
    let media = Media::new();
    // Two seconds; the first clip is of frames 0 to 7, the middle one of 21 to 28.
    let video = video(&media, "two-seconds.mp4", 50);
    let during = |start: f64, end: f64| TimeRange {
        start: Duration::from_secs_f64(start),
        end: Some(Duration::from_secs_f64(end)),
    };
    let label = |class, weight, range| Label { class, weight, range };
    let example = Example {
        id: "a".to_owned(),
        video,
        labels: vec![
            label(0, 1.0, during(0.0, 0.8)),
            label(1, 1.0, during(0.9, 1.5)),
            label(2, 0.5, TimeRange::ALL),
            label(3, 1.0, during(1.3, 2.0)),
        ],
        range: TimeRange::ALL,
    };
    let options = LoaderOptions { augment: Augment::NONE, parts_of: Some(5), ..LoaderOptions::default() };
    let batches = batches(&loader(&Arc::from([example]), options), 0, 0);
    let Labels::Parts(parts) = &batches[0].labels else { panic!("parts") };
    assert_eq!(parts.to_vec2::<f32>().expect("rows"), [[0.0, 1.0, 0.5, 0.0, 0.0]]);
}
