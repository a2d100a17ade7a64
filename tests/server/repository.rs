//! Models come and go while the server serves.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kinetoscope::client::{Client, Connection};
use kinetoscope::engine::{Devices, Engine};
use kinetoscope::hub::HubOptions;
use kinetoscope::metrics::Metrics;
use kinetoscope::model::spec::{ClipSpec, ModelSpec};
use kinetoscope::model::{builtin, init};
use kinetoscope::repository::{Repository, RepositoryError, RepositoryOptions};
use kinetoscope::server::ServeOptions;
use kinetoscope::{oip, proto};
use tonic::Code;

use crate::cli::{Serving, run, text};
use crate::inference;
use crate::media::Media;
use crate::support::{Server, engine_config, limits, reason, request};

/// A model file, in the directories that it needs. Of tiny clips, so that it starts at once.
pub(crate) fn write(path: &Path, name: &str, version: &str) {
    let spec = builtin::spec();
    let spec = ModelSpec {
        name: name.to_owned(),
        version: version.to_owned(),
        trained: false,
        architecture: spec.architecture.with_setting("widen_factor", "0.125").unwrap(),
        clip: ClipSpec { frames: 4, size: 32, temporal_stride: 1 },
        ..spec
    };
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    init::initialise(spec, 1).unwrap().write(path).unwrap();
}

fn options(path: &Path) -> RepositoryOptions {
    RepositoryOptions {
        sources: vec![path.to_owned().into()],
        hub: HubOptions::default(),
        engine: engine_config(),
        devices: Devices::Cpu,
        max_bytes: u64::MAX,
    }
}

fn open(options: RepositoryOptions) -> Result<Repository, RepositoryError> {
    Repository::open(options, Arc::<Metrics>::default())
}

/// Names and versions in order.
fn ids(repository: &Repository) -> Vec<(String, String)> {
    let served = repository.served();
    served.engines().map(|engine| (engine.spec().name.clone(), engine.spec().version.clone())).collect()
}

fn id(name: &str, version: &str) -> (String, String) {
    (name.to_owned(), version.to_owned())
}

fn video(media: &Media) -> Vec<u8> {
    std::fs::read(media.make("v.mp4", "-f lavfi -i testsrc2=size=64x64:rate=25 -t 0.5 -pix_fmt yuv420p")).unwrap()
}

#[test]
fn a_directory_holds_files_and_versions_the_newest_first() {
    let media = Media::new();
    let models = media.path("models");
    write(&models.join("zoo.safetensors"), "zoo", "2026-11");
    for version in ["9", "10"] {
        write(&models.join("actions").join(version).join("model.safetensors"), "as-trained", "1");
    }
    write(&models.join(".new.safetensors"), "half-written", "1");
    std::fs::write(models.join("README.md"), "no model").unwrap();
    let expected = [id("actions", "10"), id("actions", "9"), id("zoo", "2026-11")];
    assert_eq!(ids(&open(options(&models)).unwrap()), expected);

    // One that was given by itself comes before what comes after it.
    let first = media.path("first.safetensors");
    write(&first, "first", "1");
    let sources = vec![first.into(), models.clone().into()];
    let repository = open(RepositoryOptions { sources, ..options(&models) }).unwrap();
    assert_eq!(ids(&repository)[0], id("first", "1"));
    assert_eq!(ids(&repository)[1..], expected);
}

#[test]
fn what_cannot_be_served_is_told_at_the_start() {
    let media = Media::new();
    let models = media.path("models");
    std::fs::create_dir_all(&models).unwrap();
    assert!(matches!(open(options(&models)), Err(RepositoryError::Empty)));
    let missing = media.path("missing");
    assert!(matches!(open(options(&missing)), Err(RepositoryError::Io { .. })));

    // Beside a good model a bad one in a directory is refused alone; one that was given by itself is not overlooked.
    write(&models.join("good.safetensors"), "good", "1");
    let bad = models.join("broken/1/model.safetensors");
    std::fs::create_dir_all(bad.parent().unwrap()).unwrap();
    std::fs::write(&bad, b"not a model").unwrap();
    std::fs::create_dir_all(models.join("empty/1")).unwrap();
    write(&models.join("twin.safetensors"), "good", "1");
    let repository = open(options(&models)).unwrap();
    assert_eq!(ids(&repository), [id("good", "1")]);
    let served = repository.served();
    let refused: Vec<_> = served.refused.iter().map(|file| (file.name.as_str(), file.version.as_str())).collect();
    assert_eq!(refused, [("empty", "1"), ("broken", "1"), ("twin.safetensors", "")]);
    let host = media.path("");
    assert!(served.refused.iter().all(|file| !file.reason.contains(host.to_str().unwrap())), "{:?}", served.refused);
    let sources = vec![models.join("good.safetensors").into(), bad.into()];
    let refused = open(RepositoryOptions { sources, ..options(&models) }).unwrap_err();
    assert!(matches!(&refused, RepositoryError::File { path, .. } if path.ends_with("broken/1/model.safetensors")));

    let checked = run(&["serve", "--check", "--model", models.to_str().unwrap()]);
    assert!(!checked.status.success() && text(&checked.stderr).contains("empty"), "{checked:?}");
}

