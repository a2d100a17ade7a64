//! Every format of annotations, and what is wrong with some. Files are empty: only [`Dataset::check`] opens them.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kinetoscope::train::dataset::{CheckDepth, DataSpec, Dataset, DatasetError, Example, Finding, Split};
use kinetoscope::video::TimeRange;

use crate::media::Media;

/// A folder with these files, which are empty but where text is given after `=`.
pub(crate) fn folder(files: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary directory");
    for file in files {
        let (name, text) = file.split_once('=').unwrap_or((file, ""));
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
        if name.ends_with('/') {
            fs::create_dir(path).expect("a folder");
        } else {
            fs::write(path, text).expect("a file");
        }
    }
    folder
}

pub(crate) fn open(files: &[&str]) -> Result<Dataset, DatasetError> {
    open_at(files, "")
}

pub(crate) fn open_at(files: &[&str], annotations: &str) -> Result<Dataset, DatasetError> {
    let folder = folder(files);
    Dataset::open(&DataSpec::new(folder.path().join(annotations)))
}

pub(crate) fn refusal(files: &[&str], annotations: &str) -> String {
    let folder = folder(files);
    let error = Dataset::open(&DataSpec::new(folder.path().join(annotations))).expect_err("a refusal").to_string();
    error.replace(&folder.path().display().to_string(), "DIR")
}

pub(crate) fn ids(examples: &[Example]) -> Vec<&str> {
    examples.iter().map(|example| example.id.as_str()).collect()
}

/// Class names of a split's examples, in order.
pub(crate) fn labels(dataset: &Dataset, split: Split) -> Vec<&str> {
    dataset
        .split(split)
        .iter()
        .map(|example| dataset.classes[example.main_class().expect("a label")].as_str())
        .collect()
}

pub(crate) fn files(examples: &[Example]) -> Vec<String> {
    let name = |path: &Path| path.file_name().expect("a name").to_string_lossy().into_owned();
    examples.iter().map(|example| name(&example.video)).collect()
}

#[test]
fn class_folders_with_splits_are_read() {
    let names = ["train/b/1.mp4", "train/a/2.MKV", "train/a/notes.txt", "val/a/3.avi", "val/b/4.mp4", "test/b/5.webm"];
    let dataset = open(&names).expect("a dataset");
    assert_eq!(dataset.classes, ["a", "b"]);
    assert_eq!(ids(&dataset.train), ["train/a/2.MKV", "train/b/1.mp4"]);
    assert_eq!(labels(&dataset, Split::Train), ["a", "b"]);
    assert_eq!(ids(&dataset.validation), ["val/a/3.avi", "val/b/4.mp4"]);
    assert_eq!((ids(&dataset.test), labels(&dataset, Split::Test)), (vec!["test/b/5.webm"], vec!["b"]));
}

#[test]
fn class_folders_without_splits_are_divided_the_same_way_each_time() {
    let names: Vec<String> = (0..30).map(|i| format!("{}/{i}.mp4", ["run", "walk", "sit"][i % 3])).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (first, second) = (open(&names).expect("a dataset"), open(&names).expect("a dataset"));
    assert_eq!(ids(&first.validation), ids(&second.validation));
    for class in ["run", "walk", "sit"] {
        assert_eq!(labels(&first, Split::Validation).iter().filter(|&&label| label == class).count(), 2);
        assert_eq!(labels(&first, Split::Train).iter().filter(|&&label| label == class).count(), 8);
    }
    let folder = folder(&names);
    let all = DataSpec { validation_fraction: 0.0, ..DataSpec::new(folder.path()) };
    assert_eq!(Dataset::open(&all).expect("a dataset").train.len(), 30);
    let error = Dataset::open(&DataSpec { validation_fraction: 1.0, ..all }).expect_err("too much");
    assert_eq!(error.to_string(), "the validation fraction is 1; it is from 0 to less than 1");
}

#[test]
fn adding_a_video_moves_hardly_any_other_between_splits() {
    let names: Vec<String> = (0..100).map(|i| format!("{}/{i}.mp4", ["a", "b"][i % 2])).collect();
    let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
    let before = open(&names).expect("a dataset");
    names.push("a/new.mp4");
    let after = open(&names).expect("a dataset");
    let moved = before.validation.iter().filter(|example| !ids(&after.validation).contains(&example.id.as_str()));
    assert!(moved.count() <= 1);
}

