//! The formats of the field, each as its authors give it out; and how videos are divided where the data doesn't say. Files are
//! empty: only names are looked at.

use std::path::Path;
use std::time::Duration;

use kinetoscope::train::dataset::{
    DataSpec, Dataset, DatasetError, Example, LabelKind, LabelMode, SPLIT_FILE, Split, SplitRule,
};
use kinetoscope::video::TimeRange;

use crate::dataset::{files, folder, ids, labels, open, open_at, refusal};

fn spec(folder: &Path, annotations: &str) -> DataSpec {
    DataSpec::new(folder.join(annotations))
}

#[test]
fn json_of_kinetics_is_read_from_its_own_folder() {
    let json = r#"kinetics.json={
        "abc": {"annotations": {"label": "run", "segment": [3.0, 13.0]}, "duration": 10.0, "subset": "train", "url": "u"},
        "def": {"annotations": {"label": "walk", "segment": [0.0, 10.0]}, "duration": 10.0, "subset": "train", "url": "u"},
        "ghi": {"annotations": {"label": "walk", "segment": [0.0, 10.0]}, "duration": 10.0, "subset": "validate", "url": "u"},
        "jkl": {"duration": 10.0, "subset": "test", "url": "u"}}"#;
    let names = [json, "videos/abc_000003_000013.mp4", "videos/def.mp4", "videos/ghi.mp4"];
    let dataset = open_at(&names, "kinetics.json").expect("a dataset");
    assert_eq!(labels(&dataset, Split::Train), ["run", "walk"]);
    assert_eq!(files(&dataset.validation), ["ghi.mp4"]);
    assert_eq!(dataset.warnings, ["1 video(s) of kinetics.json have no label and are left out"]);
}

#[test]
fn variants_of_the_authors_json_are_read() {
    let json = r#"a.json={"database": {
        "one": {"subset": "train", "annotations": {"label": "b", "segment": [1, 50]}, "video_path": "/x/one"},
        "two": {"subset": "Train", "annotations": {"label": "a"}},
        "three": {"subset": "val", "annotations": {"label": "a"}}}}"#;
    let dataset = open_at(&[json, "b/one.mp4", "a/two.mp4", "a/three.mp4"], "a.json").expect("a dataset");
    assert_eq!(dataset.classes, ["a", "b"]);
    assert_eq!((dataset.train.len(), dataset.validation.len()), (2, 1));
}

#[test]
fn segments_with_two_labels_are_left_out_and_said() {
    let json = r#"an.json={"database": {"abc": {"subset": "training", "annotations": [
            {"segment": [1, 2], "label": "run"}, {"segment": [1, 2], "label": "walk"}, {"segment": [3, 4], "label": "run"}]},
        "def": {"subset": "training", "annotations": [{"segment": [1, 2], "label": "walk"}]},
        "ghi": {"subset": "validation", "annotations": [{"segment": [1, 2], "label": "walk"}]}}}"#;
    let dataset = open_at(&[json, "abc.mp4", "def.mp4", "ghi.mp4"], "an.json").expect("a dataset");
    assert_eq!(ids(&dataset.train), ["abc#2", "def#0"]);
    assert_eq!(
        dataset.warnings,
        ["2 segment(s) have more than one label and are left out; `train --loss bce` takes several labels"]
    );
}

#[test]
fn something_something_is_read() {
    let train = r#"something-something-v2-train.json=[
        {"id": "1", "label": "holding potato", "template": "Holding [something]", "placeholders": ["potato"]},
        {"id": "2", "label": "pushing cup", "template": "Pushing [something]", "placeholders": ["cup"]}]"#;
    let validation = r#"something-something-v2-validation.json=[
        {"id": "3", "label": "holding a pen", "template": "Holding [something]", "placeholders": ["a pen"]}]"#;
    let test = r#"something-something-v2-test.json=[{"id": "4"}]"#;
    let names = r#"something-something-v2-labels.json={"Holding something": "0", "Pushing something": "1"}"#;
    let all = [train, validation, test, names, "videos/1.webm", "videos/2.webm", "videos/3.webm", "videos/4.webm"];
    let dataset = open(&all).expect("a dataset");
    assert_eq!(dataset.classes, ["Holding something", "Pushing something"]);
    assert_eq!((ids(&dataset.train), ids(&dataset.validation)), (vec!["1", "2"], vec!["3"]));
}