#[test]
fn memory_for_models_is_limited() {
    let media = Media::new();
    let models = media.path("models");
    write(&models.join("a.safetensors"), "a", "1");
    let one = open(options(&models)).unwrap().served().engines().next().unwrap().memory_bytes();
    assert!(one > 0);
    write(&models.join("b.safetensors"), "b", "1");
    let limited = RepositoryOptions { max_bytes: one * 3 / 2, ..options(&models) };
    let repository = open(limited).unwrap();
    assert_eq!(ids(&repository), [id("a", "1")]);
    assert!(repository.served().refused[0].reason.contains("bytes"), "{:?}", repository.served().refused);
}

#[test]
fn a_look_finds_what_is_new_changed_and_gone() {
    let media = Media::new();
    let models = media.path("models");
    write(&models.join("a.safetensors"), "a", "1");
    write(&models.join("b.safetensors"), "b", "1");
    let repository = open(options(&models)).unwrap();
    let a = Arc::clone(repository.served().find("a", "").unwrap());

    write(&models.join("b.safetensors"), "b", "2");
    write(&models.join("c.safetensors"), "c", "1");
    repository.refresh().unwrap();
    assert_eq!(ids(&repository), [id("a", "1"), id("b", "2"), id("c", "1")]);
    assert!(Arc::ptr_eq(&a, repository.served().find("a", "").unwrap()), "what is unchanged goes on");

    std::fs::remove_file(models.join("b.safetensors")).unwrap();
    std::fs::write(models.join("c.safetensors"), b"broken").unwrap();
    assert!(matches!(repository.refresh(), Err(RepositoryError::File { .. })));
    assert_eq!(ids(&repository), [id("a", "1"), id("c", "1")], "the good one goes on");
    assert_eq!(repository.served().refused.len(), 1);

    // A directory that can't be read changes nothing.
    std::fs::rename(&models, media.path("elsewhere")).unwrap();
    assert!(matches!(repository.refresh(), Err(RepositoryError::Io { .. })));
    assert_eq!(ids(&repository).len(), 2);
}

/// A directory of models of version 1, one a file, that goes by their names.
fn directory_of(media: &Media, names: &[&str]) -> (PathBuf, Repository) {
    let models = media.path("models");
    for name in names {
        write(&models.join(format!("{name}.safetensors")), name, "1");
    }
    let repository = open(options(&models)).unwrap();
    (models, repository)
}

fn served(repository: &Repository, name: &str) -> Arc<Engine> {
    Arc::clone(repository.served().find(name, "").unwrap_or_else(|| panic!("{name} is served")))
}

#[test]
fn a_copy_under_the_name_of_another_model_ends_neither() {
    for (from, to) in [("m", "n"), ("n", "m")] {
        let media = Media::new();
        let (models, repository) = directory_of(&media, &["m", "n"]);
        let before = ["m", "n"].map(|name| served(&repository, name));
        let path = |name: &str| models.join(format!("{name}.safetensors"));
        std::fs::copy(path(from), path(to)).unwrap();
        assert!(matches!(repository.refresh(), Err(RepositoryError::Duplicate { path: at, .. }) if at == path(to)));
        let after = ["m", "n"].map(|name| served(&repository, name));
        assert!(before.iter().zip(&after).all(|(old, new)| Arc::ptr_eq(old, new)), "{from} over {to}");
        assert_eq!(repository.served().refused[0].name, to);
    }
}

#[test]
fn models_that_change_places_are_both_served() {
    let media = Media::new();
    let (models, repository) = directory_of(&media, &["m", "n"]);
    write(&models.join("m.safetensors"), "n", "1");
    write(&models.join("n.safetensors"), "m", "1");
    let before = ["m", "n"].map(|name| served(&repository, name));
    repository.refresh().unwrap();
    let after = ["m", "n"].map(|name| served(&repository, name));
    assert!(before.iter().zip(&after).all(|(old, new)| !Arc::ptr_eq(old, new)));
}