#[test]
fn validation_folder_alone_can_be_evaluated() {
    let dataset = open(&["val/a/1.mp4", "val/b/2.mp4"]).expect("a dataset");
    assert_eq!((dataset.train.len(), dataset.validation.len()), (0, 2));
}

#[test]
fn list_of_classes_gives_their_order() {
    let folder = folder(&["data/a/1.mp4", "data/a/2.mp4", "data/b/3.mp4", "data/b/4.mp4", "classes.txt=1 b\n2 a\n"]);
    let spec =
        DataSpec { classes: Some(folder.path().join("classes.txt")), ..DataSpec::new(folder.path().join("data")) };
    assert_eq!(Dataset::open(&spec).expect("a dataset").classes, ["b", "a"]);
    fs::write(folder.path().join("classes.txt"), "b\nc\n").expect("a file");
    let error = Dataset::open(&spec).expect_err("a is not listed").to_string();
    assert!(
        error.starts_with("1 class of the annotations not in the list of classes") && error.ends_with(": a"),
        "{error}"
    );
}

const AUTHORS: &str = r#"authors.json={"labels": ["walk", "high jump"], "database": {
    "one": {"subset": "training", "annotations": {"label": "high jump"}},
    "two": {"subset": "training", "annotations": {"label": "walk", "segment": [1, 90]}},
    "three": {"subset": "validation", "annotations": {"label": "walk"}},
    "four": {"subset": "testing"},
    "gone": {"subset": "training", "annotations": {"label": "walk"}}}}"#;

#[test]
fn json_of_the_authors_code_is_read() {
    let names = [AUTHORS, "high jump/one.mp4", "walk/two.avi", "walk/three.mp4"];
    let dataset = open_at(&names, "authors.json").expect("a dataset");
    assert_eq!(dataset.classes, ["walk", "high jump"], "in the file's order");
    assert_eq!(labels(&dataset, Split::Train), ["high jump", "walk"]);
    assert_eq!((ids(&dataset.validation), dataset.test.len()), (vec!["three"], 0));
    assert_eq!(dataset.missing, ["gone.*"]);
    assert_eq!(dataset.warnings.len(), 2, "{:?}", dataset.warnings);
    assert_eq!(dataset.warnings[0], "1 video(s) of authors.json have no label and are left out");
    assert!(dataset.warnings[1].starts_with("1 of 4 annotated videos are not in "), "{:?}", dataset.warnings);
}

#[test]
fn videos_can_be_elsewhere_than_the_annotations() {
    let folder = folder(&[AUTHORS, "videos/high jump/one.mp4", "videos/walk/two.avi", "videos/walk/three.mp4"]);
    let spec = DataSpec {
        videos: Some(folder.path().join("videos/walk")),
        ..DataSpec::new(folder.path().join("authors.json"))
    };
    let error = Dataset::open(&spec).expect_err("one class is not there").to_string();
    assert!(
        error.starts_with("no training videos of 1 class: high jump; 2 of the annotated videos were not found"),
        "{error}"
    );
    let spec = DataSpec { videos: Some(folder.path().join("videos")), ..spec };
    assert_eq!(Dataset::open(&spec).expect("a dataset").root, folder.path().join("videos"));
}

#[test]
fn json_of_activitynet_gives_an_example_for_each_segment() {
    let json = r#"an.json={"version": "VERSION 1.3", "taxonomy": [], "database": {
        "abc": {"subset": "training", "duration": 82.7, "resolution": "320x240", "url": "u", "annotations": [
            {"segment": [6.5, 71.25], "label": "Archery"}, {"segment": [75, 80], "label": "Archery"},
            {"segment": [80, 80], "label": "Archery"}]},
        "def": {"subset": "training", "annotations": [{"segment": [0, 4], "label": "Zumba"}]},
        "ghi": {"subset": "validation", "annotations": [{"segment": [1, 4], "label": "Zumba"}]},
        "jkl": {"subset": "testing", "annotations": []}}}"#;
    let dataset = open_at(&[json, "v_abc.mp4", "def.mkv", "sub/v_ghi.webm"], "an.json").expect("a dataset");
    assert_eq!(dataset.classes, ["Archery", "Zumba"]);
    assert_eq!(ids(&dataset.train), ["abc#0", "abc#1", "def#0"]);
    let range = TimeRange { start: Duration::from_millis(6500), end: Some(Duration::from_millis(71250)) };
    assert_eq!(dataset.train[0].range, range);
    assert_eq!(files(&dataset.train), ["v_abc.mp4", "v_abc.mp4", "def.mkv"]);
    assert_eq!(dataset.validation.len(), 1);
    assert_eq!(dataset.warnings.len(), 2, "no label, no length: {:?}", dataset.warnings);
}