#[test]
fn jester_is_read_as_folders_of_frames() {
    let all = [
        "jester-v1-train.csv=10;Drumming Fingers\n11;Swiping Left\n",
        "jester-v1-validation.csv=12;Swiping Left\n",
        "jester-v1-labels.csv=Drumming Fingers\nSwiping Left\n",
        "20bn-jester-v1/10/00001.jpg",
        "20bn-jester-v1/10/00002.jpg",
        "20bn-jester-v1/11/00001.jpg",
        "20bn-jester-v1/11/00002.jpg",
        "20bn-jester-v1/12/00001.jpg",
        "20bn-jester-v1/12/00002.jpg",
    ];
    let dataset = open(&all).expect("a dataset");
    assert_eq!(labels(&dataset, Split::Train), ["Drumming Fingers", "Swiping Left"]);
    assert_eq!(files(&dataset.validation), ["12"]);
}

/// The same data read so.
fn read_as(files: &[&str], labels: LabelMode) -> Result<Dataset, DatasetError> {
    let folder = folder(files);
    Dataset::open(&DataSpec { labels, ..DataSpec::new(folder.path()) })
}

/// Names and weights of an example's labels.
fn shown<'a>(dataset: &'a Dataset, example: &Example) -> Vec<(&'a str, f32)> {
    example.labels.iter().map(|label| (dataset.classes[label.class].as_str(), label.weight)).collect()
}

#[test]
fn videos_of_charades_show_several_actions_at_their_times() {
    let head = "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length\n";
    let train = format!(
        "Charades_v1_train.csv={head}A,s,k,6,7,Yes,x,o,d,c0 11.90 21.20;c1 0.00 12.60;c0 30.00 31.00,32\nC,s,k,6,7,Yes,x,o,d,c1 0.00 2.00,9\n"
    );
    let test = format!("Charades_v1_test.csv={head}B,s,k,6,7,Yes,x,o,d,c0 0.00 2.00,24\n");
    let videos = ["Charades_v1_480/A.mp4", "Charades_v1_480/B.mp4", "Charades_v1_480/C.mp4"];
    let dataset = open(&[&[train.as_str(), &test][..], &videos].concat()).expect("a dataset");
    assert_eq!(dataset.kind, LabelKind::Multi);
    assert_eq!((ids(&dataset.train), ids(&dataset.validation)), (vec!["A", "C"], vec!["B"]));
    let video = &dataset.train[0];
    assert_eq!((video.range, video.classes()), (TimeRange::ALL, vec![0, 1]));
    let range = |start, end| TimeRange { start: Duration::from_millis(start), end: Some(Duration::from_millis(end)) };
    let ranges: Vec<TimeRange> = video.labels.iter().map(|label| label.range).collect();
    assert_eq!(ranges, [range(11_900, 21_200), range(0, 12_600), range(30_000, 31_000)]);
}

#[test]
fn overlapping_segments_of_activitynet_are_one_video_where_it_may_show_several() {
    let json = r#"an.json={"database": {
        "abc": {"subset": "training", "annotations": [
            {"segment": [1, 2], "label": "run"}, {"segment": [1, 2], "label": "walk"}, {"segment": [3, 4], "label": "run"}]},
        "def": {"subset": "training", "annotations": [{"segment": [1, 2], "label": "walk"}]},
        "ghi": {"subset": "validation", "annotations": [{"segment": [1, 2], "label": "walk"}]}}}"#;
    let folder = folder(&[json, "abc.mp4", "def.mp4", "ghi.mp4"]);
    let spec = DataSpec { labels: LabelMode::Multi, ..DataSpec::new(folder.path().join("an.json")) };
    let dataset = Dataset::open(&spec).expect("a dataset");
    assert_eq!((ids(&dataset.train), dataset.train[0].labels.len()), (vec!["abc", "def"], 3));
    assert!(dataset.warnings.is_empty(), "{:?}", dataset.warnings);
}