#[test]
fn loading_a_model_touches_no_other() {
    let media = Media::new();
    let (models, repository) = directory_of(&media, &["m", "n"]);
    let n = served(&repository, "n");
    std::fs::remove_file(models.join("n.safetensors")).unwrap();
    repository.load("m").unwrap();
    assert!(Arc::ptr_eq(&n, &served(&repository, "n")), "n's file is gone, which is nothing to do with m");
    assert!(matches!(repository.load("n"), Err(RepositoryError::NotFound { .. })));
    assert!(Arc::ptr_eq(&n, &served(&repository, "n")), "a call that fails changes nothing");
    repository.refresh().unwrap();
    assert_eq!(ids(&repository), [id("m", "1")], "a look at all ends it");

    // A file that holds another model by now.
    let m = served(&repository, "m");
    write(&models.join("m.safetensors"), "x", "1");
    assert!(matches!(repository.load("m"), Err(RepositoryError::NotFound { .. })));
    assert_eq!(ids(&repository), [id("m", "1")]);
    repository.load("x").unwrap();
    assert_eq!(ids(&repository), [id("m", "1"), id("x", "1")]);
    assert!(Arc::ptr_eq(&m, &served(&repository, "m")));
    repository.refresh().unwrap();
    assert_eq!(ids(&repository), [id("x", "1")]);
}

#[test]
fn of_the_versions_of_a_model_all_are_loaded_or_none() {
    let media = Media::new();
    let models = media.path("models");
    write(&models.join("m/1/a.safetensors"), "m", "1");
    let repository = open(options(&models)).unwrap();
    write(&models.join("m/2/a.safetensors"), "m", "2");
    std::fs::create_dir_all(models.join("m/3")).unwrap();
    std::fs::write(models.join("m/3/a.safetensors"), b"half a file").unwrap();
    assert!(matches!(repository.load("m"), Err(RepositoryError::File { .. })));
    assert_eq!(ids(&repository), [id("m", "1")]);
    assert_eq!(repository.served().refused.len(), 1);
    std::fs::remove_dir_all(models.join("m/3")).unwrap();
    repository.load("m").unwrap();
    assert_eq!(ids(&repository), [id("m", "2"), id("m", "1")]);

    // While a second file is beside it, nobody knows which one is meant.
    let two = Arc::clone(repository.served().find("m", "2").unwrap());
    write(&models.join("m/2/b.safetensors"), "m", "2");
    assert!(matches!(repository.refresh(), Err(RepositoryError::Version { actual: 2, .. })));
    assert!(Arc::ptr_eq(&two, repository.served().find("m", "2").unwrap()));
}

/// Runs the program without the rights that let root read everything.
fn kinetoscope_without_privileges(args: &[&str]) -> std::process::Output {
    let drop = ["--inh-caps=-all", "--bounding-set=-all"];
    let program = env!("CARGO_BIN_EXE_kinetoscope");
    std::process::Command::new("setpriv").args(drop).arg(program).args(args).output().unwrap()
}

#[test]
fn a_directory_that_cannot_be_read_is_one_bad_entry() {
    let media = Media::new();
    let (models, repository) = directory_of(&media, &["m"]);
    let lost = models.join("lost+found");
    std::fs::create_dir(&lost).unwrap();
    std::fs::set_permissions(&lost, PermissionsExt::from_mode(0o000)).unwrap();
    let path = models.to_str().unwrap();
    let args = ["serve", "--check", "--model", path];
    let checked = kinetoscope_without_privileges(&args);
    let log = text(&checked.stderr);
    assert!(
        checked.status.success() && log.contains("a directory is passed over") && log.contains("lost+found"),
        "{log}"
    );

    // A link in a circle can't be read by anybody.
    let circle = models.join("circle");
    symlink(&circle, &circle).unwrap();
    symlink(models.join("nowhere"), models.join("README")).unwrap();
    write(&models.join("n.safetensors"), "n", "1");
    assert!(matches!(repository.refresh(), Err(RepositoryError::Io { path, .. }) if path == circle));
    assert_eq!(ids(&repository), [id("m", "1"), id("n", "1")], "later changes are made");
    let started = open(options(&models)).unwrap();
    assert_eq!(ids(&started), [id("m", "1"), id("n", "1")], "and it stops no start");
    let refused: Vec<_> = started.served().refused.iter().map(|entry| entry.name.clone()).collect();
    assert_eq!(refused, ["circle"]);
    repository.load("n").unwrap();

    // What is served of a directory that can't be read any more goes on.
    write(&models.join("v/1/model.safetensors"), "v", "1");
    let _ = repository.refresh();
    let v = served(&repository, "v");
    std::fs::rename(models.join("v"), models.join(".away")).unwrap();
    symlink(models.join("v"), models.join("v")).unwrap();
    assert!(repository.refresh().is_err() && repository.load("v").is_err());
    assert!(Arc::ptr_eq(&v, &served(&repository, "v")));
}

