//! Models on the Hugging Face Hub: downloaded, checked, kept, and served while the hub changes its mind.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use kinetoscope::engine::Devices;
use kinetoscope::hub::{Hub, HubError, HubOptions, ModelSource};
use kinetoscope::metrics::Metrics;
use kinetoscope::repository::{Repository, RepositoryError, RepositoryOptions};

use crate::cli::text;
use crate::hub_site::{HubSite, sha256};
use crate::media::Media;
use crate::repository::write;
use crate::support::engine_config;

const WEIGHTS: &[u8] = b"what a file of weights may hold, as far as the hub and the cache care";

fn options(site: &HubSite, cache: &Path) -> HubOptions {
    let idle_timeout = Duration::from_secs(5);
    HubOptions { endpoint: site.endpoint(), cache: Some(cache.to_owned()), idle_timeout, ..HubOptions::default() }
}

fn file(options: &HubOptions, name: &str) -> Result<PathBuf, HubError> {
    Hub::new(options.clone()).file(&name.parse().unwrap())
}

fn bytes(options: &HubOptions, name: &str) -> Vec<u8> {
    std::fs::read(file(options, name).unwrap()).unwrap()
}

fn message(options: &HubOptions, name: &str) -> String {
    file(options, name).unwrap_err().to_string()
}

/// A model file of tiny clips.
fn model(version: &str) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m.safetensors");
    write(&path, "actions", version);
    std::fs::read(path).unwrap()
}

#[test]
fn a_file_is_downloaded_once_and_is_there_without_the_hub() {
    let (site, cache) = (HubSite::start(), tempfile::tempdir().unwrap());
    let commit = site.commit("org/repo", "main", &[("README.md", b"read"), ("sub/best.safetensors", WEIGHTS)]);
    site.shelf().token = Some("hf_x".to_owned());
    let options = HubOptions { token: Some("hf_x".to_owned()), ..options(&site, cache.path()) };
    let hub = Hub::new(options.clone());
    let path = hub.file(&"hf:org/repo".parse().unwrap()).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), WEIGHTS);

    // Where Hugging Face's own tools look for it.
    let repository = cache.path().join("models--org--repo");
    assert_eq!(path, repository.join("snapshots").join(&commit).join("sub/best.safetensors"));
    assert_eq!(path.canonicalize().unwrap(), repository.join("blobs").join(sha256(WEIGHTS)).canonicalize().unwrap());
    assert!(std::fs::read_link(&path).unwrap().is_relative(), "the cache can be moved");
    assert_eq!(std::fs::read_to_string(repository.join("refs/main")).unwrap(), commit);

    // The token is for the hub only, not for where it keeps files.
    let asked = std::mem::take(&mut site.shelf().asked);
    let with_token = |(what, token): &(String, Option<String>)| (what.contains("/cdn/"), token.is_some());
    let tokens: Vec<_> = asked.iter().map(with_token).collect();
    assert_eq!(tokens, [(false, true), (false, true), (false, true), (true, false)], "{asked:?}");

    hub.file(&"hf:org/repo".parse().unwrap()).unwrap();
    assert!(site.asked().iter().all(|what| !what.contains("/cdn/")), "nothing is downloaded twice");
    let offline = HubOptions { offline: true, ..options.clone() };
    assert_eq!(bytes(&offline, "hf:org/repo"), WEIGHTS);
    assert!(site.asked().is_empty());
    drop(site);
    assert_eq!(bytes(&options, "hf:org/repo"), WEIGHTS);
    assert!(message(&options, "hf:org/other").contains("can't download from http://127.0.0.1"));
    assert!(message(&offline, "hf:org/repo/other.safetensors").contains("HF_HUB_OFFLINE"));
    let nowhere = HubOptions { cache: None, ..options };
    assert!(message(&nowhere, "hf:org/repo").contains("set HF_HOME"));
}