const KINETICS: &str = "label,youtube_id,time_start,time_end,split,is_cc\n\
    high jump,--a-b_c,84,94,train,0\n\
    \"throwing, ball\",xyz,0,10,train,0\n\
    high jump,val1,1,11,validate,1\n";

#[test]
fn csv_of_kinetics_is_read() {
    let table = format!("kinetics.csv={KINETICS}");
    let names = [&table, "train/high_jump/--a-b_c_000084_000094.mp4", "xyz.mkv", "val/val1_000001_000011.mp4"];
    let dataset = open_at(&names, "kinetics.csv").expect("a dataset");
    assert_eq!(dataset.classes, ["high jump", "throwing, ball"]);
    assert_eq!(ids(&dataset.train), ["--a-b_c_000084_000094", "xyz_000000_000010"]);
    assert_eq!(files(&dataset.train), ["--a-b_c_000084_000094.mp4", "xyz.mkv"]);
    assert_eq!(files(&dataset.validation), ["val1_000001_000011.mp4"]);
}

#[test]
fn folder_of_kinetics_tables_is_read_as_one() {
    let head = "label,youtube_id,time_start,time_end,split\n";
    let train = format!("train.csv={head}a,1,0,10,train\nb,2,0,10,train\n");
    let val = format!("validate.csv={head}a,3,0,10,val\n");
    let dataset = open(&[&train, &val, "a/1.mp4", "b/2.mp4", "a/3.mp4"]).expect("a dataset");
    assert_eq!((dataset.train.len(), dataset.validation.len()), (2, 1));
}

#[test]
fn file_below_the_folder_of_its_label_is_preferred() {
    let table = "k.csv=label,youtube_id,time_start,time_end,split\nhigh jump,1,0,10,train\nwalk,2,0,10,train\n";
    let dataset = open_at(&[table, "a/1.mp4", "high_jump/1.mp4", "z/1.mp4", "2.mp4"], "k.csv").expect("a dataset");
    assert!(dataset.train[0].video.ends_with("high_jump/1.mp4"), "{:?}", dataset.train[0].video);
}

const UCF: [&str; 6] = [
    "classInd.txt=1 Walk\r\n2 Archery\r\n",
    "trainlist01.txt=Walk/v_Walk_g08_c01.avi 1\r\nArchery/v_Archery_g08_c01.avi 2\r\n",
    "testlist01.txt=Walk/v_Walk_g01_c01.avi\r\n",
    "Walk/v_Walk_g08_c01.avi",
    "Archery/v_Archery_g08_c01.mp4",
    "Walk/v_Walk_g01_c01.avi",
];

#[test]
fn split_lists_of_ucf101_are_read() {
    for annotations in ["", "trainlist01.txt"] {
        let dataset = open_at(&UCF, annotations).expect("a dataset");
        assert_eq!(dataset.classes, ["Walk", "Archery"], "in the order of classInd.txt");
        assert_eq!(labels(&dataset, Split::Train), ["Walk", "Archery"]);
        assert_eq!(ids(&dataset.validation), ["Walk/v_Walk_g01_c01"]);
    }
    let folder = folder(&UCF);
    let error = Dataset::open(&DataSpec { split: 3, ..DataSpec::new(folder.path()) }).expect_err("no third split");
    assert!(error.to_string().contains("trainlist03.txt"), "{error}");
}

#[test]
fn number_of_another_class_is_refused_with_its_line() {
    let mut names = UCF;
    names[1] = "trainlist01.txt=Walk/v_Walk_g08_c01.avi 1\nArchery/v_Archery_g08_c01.avi 1\n";
    let error = refusal(&names, "");
    assert_eq!(error, "DIR/trainlist01.txt:2: class 1 is Walk in classInd.txt, but the video is of Archery");
}