#[test]
fn memory_for_models_is_asked_for_before_it_is_taken() {
    let media = Media::new();
    let (models, repository) = directory_of(&media, &["m"]);
    let one = served(&repository, "m").memory_bytes();
    let file = models.join("large.safetensors");
    let spec = ModelSpec { name: "large".to_owned(), trained: false, ..builtin::spec() };
    init::initialise(spec, 1).unwrap().write(&file).unwrap();
    let exact = {
        let alone = open(options(&file)).unwrap();
        served(&alone, "large").memory_bytes()
    };
    let refusal = |max_bytes| {
        let repository = open(RepositoryOptions { max_bytes, ..options(&models) }).unwrap();
        assert!(max_bytes == one || repository.served().refused.is_empty());
        repository.served().refused.first().map(|refused| refused.reason.clone())
    };
    assert_eq!(refusal(one + exact), None);
    // Weights that nobody may read without memory for them: were they read, the reason would be another one.
    let mut broken = std::fs::read(&file).unwrap();
    let at = broken.len() - 4;
    broken[at..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&file, &broken).unwrap();
    let reason = refusal(one).unwrap();
    assert!(reason.contains(&format!("large takes {exact} bytes of memory")), "{reason}");
}

#[test]
fn models_that_are_replaced_at_once_make_room_for_each_other() {
    let media = Media::new();
    let names = ["a", "b", "c"];
    let (models, repository) = directory_of(&media, &names);
    let one = served(&repository, "a").memory_bytes();
    drop(repository);
    let repository = open(RepositoryOptions { max_bytes: 4 * one, ..options(&models) }).unwrap();
    // In place, and as a new file for one that goes.
    for name in ["a", "b"] {
        write(&models.join(format!("{name}.safetensors")), name, "2");
    }
    std::fs::remove_file(models.join("c.safetensors")).unwrap();
    write(&models.join("new.safetensors"), "c", "2");
    repository.refresh().unwrap();
    assert_eq!(ids(&repository), names.map(|name| id(name, "2")));
}