#[test]
fn a_revision_is_a_branch_a_tag_or_a_commit() {
    let (site, cache) = (HubSite::start(), tempfile::tempdir().unwrap());
    let first = site.commit("org/repo", "v1", &[("model.safetensors", b"first")]);
    site.commit("org/repo", "refs/pr/1", &[("model.safetensors", b"proposed")]);
    site.commit("org/repo", "main", &[("model.safetensors", b"second")]);
    let options = options(&site, cache.path());
    assert_eq!(bytes(&options, "hf:org/repo"), b"second");
    assert_eq!(bytes(&options, "hf:org/repo@v1"), b"first");
    assert_eq!(bytes(&options, "hf:org/repo@refs/pr/1"), b"proposed");
    assert!(message(&options, "hf:org/repo@v3").contains("no revision v3 of org/repo"));

    // A commit that is there needs no hub.
    site.asked();
    assert_eq!(bytes(&options, &format!("hf:org/repo/model.safetensors@{first}")), b"first");
    assert!(site.asked().is_empty());

    // A branch goes on; what it was is kept.
    site.commit("org/repo", "main", &[("model.safetensors", b"third")]);
    assert_eq!(bytes(&options, "hf:org/repo"), b"third");
    site.commit("org/repo", "main", &[("model.safetensors", b"third"), ("README.md", b"better")]);
    site.asked();
    assert_eq!(bytes(&options, "hf:org/repo"), b"third");
    assert!(site.asked().iter().all(|what| !what.contains("/cdn/")), "the same weights are not downloaded again");
}

#[test]
fn a_file_that_is_not_named_has_to_be_the_only_one() {
    let (site, cache) = (HubSite::start(), tempfile::tempdir().unwrap());
    let options = options(&site, cache.path());
    site.commit("org/two", "main", &[("a.safetensors", b"a"), ("sub/b.safetensors", b"b")]);
    let message_of_two = message(&options, "hf:org/two");
    assert!(message_of_two.contains("hf:org/two/a.safetensors: a.safetensors, sub/b.safetensors"), "{message_of_two}");
    assert_eq!(bytes(&options, "hf:org/two/sub/b.safetensors"), b"b");
    site.commit("org/usual", "main", &[("a.safetensors", b"a"), ("model.safetensors", b"usual")]);
    assert_eq!(bytes(&options, "hf:org/usual"), b"usual");
    site.commit("org/none", "main", &[("README.md", b"read")]);
    assert!(message(&options, "hf:org/none").contains("no *.safetensors file at revision main"));
}

#[test]
fn what_has_not_its_checksum_is_refused_and_removed() {
    let (site, cache) = (HubSite::start(), tempfile::tempdir().unwrap());
    let options = options(&site, cache.path());
    site.commit("org/repo", "main", &[("model.safetensors", WEIGHTS)]);
    site.shelf().corrupt = true;
    let error = file(&options, "hf:org/repo").unwrap_err();
    assert!(matches!(&error, HubError::Checksum { expected, .. } if *expected == sha256(WEIGHTS)), "{error}");
    let blobs = cache.path().join("models--org--repo/blobs");
    assert_eq!(std::fs::read_dir(&blobs).unwrap().count(), 0, "nothing is left of it");
    site.shelf().corrupt = false;
    let path = file(&options, "hf:org/repo").unwrap();

    // What has changed on the disk is not used either.
    std::fs::write(blobs.join(sha256(WEIGHTS)), b"bit rot").unwrap();
    assert_eq!(bytes(&options, "hf:org/repo"), WEIGHTS);
    std::fs::write(&path, b"bit rot").unwrap();
    let offline = HubOptions { offline: true, ..options.clone() };
    assert!(message(&offline, "hf:org/repo").contains("SHA-256"));
    assert!(message(&offline, "hf:org/repo").contains("not in the cache"));

    // A bad download leaves what there was.
    assert_eq!(bytes(&options, "hf:org/repo"), WEIGHTS);
    site.commit("org/repo", "main", &[("model.safetensors", b"other weights")]);
    site.shelf().corrupt = true;
    assert_eq!(bytes(&options, "hf:org/repo"), WEIGHTS);
}