#[test]
fn tables_may_list_several_labels_and_their_weights() {
    let videos = ["1.mp4", "2.mp4", "3.mp4"];
    let with = |table: &str| open(&[&[table][..], &videos].concat()).map_err(|error| error.to_string());
    for table in [
        "train.csv=path,labels\n1.mp4,run;jump\n2.mp4,jump\n3.mp4,run\n",
        "train.csv=path,tags\n1.mp4,run | jump\n2.mp4,jump\n3.mp4,run\n",
        r#"train.json=[{"path": "1.mp4", "labels": ["run", "jump"]}, {"path": "2.mp4", "labels": ["jump"]}, {"path": "3.mp4", "labels": ["run"]}]"#,
    ] {
        let dataset = with(table).expect("a dataset");
        let first =
            dataset.train.iter().chain(&dataset.validation).find(|example| example.id == "1.mp4").expect("a video");
        assert_eq!(
            (dataset.kind, shown(&dataset, first)),
            (LabelKind::Multi, vec![("run", 1.0), ("jump", 1.0)]),
            "{table}"
        );
    }
    let soft = "train.csv=path,labels\n1.mp4,run=0.7;jump=0.3\n2.mp4,jump\n3.mp4,run=0.5;jump=0.5\n";
    let dataset = with(soft).expect("a dataset");
    let first = dataset.train.iter().chain(&dataset.validation).find(|example| example.id == "1.mp4").expect("a video");
    assert_eq!((dataset.kind, shown(&dataset, first)), (LabelKind::Soft, vec![("run", 0.7), ("jump", 0.3)]));
    let uneven = soft.replace("0.5;", "0.9;");
    assert_eq!(with(&uneven).expect("a dataset").kind, LabelKind::Multi, "they do not add up to 1");
    let error = read_as(&[&uneven, "1.mp4", "2.mp4", "3.mp4"], LabelMode::Single).expect_err("weights").to_string();
    assert!(error.starts_with("weights of labels don't add up to 1: 3.mp4."), "{error}");
    let error = with("train.csv=path,labels\n1.mp4,run=7\n2.mp4,jump\n").expect_err("a weight");
    assert!(error.ends_with("train.csv:2: found the weight 7 of a label; allowed is 0 to 1"), "{error}");
}

#[test]
fn lists_may_have_several_numbers() {
    for list in ["train.txt=1.mp4 0 2\n2.mp4 1\n3.mp4 1 2\n", "train.txt=1.mp4,0,2\n2.mp4,1\n3.mp4,1,2\n"] {
        let dataset = open(&[list, "1.mp4", "2.mp4", "3.mp4"]).expect("a dataset");
        assert_eq!((dataset.kind, dataset.classes.len()), (LabelKind::Multi, 3));
    }
}

#[test]
fn actions_of_charades_are_examples_where_a_video_shows_one_class() {
    let head = "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length\n";
    let train = format!("Charades_v1_train.csv={head}A,s,k,6,7,Yes,\"a, b\",o,d,c092 11.90 21.20;c147 0.00 12.60,24\n");
    let test = format!("Charades_v1_test.csv={head}B,s,k,6,7,Yes,x,o,d,c092 0.00 2.00,24\nC,s,k,6,7,Yes,x,o,d,,24\n");
    let classes = "Charades_v1_classes.txt=c092 Watching a laptop\nc147 Sitting at a table\n";
    let files = [&train, &test, classes, "Charades_v1_480/A.mp4", "Charades_v1_480/B.mp4"];
    let dataset = read_as(&files, LabelMode::Single).expect("a dataset");
    assert_eq!(labels(&dataset, Split::Train), ["Watching a laptop", "Sitting at a table"]);
    let range = TimeRange { start: Duration::from_millis(11_900), end: Some(Duration::from_millis(21_200)) };
    assert_eq!(dataset.train[0].range, range);
    assert_eq!(ids(&dataset.validation), ["B#0"]);
}

#[test]
fn lists_of_paths_and_numbers_are_read_with_and_without_names() {
    for list in [
        "flat/1.mp4 0\nflat/2.mp4 1\nflat/3.mp4 1\n",
        "1.mp4,0\n2.mp4,1\n3.mp4,1\n",
        "flat/1 120 0\nflat/2 80 1\nflat/3 9 1\n",
    ] {
        let train = format!("k_train_list.txt={list}");
        let videos = ["videos/1.mp4", "videos/2.mp4", "videos/3.mp4"];
        let all = [&[train.as_str(), "k_val_list.txt=flat/4.mp4 1\n", "videos/4.mp4"][..], &videos].concat();
        let dataset = open(&all).expect("a dataset");
        assert_eq!(dataset.classes, ["0", "1"]);
        assert_eq!(labels(&dataset, Split::Train), ["0", "1", "1"], "{list}");
        assert_eq!(files(&dataset.validation), ["4.mp4"]);
        let named = [&all[..], &["label_map.txt=run\nwalk\n"]].concat();
        assert_eq!(labels(&open(&named).expect("a dataset"), Split::Train), ["run", "walk", "walk"]);
    }
}