#[test]
fn split_lists_of_hmdb51_are_read() {
    let names = [
        "wave_test_split1.txt=w1.avi 1 \nw2.avi 2 \nw3.avi 0 \n",
        "wave_test_split2.txt=w1.avi 2 \nw2.avi 1 \n",
        "brush_hair_test_split1.txt=b1.avi 1 \n",
        "wave/w1.avi",
        "wave/w2.avi",
        "wave/w3.avi",
        "brush_hair/b1.avi",
    ];
    let dataset = open(&names).expect("a dataset");
    assert_eq!(dataset.classes, ["brush_hair", "wave"]);
    assert_eq!(ids(&dataset.train), ["brush_hair/b1", "wave/w1"]);
    assert_eq!(ids(&dataset.validation), ["wave/w2"]);
    let folder = folder(&names);
    let error = Dataset::open(&DataSpec { split: 3, ..DataSpec::new(folder.path()) }).expect_err("no third split");
    assert!(error.to_string().ends_with("none of split 3 (CLASS_test_split3.txt)"), "{error}");
}

#[test]
fn class_without_videos_is_refused() {
    let error = refusal(&["a/1.mp4", "a/2.mp4", "b/", "c/notes.txt"], "");
    assert!(
        error.starts_with("no training videos of 2 classes: b, c; files that count as videos end in mp4, "),
        "{error}"
    );
}

#[test]
fn class_with_one_video_cannot_be_divided() {
    let error = refusal(&["a/1.mp4", "a/2.mp4", "b/1.mp4"], "");
    assert_eq!(error, "only one video of b; a class needs two, one to train on and one for validation");
}

#[test]
fn one_class_is_refused() {
    assert_eq!(refusal(&["a/1.mp4", "a/2.mp4"], ""), "found 1 class: a; at least two are needed to tell apart");
}

#[test]
fn splits_with_other_labels_are_refused() {
    let common = ["train/a/1.mp4", "train/b/2.mp4", "val/a/3.mp4"];
    let error = refusal(&[&common[..], &["val/B/4.mp4"]].concat(), "");
    assert_eq!(error, "labels differ: the validation split has 1 class: B, which the training split has not");
    let error = refusal(&common, "");
    assert_eq!(error, "no validation videos of 1 class: b; labels differ: the training split has them");
}

#[test]
fn annotations_without_any_of_their_files_are_refused() {
    let error = refusal(&[&format!("kinetics.csv={KINETICS}")], "kinetics.csv");
    let expected = "none of the 3 annotated videos was found in DIR, for example --a-b_c_000084_000094.* or --a-b_c.*; \
        --videos names their folder";
    assert_eq!(error, expected);
}

#[test]
fn duplicates_count_once_and_contradictions_are_refused() {
    let table =
        |rows: &str| format!("k.csv=label,youtube_id,time_start,time_end,split\na,1,0,9,train\nb,2,0,9,train\n{rows}");
    let with = |rows: &str| open_at(&[&table(rows), "1.mp4", "2.mp4"], "k.csv");
    let dataset = with("a,1,0,9,train\n").expect("a dataset");
    assert_eq!(dataset.train.len(), 2);
    assert_eq!(dataset.warnings[0], "1 example(s) are listed more than once; each counts once");
    let error = with("b,1,0,9,train\n").expect_err("two labels").to_string();
    assert_eq!(
        error,
        "labelled as more than one class: 1_000000_000009 (a, b). Models that are trained with --loss bce know several"
    );
    let error = with("a,1,0,9,val\n").expect_err("two splits").to_string();
    assert_eq!(error, "in more than one split: 1_000000_000009");
}