#[test]
fn refusals_say_what_to_do() {
    let (site, cache) = (HubSite::start(), tempfile::tempdir().unwrap());
    let options = options(&site, cache.path());
    site.commit("org/repo", "main", &[("model.safetensors", WEIGHTS)]);
    assert!(message(&options, "hf:org/other").contains("no repository org/other"));
    assert!(message(&options, "hf:org/repo/x.safetensors").contains("no file x.safetensors in org/repo"));
    site.shelf().token = Some("hf_x".to_owned());
    assert!(message(&options, "hf:org/repo").contains("set HF_TOKEN"));
    let with_token = HubOptions { token: Some("hf_other".to_owned()), ..options.clone() };
    assert!(message(&with_token, "hf:org/repo").contains("the token may not read org/repo"));
    site.shelf().gated = true;
    let page = format!("{}/org/repo", site.endpoint());
    let gated = message(&options, "hf:org/repo/model.safetensors");
    assert!(gated.contains(&page) && gated.contains("HF_TOKEN"), "{gated}");

    // No trouble of the hub: what was downloaded before is not used in spite of it.
    site.shelf().token = None;
    file(&options, "hf:org/repo").unwrap();
    site.shelf().token = Some("hf_x".to_owned());
    assert!(matches!(file(&options, "hf:org/repo"), Err(HubError::Gated { .. })));
}

#[test]
fn a_download_goes_on_where_it_broke_off() {
    let (site, cache) = (HubSite::start(), tempfile::tempdir().unwrap());
    let options = options(&site, cache.path());
    let weights: Vec<u8> = (0..1_000_000u32).flat_map(u32::to_le_bytes).collect();
    site.commit("org/repo", "main", &[("model.safetensors", &weights)]);
    site.shelf().cuts = vec![1_500_000, 1_000_000];
    site.shelf().failing = vec![StatusCode::BAD_GATEWAY];
    assert_eq!(bytes(&options, "hf:org/repo"), weights);
    assert_eq!(site.asked().iter().filter(|what| what.contains("/cdn/")).count(), 3);

    // In another process, from a server that knows no ranges, and after rubbish.
    let blobs = cache.path().join("models--org--repo/blobs");
    let blob = blobs.join(sha256(&weights));
    let partial = blobs.join(format!("{}.incomplete", sha256(&weights)));
    let begin_with = |bytes: &[u8]| {
        std::fs::remove_file(&blob).unwrap();
        std::fs::write(&partial, bytes).unwrap();
    };
    for (begun, knows_ranges, downloads) in
        [(&weights[..99], true, 1), (&weights[..], true, 0), (&weights[..99], false, 1), (&[7; 99][..], true, 2)]
    {
        begin_with(begun);
        site.shelf().knows_ranges = knows_ranges;
        site.asked();
        assert_eq!(bytes(&options, "hf:org/repo"), weights);
        assert_eq!(site.asked().iter().filter(|what| what.contains("/cdn/")).count(), downloads);
        assert!(!partial.exists());
    }
}

#[test]
fn two_processes_download_a_file_once() {
    let (site, cache) = (HubSite::start(), tempfile::tempdir().unwrap());
    let options = options(&site, cache.path());
    let weights = vec![7; 4 << 20];
    site.commit("org/repo", "main", &[("model.safetensors", &weights)]);
    std::thread::scope(|scope| {
        let both: Vec<_> = (0..2).map(|_| scope.spawn(|| bytes(&options, "hf:org/repo"))).collect();
        assert!(both.into_iter().all(|one| one.join().unwrap() == weights));
    });
    assert_eq!(site.asked().iter().filter(|what| what.contains("/cdn/")).count(), 1);
}

#[test]
fn a_hub_that_falls_silent_is_waited_for_no_longer_than_told() {
    let (site, cache) = (HubSite::start(), tempfile::tempdir().unwrap());
    let options = HubOptions { idle_timeout: Duration::from_millis(200), ..options(&site, cache.path()) };
    site.commit("org/repo", "main", &[("model.safetensors", WEIGHTS)]);
    site.shelf().silent = true;
    let begun = Instant::now();
    assert!(matches!(file(&options, "hf:org/repo"), Err(HubError::Unavailable { .. })));
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}