#[test]
fn models_that_still_answer_count_until_they_end() {
    let media = Media::new();
    let (models, repository) = directory_of(&media, &["m"]);
    let one = served(&repository, "m").memory_bytes();
    drop(repository);
    let repository = open(RepositoryOptions { max_bytes: 2 * one, ..options(&models) }).unwrap();
    let request = served(&repository, "m");
    write(&models.join("m.safetensors"), "m", "2");
    repository.refresh().unwrap();
    assert_eq!(repository.retired_bytes(), [("m".to_owned(), one)].into());
    write(&models.join("m.safetensors"), "m", "3");
    let refused = repository.refresh().unwrap_err();
    assert!(matches!(refused, RepositoryError::Memory { taken, .. } if taken == 2 * one), "{refused}");
    assert_eq!(ids(&repository), [id("m", "2")]);
    drop(request);
    repository.refresh().unwrap();
    assert_eq!(ids(&repository), [id("m", "3")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_answered_while_models_are_replaced() {
    let media = Media::new();
    let model = media.path("model.safetensors");
    write(&model, "swapped", "0");
    let models = Arc::new(open(options(&model)).unwrap());
    let server = Server::with_repository(Arc::clone(&models), limits(), ServeOptions::default()).await;
    let video = video(&media);
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (stop, video, mut client) = (Arc::clone(&stop), video.clone(), server.client().await);
        clients.spawn(async move {
            let mut versions = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let response = client.classify_video(request(video.clone())).await.unwrap().into_inner();
                versions.push(response.classification.unwrap().model.unwrap().version.parse::<u32>().unwrap());
            }
            versions
        });
    }
    for version in 1..=10 {
        let models = Arc::clone(&models);
        write(&model, "swapped", &version.to_string());
        tokio::task::spawn_blocking(move || models.refresh()).await.unwrap().unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stop.store(true, Ordering::Relaxed);
    for versions in clients.join_all().await {
        assert!(versions.is_sorted() && versions.first() != versions.last(), "{versions:?}");
    }
    server.assert_nothing_left_behind().await;
}

fn load(name: &str) -> oip::RepositoryModelLoadRequest {
    oip::RepositoryModelLoadRequest { model_name: name.to_owned(), ..Default::default() }
}

fn unload(name: &str) -> oip::RepositoryModelUnloadRequest {
    oip::RepositoryModelUnloadRequest { model_name: name.to_owned(), ..Default::default() }
}

async fn index(client: &mut inference::Client) -> Vec<(String, String, bool)> {
    let index = client.repository_index(oip::RepositoryIndexRequest::default()).await.unwrap().into_inner();
    index.models.into_iter().map(|model| (model.name, model.state, model.reason.is_empty())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_load_and_unload_models_if_they_may() {
    let media = Media::new();
    let models = media.path("models");
    for name in ["a", "b"] {
        write(&models.join(format!("{name}.safetensors")), name, "1");
    }
    let repository = || Arc::new(open(options(&models)).unwrap());
    let closed = Server::with_repository(repository(), limits(), ServeOptions::default()).await;
    let mut client = inference::client(&closed).await;
    let refused = client.repository_model_unload(unload("a")).await.unwrap_err();
    assert_eq!(reason(&refused), (Code::PermissionDenied, "MODEL_CONTROL_OFF".to_owned()));

    let options = ServeOptions { model_control: true, ..ServeOptions::default() };
    let server = Server::with_repository(repository(), limits(), options).await;
    let mut client = inference::client(&server).await;
    client.repository_model_unload(unload("a")).await.unwrap();
    let gone = client.model_metadata(oip::ModelMetadataRequest { name: "a".to_owned(), ..Default::default() }).await;
    assert_eq!(reason(&gone.unwrap_err()), (Code::NotFound, "MODEL_NOT_FOUND".to_owned()));
    let last = client.repository_model_unload(unload("b")).await.unwrap_err();
    assert_eq!(reason(&last), (Code::FailedPrecondition, "MODEL_IS_LAST".to_owned()));
    let models_now = server.client().await.list_models(proto::ListModelsRequest {}).await.unwrap().into_inner().models;
    assert!(models_now.len() == 1 && models_now[0].default && models_now[0].name == "b", "{models_now:?}");
    assert!(!server.page("/metrics").await.1.contains("kinetoscope_workers{model=\"a\""));

    client.repository_model_load(load("a")).await.unwrap();
    assert_eq!(index(&mut client).await, [("a", "READY", true), ("b", "READY", true)].map(entry));
    let unknown = client.repository_model_load(load("c")).await.unwrap_err();
    assert_eq!(reason(&unknown), (Code::NotFound, "MODEL_NOT_FOUND".to_owned()));
    let mut with_config = load("a");
    with_config.parameters.insert("config".to_owned(), oip::ModelRepositoryParameter::default());
    let unsupported = client.repository_model_load(with_config).await.unwrap_err();
    assert_eq!(reason(&unsupported), (Code::InvalidArgument, "PARAMETER_UNSUPPORTED".to_owned()));

    std::fs::write(models.join("a.safetensors"), b"broken").unwrap();
    let refused = client.repository_model_load(load("a")).await.unwrap_err();
    assert_eq!(reason(&refused), (Code::FailedPrecondition, "MODEL_REFUSED".to_owned()));
    let expected = [("a", "READY", true), ("b", "READY", true), ("a", "UNAVAILABLE", false)].map(entry);
    assert_eq!(index(&mut client).await, expected, "the old one goes on");
    client.repository_model_load(load("b")).await.unwrap();
    server.assert_nothing_left_behind().await;
}

fn entry((name, state, no_reason): (&str, &str, bool)) -> (String, String, bool) {
    (name.to_owned(), state.to_owned(), no_reason)
}

#[tokio::test]
async fn a_hangup_signal_reads_the_models_again() {
    let media = Media::new();
    let models = media.path("models");
    write(&models.join("m/1/model.safetensors"), "m", "1");
    let server = Serving::with(&["--model", models.to_str().unwrap()]);
    let connection = Connection { server: server.address.clone(), ..Connection::default() };
    let mut client = Client::connect(&connection, Duration::from_secs(5)).await.unwrap();
    assert_eq!(client.model("").await.unwrap().version, "1");
    write(&models.join("m/2/model.safetensors"), "m", "1");
    server.signal("-HUP");
    for _ in 0..100 {
        if client.model("").await.unwrap().version == "2" {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("version 2 is not served");
}