#[test]
fn broken_annotations_are_refused_with_their_line() {
    let error = refusal(&["k.csv=label,youtube_id,time_start,time_end,split\na,1,0,9,train\nb,2,x,9,train\n"], "k.csv");
    assert!(error.starts_with("DIR/k.csv:3: ") && error.contains("time_start") || error.contains("float"), "{error}");
    let error = refusal(&["k.csv=label,youtube_id,time_start,time_end,split\na,1,0,9,practice\n"], "k.csv");
    assert_eq!(error, "DIR/k.csv:2: found split \"practice\"; expected train, validate or test");
    let error = refusal(&["a.json={\"labels\": [\"a\",\n \"b\""], "a.json");
    assert!(error.starts_with("DIR/a.json:2: "), "{error}");
    let error =
        refusal(&[r#"a.json={"labels": [], "database": {"x": {"subset": "training", "annotations": 3}}}"#], "a.json");
    assert!(error.contains("annotations") || error.contains("expected struct"), "{error}");
}

#[test]
fn what_is_no_dataset_is_refused_with_what_it_is() {
    let found = |names: &[&str], annotations: &str| {
        let error = refusal(names, annotations);
        error
            .split_once("found ")
            .expect("what was found")
            .1
            .split_once("; expected a folder of")
            .expect("formats")
            .0
            .to_owned()
    };
    assert_eq!(found(&["x/"], "x"), "an empty folder");
    assert_eq!(found(&["1.mp4", "2.mp4"], ""), "2 video(s) without class folders");
    assert_eq!(found(&["notes.md"], ""), "a folder of 1 other file(s) such as notes.md");
    assert_eq!(found(&["1.mp4"], "1.mp4"), "a single video");
    assert_eq!(found(&["a.txt=hello\n"], "a.txt"), "a file that begins with \"hello\"");
    assert_eq!(found(&[r#"a.json={"images": 1, "rows": 2}"#], "a.json"), "JSON with the keys images, rows");
    assert!(refusal(&[], "gone").starts_with("can't read DIR/gone: "));
}

#[test]
fn check_lists_what_cannot_be_decoded() {
    let media = Media::new();
    fs::create_dir_all(media.path("a")).and_then(|()| fs::create_dir_all(media.path("b"))).expect("folders");
    for name in ["a/1.mp4", "a/2.mp4", "b/1.mp4"] {
        media.make(name, "-f lavfi -i testsrc2=size=64x48:rate=25 -frames:v 20 -c:v libx264 -pix_fmt yuv420p");
    }
    let broken = media.write("b/2.mp4", b"no video");
    let folder = media.path("a").parent().expect("a parent").to_owned();
    let dataset = Dataset::open(&DataSpec::new(folder)).expect("a dataset");
    for depth in [CheckDepth::Open, CheckDepth::Whole] {
        let most = AtomicUsize::new(0);
        let bad = dataset.check(depth, 2, |done| {
            most.fetch_max(done, Ordering::Relaxed);
        });
        assert_eq!(most.into_inner(), 4);
        assert_eq!(bad.len(), 1, "{bad:?}");
        let (split, Finding::Unreadable(unreadable)) = &bad[0] else { panic!("{bad:?}") };
        assert_eq!(unreadable.video, broken);
        assert_eq!(dataset.split(*split)[unreadable.example].video, broken);
    }
}

#[test]
fn check_counts_frames_against_what_the_container_promises() {
    let media = Media::new();
    fs::create_dir_all(media.path("a")).and_then(|()| fs::create_dir_all(media.path("b"))).expect("folders");
    let codec = "-c:v libx264 -pix_fmt yuv420p -g 10 -bf 0";
    for name in ["a/1.mp4", "a/2.mp4", "b/1.mp4", "b/2.mp4"] {
        media.make(name, &format!("-f lavfi -i testsrc2=size=160x120:rate=25 -frames:v 60 {codec}"));
    }
    // As two writers of one file leave it: the index is whole, the data after the first frames are another's.
    let mixed = media.path("b/2.mp4");
    let mut bytes = fs::read(&mixed).expect("a file");
    let data = bytes.windows(4).position(|name| name == b"mdat").expect("an MP4 has data") + 4;
    let index = bytes.windows(4).rposition(|name| name == b"moov").expect("an MP4 has an index");
    let (half, end) = ((data + index) / 2, index - 8);
    bytes[half..end].fill(0);
    fs::write(&mixed, bytes).expect("a file");
    let folder = media.path("a").parent().expect("a parent").to_owned();
    let dataset = Dataset::open(&DataSpec::new(folder)).expect("a dataset");
    assert_eq!(dataset.check(CheckDepth::Open, 1, |_| ()), [], "headers alone don't show it");
    let found = dataset.check(CheckDepth::Whole, 1, |_| ());
    let [(_, Finding::Incomplete { video, count, .. })] = &found[..] else { panic!("{found:?}") };
    assert_eq!((video, count.listed), (&mixed, Some(60)));
    assert!(count.decoded < 60 || count.partial.is_some(), "{count:?}");
}