#[test]
fn list_with_names_of_classes_is_read() {
    let list = "train.txt=my clips/1.mp4 riding a bike\nmy clips/2.mp4 walking\n";
    let dataset = open_at(&[list, "my clips/1.mp4", "my clips/2.mp4"], "train.txt").expect("a dataset");
    assert_eq!(dataset.classes, ["riding a bike", "walking"]);
}

#[test]
fn any_table_with_named_columns_is_read() {
    let videos = ["clips/1.mp4", "clips/2.mp4", "clips/3.mp4", "clips/4.mp4"];
    for table in [
        "t.csv=path,label,split\nclips/1.mp4,run,train\nclips/2.mp4,walk,train\nclips/3.mp4,run,val\n",
        "t.tsv=File Name\tClass\tSubset\n1\trun\ttraining\n2\twalk\ttraining\n3\trun\tvalidation\n",
        "t.csv=split;video;category\nTrain;/old/place/clips/1.avi;run\nTrain;/old/place/clips/2.avi;walk\nVal;/old/place/clips/3.avi;run\n",
        r#"t.json=[{"video": "1.mp4", "label": "run", "split": "train"}, {"video": "2.mp4", "label": "walk", "split": "train"}, {"video": "3.mp4", "label": "run", "split": "val"}]"#,
        "t.jsonl={\"video\": \"1.mp4\", \"label\": \"run\", \"split\": \"train\"}\n{\"video\": \"2.mp4\", \"label\": \"walk\", \"split\": \"train\"}\n{\"video\": \"3.mp4\", \"label\": \"run\", \"split\": \"val\"}\n",
    ] {
        let name = table.split_once('=').expect("a name").0;
        let dataset =
            open_at(&[&[table][..], &videos].concat(), name).unwrap_or_else(|error| panic!("{table}: {error}"));
        assert_eq!(
            (labels(&dataset, Split::Train), files(&dataset.validation)),
            (vec!["run", "walk"], vec!["3.mp4".to_owned()])
        );
    }
}

#[test]
fn columns_can_be_named_and_parts_given() {
    let table = "t.csv=clip,what,from,until\n1.mp4,run,0,1.5\n1.mp4,walk,2,\n2.mp4,walk,,\n3.mp4,run,,\n";
    let folder = folder(&[table, "1.mp4", "2.mp4", "3.mp4"]);
    let columns = Some("path=clip,label=what,start=from,end=until".parse().expect("columns"));
    let all = DataSpec { columns, validation_fraction: 0.0, ..spec(folder.path(), "t.csv") };
    let dataset = Dataset::open(&all).expect("a dataset");
    let ends: Vec<_> = dataset.train.iter().map(|example| example.range.end).collect();
    assert!(ends.contains(&Some(Duration::from_millis(1500))) && dataset.train.len() == 4, "{ends:?}");
    let columns = Some("path=clip,label=gesture".parse().expect("columns"));
    let error = Dataset::open(&DataSpec { columns, ..all }).expect_err("no such column").to_string();
    assert!(error.ends_with("there is no column \"gesture\"; there are clip, what, from, until"), "{error}");
}

#[test]
fn files_of_one_name_are_told_apart_by_their_folders() {
    let list = "t.csv=path,label\n/data/a/1.mp4,x\n/data/b/1.mp4,y\n/data/b/2.mp4,x\n/data/a/2.mp4,y\n";
    let folder = folder(&[list, "a/1.mp4", "b/1.mp4", "a/2.mp4", "b/2.mp4"]);
    let dataset =
        Dataset::open(&DataSpec { validation_fraction: 0.0, ..spec(folder.path(), "t.csv") }).expect("a dataset");
    for example in &dataset.train {
        assert!(
            example.id.ends_with(&*example.video.strip_prefix(folder.path()).expect("below").to_string_lossy()),
            "{example:?}"
        );
    }
}

#[test]
fn folder_of_several_formats_names_them() {
    let all = ["a.csv=path,label\n1.mp4,x\n2.mp4,y\n", "b.txt=1.mp4 0\n2.mp4 1\n", "videos/1.mp4", "videos/2.mp4"];
    assert_eq!(refusal(&all, ""), "DIR/ has annotations in 2 formats: a.csv, b.txt; --data names one of the files");
}