#[test]
fn a_look_at_the_models_finds_what_the_branch_is_now_or_leaves_the_old() {
    let (site, cache) = (HubSite::start(), tempfile::tempdir().unwrap());
    site.commit("org/repo", "main", &[("model.safetensors", &model("1"))]);
    let sources = vec![ModelSource::parse("hf:org/repo".into()).unwrap()];
    let hub = options(&site, cache.path());
    let options =
        RepositoryOptions { sources, hub, engine: engine_config(), devices: Devices::Cpu, max_bytes: u64::MAX };
    let repository = Repository::open(options.clone(), Arc::<Metrics>::default()).unwrap();
    let version = || repository.served().find("actions", "").unwrap().spec().version.clone();
    assert_eq!(version(), "1");

    // Made once: the entries of a file's header have no order, so that a second one could have other bytes.
    let second = model("2");
    site.commit("org/repo", "main", &[("model.safetensors", &second)]);
    repository.refresh().unwrap();
    assert_eq!(version(), "2");
    let engine = Arc::clone(repository.served().find("actions", "").unwrap());
    site.commit("org/repo", "main", &[("model.safetensors", &second), ("README.md", b"better")]);
    repository.load("actions").unwrap();
    assert!(Arc::ptr_eq(&engine, repository.served().find("actions", "").unwrap()), "the weights are the same");

    // No model, no file, no hub.
    site.commit("org/repo", "main", &[("model.safetensors", b"no model")]);
    assert!(matches!(repository.refresh(), Err(RepositoryError::File { .. })));
    assert_eq!(version(), "2");
    site.commit("org/repo", "main", &[]);
    let refused = repository.load("actions");
    assert!(matches!(refused, Err(RepositoryError::Hub { error: HubError::NoModel { .. }, .. })), "{refused:?}");
    assert_eq!(version(), "2");
    let refused = &repository.served().refused[0];
    assert_eq!((refused.name.as_str(), refused.reason.contains("no *.safetensors")), ("actions", true), "{refused:?}");
    assert!(matches!(Repository::open(options, Arc::<Metrics>::default()), Err(RepositoryError::Hub { .. })));
    // Of a model that was not asked for, the hub is not asked either.
    site.asked();
    assert!(matches!(repository.load("other"), Err(RepositoryError::NotFound { .. })));
    assert!(site.asked().is_empty());
    site.commit("org/repo", "main", &[("model.safetensors", &model("3"))]);
    repository.refresh().unwrap();
    assert_eq!(version(), "3");
    drop(site);
    repository.refresh().unwrap();
    assert_eq!(version(), "3");
}

fn kinetoscope(site: &HubSite, home: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kinetoscope"))
        .envs([("HF_ENDPOINT", site.endpoint()), ("HF_HOME", home.to_str().unwrap().to_owned())])
        .env_remove("HF_HUB_CACHE")
        .env_remove("HF_TOKEN")
        .args(args)
        .output()
        .unwrap()
}

#[test]
fn commands_take_models_by_their_names_on_the_hub() {
    let (site, media, home) = (HubSite::start(), Media::new(), tempfile::tempdir().unwrap());
    site.commit("org/repo", "main", &[("model.safetensors", &model("5"))]);
    let video = media.make("v.mp4", "-f lavfi -i testsrc2=size=64x64:rate=25 -t 0.5 -pix_fmt yuv420p");
    let classify = ["classify", video.to_str().unwrap(), "--json", "--model", "hf:org/repo"];
    let classified = kinetoscope(&site, home.path(), &classify);
    assert!(classified.status.success(), "{}", text(&classified.stderr));
    let answer: serde_json::Value = serde_json::from_slice(&classified.stdout).unwrap();
    assert_eq!(answer["model"], "actions");
    assert!(home.path().join("hub/models--org--repo/refs/main").exists());

    let inspected = kinetoscope(&site, home.path(), &["inspect", "--json", "hf:org/repo/model.safetensors@main"]);
    let described: serde_json::Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert_eq!(described["version"], "5", "{}", text(&inspected.stderr));
    let timed =
        kinetoscope(&site, home.path(), &["bench", "model", "--batch=1", "--seconds=0.1", "--model=hf:org/repo"]);
    assert!(timed.status.success(), "{}", text(&timed.stderr));
    let checked = kinetoscope(&site, home.path(), &["serve", "--check", "--model", "hf:org/repo"]);
    assert!(checked.status.success(), "{}", text(&checked.stderr));

    let missing = kinetoscope(&site, home.path(), &["serve", "--check", "--model", "hf:org/other"]);
    let expected = "can't get the model hf:org/other: the hub has no repository org/other";
    assert!(!missing.status.success() && text(&missing.stderr).contains(expected), "{}", text(&missing.stderr));
    let wrong = kinetoscope(&site, home.path(), &["inspect", "hf:repo"]);
    assert!(wrong.status.code() == Some(2) && text(&wrong.stderr).contains("hf:ORG/REPO[/FILE][@REVISION]"));
}