#[test]
fn layouts_that_are_clear_are_read() {
    let pair = |prefix: &str, number: u32| [format!("{prefix}/a/{number}.mp4"), format!("{prefix}/b/{number}.mp4")];
    let splits = |[train, val]: [&str; 2]| [pair(train, 1), pair(val, 2)].concat();
    for names in [
        splits(["Train", "Val"]),
        splits(["TRAINING", "TEST_SET"]),
        splits(["wrapper/train", "wrapper/valid"]),
        ["a/train/1.mp4", "b/train/1.mp4", "a/val/2.mp4", "b/val/2.mp4"].map(str::to_owned).to_vec(),
    ] {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let folder = folder(&names);
        let dataset =
            Dataset::open(&DataSpec { validation_fraction: 0.0, ..DataSpec::new(folder.path()) }).expect("a dataset");
        assert_eq!(
            (&dataset.classes[..], dataset.train.len()),
            (&["a".to_owned(), "b".to_owned()][..], 2),
            "{names:?}"
        );
        assert_eq!(dataset.validation.len() + dataset.test.len(), 2, "{names:?}");
    }
    let deeper =
        open(&["data/a/videos/1.mp4", "data/a/videos/2.mp4", "data/b/1.mp4", "data/b/2.mp4"]).expect("a dataset");
    assert_eq!((deeper.classes.len(), deeper.train.len() + deeper.validation.len()), (2, 4));
}

#[test]
fn frames_as_pictures_are_videos() {
    let frames = |video: &str| (1..=3).map(|i| format!("{video}/image_{i:05}.jpg")).collect::<Vec<_>>();
    let videos = ["run/v1", "run/v2", "walk/v3", "walk/v4"];
    let names: Vec<String> =
        videos.iter().flat_map(|video| frames(video)).chain(["run/v1/n_frames=3".to_owned()]).collect();
    let dataset = open(&names.iter().map(String::as_str).collect::<Vec<_>>()).expect("a dataset");
    assert_eq!(dataset.classes, ["run", "walk"]);
    assert_eq!(dataset.train.len() + dataset.validation.len(), 4);
    let error = refusal(&["run/1.jpg", "run/2.jpg", "walk/1.jpg", "walk/2.jpg"], "");
    assert!(error.contains("2 folder(s) of pictures, each taken for one video, without class folders"), "{error}");
    let error = refusal(&["run/x/1.jpg", "walk/y/1.jpg"], "");
    assert!(
        error.starts_with("no training videos of 2 classes: run, walk; ") && error.ends_with("found run/x/1.jpg"),
        "{error}"
    );
}

#[test]
fn roots_of_ucf101_and_hmdb51_are_read() {
    let ucf = [
        "ucfTrainTestlist/classInd.txt=1 Walk\n2 Archery\n",
        "ucfTrainTestlist/trainlist01.txt=Walk/v_Walk_g08_c01.avi 1\nArchery/v_Archery_g08_c01.avi 2\n",
        "ucfTrainTestlist/testlist01.txt=Walk/v_Walk_g01_c01.avi\n",
        "UCF-101/Walk/v_Walk_g08_c01.avi",
        "UCF-101/Archery/v_Archery_g08_c01.avi",
        "UCF-101/Walk/v_Walk_g01_c01.avi",
    ];
    let dataset = open(&ucf).expect("a dataset");
    assert_eq!((dataset.train.len(), ids(&dataset.validation)), (2, vec!["Walk/v_Walk_g01_c01"]));
    let hmdb = [
        "splits/wave_test_split1.txt=w1.avi 1 \nw2.avi 2 \n",
        "splits/run_test_split1.txt=r1.avi 1 \n",
        "org/wave/w1.avi",
        "org/wave/w2.avi",
        "org/run/r1.avi",
    ];
    assert_eq!(ids(&open(&hmdb).expect("a dataset").validation), ["wave/w2"]);
}

#[test]
fn level_of_folders_that_is_not_clear_is_said() {
    let error = refusal(&["sport/run/1.mp4", "sport/jump/2.mp4", "music/piano/3.mp4", "music/drums/4.mp4"], "");
    assert!(
        error.starts_with("videos are one folder deeper than in class folders, as drums, piano of music; if "),
        "{error}"
    );
}

#[test]
fn training_videos_alone_are_divided_and_that_is_said() {
    let names: Vec<String> = (0..20).map(|i| format!("train/{}/{i}.mp4", ["a", "b"][i % 2])).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).chain(["test/a/x.mp4", "test/b/y.mp4"]).collect();
    let dataset = open(&names).expect("a dataset");
    assert_eq!((dataset.train.len(), dataset.validation.len(), dataset.test.len()), (16, 4, 2));
    assert_eq!(
        dataset.warnings,
        [
            "the data names no validation videos: 4 of 20 training videos are set apart (--validation-fraction; 0 trains on all)"
        ]
    );
    let folder = folder(&names);
    let all = Dataset::open(&DataSpec { validation_fraction: 0.0, ..DataSpec::new(folder.path()) }).expect("a dataset");
    assert!(
        all.train.len() == 20 && all.warnings[0].starts_with("there are no validation videos: "),
        "{:?}",
        all.warnings
    );
}

#[test]
fn endings_of_names_do_not_divide_videos_otherwise() {
    let validation = |ending: &str, rule| {
        let names: Vec<String> = (0..30).map(|i| format!("{}/{i}.{ending}", ["run", "walk", "sit"][i % 3])).collect();
        let folder = folder(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let dataset = Dataset::open(&DataSpec { split_rule: rule, ..DataSpec::new(folder.path()) }).expect("a dataset");
        let stem = |id: &str| id.rsplit_once('.').expect("an ending").0.to_owned();
        dataset.validation.iter().map(|example| stem(&example.id)).collect::<Vec<_>>()
    };
    assert_eq!(validation("avi", SplitRule::Stem), validation("mp4", SplitRule::Stem));
    // As the first versions divided, which old runs depend on.
    assert_eq!(validation("mp4", SplitRule::FileName), OLD_SPLIT);
    assert_ne!(validation("avi", SplitRule::FileName), OLD_SPLIT);
}

/// By the rule of names, before there was another.
const OLD_SPLIT: [&str; 6] = ["run/0", "run/3", "sit/11", "sit/29", "walk/13", "walk/28"];

#[test]
fn written_split_is_obeyed() {
    let list = format!(
        "{SPLIT_FILE}=video,split\na/1.mp4,validation\na/2.mp4,train\na/3.mp4,train\nb/1.mp4,train\nb/2.avi,validation\n"
    );
    let dataset =
        open(&[&list, "a/1.mp4", "a/2.mp4", "a/3.mp4", "b/1.mp4", "b/2.mp4", "b/new.mp4"]).expect("a dataset");
    assert_eq!(ids(&dataset.validation), ["a/1.mp4", "b/2.mp4"], "whatever the ending");
    assert_eq!(dataset.train.len(), 4);
    assert!(dataset.warnings[0].starts_with("1 video(s) are not in "), "{:?}", dataset.warnings);
}

#[test]
fn parts_of_one_video_and_clips_of_one_recording_stay_together() {
    let rows: String = (0..20).map(|i| format!("{}.mp4,{},{i},{}\n", i / 2, ["x", "y"][i % 2], i + 1)).collect();
    let videos: Vec<String> = (0..10).map(|i| format!("{i}.mp4")).collect();
    let table = format!("t.csv=path,label,start,end\n{rows}");
    let names: Vec<&str> = [table.as_str()].into_iter().chain(videos.iter().map(String::as_str)).collect();
    let dataset = open_at(&names, "t.csv").expect("a dataset");
    let of = |split| files(dataset.split(split)).into_iter().collect::<std::collections::BTreeSet<_>>();
    assert!(!dataset.validation.is_empty() && of(Split::Train).is_disjoint(&of(Split::Validation)));

    let clip = |class: &str, i: usize| format!("{class}/v_{class}_g{:02}_c{:02}.avi", i / 4, i % 4);
    let names: Vec<String> = (0..20).flat_map(|i| [clip("Run", i), clip("Walk", i)]).collect();
    let dataset = open(&names.iter().map(String::as_str).collect::<Vec<_>>()).expect("a dataset");
    let recordings = |split| {
        ids(dataset.split(split))
            .iter()
            .map(|id| id[..id.len() - 8].to_owned())
            .collect::<std::collections::BTreeSet<_>>()
    };
    assert!(!dataset.validation.is_empty() && recordings(Split::Train).is_disjoint(&recordings(Split::Validation)));
}

#[test]
fn copies_in_two_splits_are_a_warning() {
    let same = |name: &str| format!("{name}=the same bytes");
    let names = [
        same("train/a/1.mp4"),
        "train/b/2.mp4=others here now".to_owned(),
        same("val/a/3.mp4"),
        "val/b/4.mp4=of the same len".to_owned(),
    ];
    let dataset = open(&names.iter().map(String::as_str).collect::<Vec<_>>()).expect("a dataset");
    assert_eq!(
        dataset.warnings,
        ["1 video(s) are in two splits, as copies of the same content: train/a/1.mp4 and val/a/3.mp4"]
    );
}
