//! Checkpoints that PyTorch saved become model files that answer as PyTorch does.

mod golden;

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use candle_nn::ModuleT;
use golden::{Golden, relative_distance};
use kinetoscope::convert::{Checkpoint, ConvertError, ConvertOptions, LabelsError, convert};
use kinetoscope::model::file::{Model, SpecError};
use kinetoscope::model::resnet::ResNet3d;
use kinetoscope::model::spec::{Preprocessing, Shortcut};

/// A directory with a class list, and what was converted into it.
struct Workplace(tempfile::TempDir);

impl Workplace {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("labels.txt"), "abseiling\nbowling\nclapping\ndiving\n").unwrap();
        Self(directory)
    }

    fn options(&self) -> ConvertOptions {
        ConvertOptions::new(self.path("labels.txt"), Preprocessing::AUTHORS_2018)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn convert(&self, checkpoint: &str, options: &ConvertOptions) -> Result<Model, ConvertError> {
        let output = self.path("model.safetensors");
        convert(&golden::path(checkpoint), &output, options)?;
        Ok(Model::read(&output).unwrap())
    }

    /// The error of a conversion, which must leave nothing behind.
    fn refusal(&self, checkpoint: &Path, options: &ConvertOptions) -> ConvertError {
        let error = convert(checkpoint, &self.path("model.safetensors"), options).unwrap_err();
        let left: Vec<_> = std::fs::read_dir(self.0.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| !name.to_string_lossy().contains("model")), "{left:?}");
        assert!(left.iter().all(|name| !name.to_string_lossy().contains("partial")), "{left:?}");
        error
    }
}

fn distance_from_pytorch(model: &Model, name: &str) -> f64 {
    let golden = Golden::read(&format!("{name}-logits"));
    assert_eq!(model.spec.architecture, golden.recipe.architecture);
    let network = ResNet3d::from_model(model, DType::F32, &Device::Cpu).unwrap();
    let logits = network.forward_t(&golden.input(), false).unwrap();
    relative_distance(&logits, golden.logits())
}

fn assert_converts_exactly(name: &str) {
    let place = Workplace::new();
    let model = place.convert(&format!("{name}.pth"), &place.options()).unwrap();
    assert_eq!(model.spec.name, name);
    assert_eq!(model.spec.labels, ["abseiling", "bowling", "clapping", "diving"]);
    assert!(model.spec.trained);
    // As in `parity.rs`: rounding gives 1e-6, an error anywhere far more.
    let distance = distance_from_pytorch(&model, name);
    assert!(distance < 1e-5, "{name}: {distance:e}");
}

#[test]
fn checkpoint_of_torch_0_3_saved_on_a_gpu_converts() {
    assert_converts_exactly("authors-2018");
}

#[test]
fn checkpoint_of_the_authors_newer_code_converts() {
    assert_converts_exactly("authors-2020");
}

#[test]
fn checkpoint_in_the_legacy_format_of_a_recent_torch_converts() {
    assert_converts_exactly("authors-2020-legacy");
}

#[test]
fn bare_state_dict_with_torchvision_names_converts() {
    assert_converts_exactly("torchvision");
}

#[test]
fn weights_can_be_stored_in_half_the_bits() {
    let place = Workplace::new();
    // Units in the last place: 2^-11 for f16, 2^-8 for bf16; a few layers add theirs up.
    for (dtype, tolerance) in [(DType::F16, 2e-3), (DType::BF16, 2e-2)] {
        let options = ConvertOptions { dtype, ..place.options() };
        let model = place.convert("authors-2018.pth", &options).unwrap();
        assert_eq!(model.dtype(), dtype);
        assert_eq!(model.tensors["bn1.running_var"].dtype(), DType::F32);
        let distance = distance_from_pytorch(&model, "authors-2018");
        assert!(distance < tolerance, "{dtype:?}: {distance:e}");
    }
    let options = ConvertOptions { dtype: DType::F64, ..place.options() };
    assert!(matches!(place.convert("authors-2018.pth", &options), Err(ConvertError::DType { .. })));
}

#[test]
fn report_says_what_was_found() {
    let place = Workplace::new();
    let options = ConvertOptions {
        depth: Some(10),
        shortcut: Some(Shortcut::A),
        name: Some("kinetics-10".to_owned()),
        license: Some("MIT".to_owned()),
        origin: Some("a test".to_owned()),
        ..place.options()
    };
    let report = convert(&golden::path("authors-2018.pth"), &place.path("model.safetensors"), &options).unwrap();
    assert_eq!(report.arch.as_deref(), Some("resnet-10"));
    assert_eq!(report.to_string(), "3D ResNet-10, shortcut A, width 0.03125, 4 classes: 47 tensors, 16198 values, f32");
    let model = Model::read(&place.path("model.safetensors")).unwrap();
    assert_eq!(model.spec, report.spec);
    assert_eq!(model.spec.name, "kinetics-10");
    assert_eq!(model.spec.license.as_deref(), Some("MIT"));
}

#[test]
fn flags_that_the_tensors_contradict_are_refused() {
    let place = Workplace::new();
    let checkpoint = golden::path("authors-2018.pth");
    let error = place.refusal(&checkpoint, &ConvertOptions { depth: Some(34), ..place.options() });
    assert_eq!(error.to_string(), "the checkpoint is of depth 10 ([1, 1, 1, 1] basic blocks); expected 34 by --depth");
    let error = place.refusal(&checkpoint, &ConvertOptions { shortcut: Some(Shortcut::B), ..place.options() });
    assert_eq!(
        error.to_string(),
        "expected shortcut B by --shortcut, but the checkpoint has no layer2.0.downsample.0.weight"
    );
    let checkpoint = golden::path("authors-2020.pth");
    let error = place.refusal(&checkpoint, &ConvertOptions { shortcut: Some(Shortcut::A), ..place.options() });
    assert!(matches!(error, ConvertError::Shortcut { expected: Shortcut::A, .. }));
    let error = place.refusal(&checkpoint, &ConvertOptions { name: Some("no/path".to_owned()), ..place.options() });
    assert!(matches!(error, ConvertError::Spec(SpecError::Name { .. })));
}

#[test]
fn class_list_must_fit_the_last_layer() {
    let place = Workplace::new();
    let checkpoint = golden::path("authors-2018.pth");
    std::fs::write(place.path("labels.txt"), "abseiling\nbowling\n").unwrap();
    let error = place.refusal(&checkpoint, &place.options());
    assert!(matches!(error, ConvertError::LabelCount { labels: 2, classes: 4, .. }), "{error}");
    std::fs::write(place.path("labels.txt"), "a\nb\nc\na\n").unwrap();
    let error = place.refusal(&checkpoint, &place.options());
    assert!(matches!(error, ConvertError::Labels(LabelsError::Duplicate { first: 0, second: 3, .. })), "{error}");
    let error = place.refusal(&checkpoint, &ConvertOptions { labels: place.path("none.txt"), ..place.options() });
    assert!(error.to_string().contains("none.txt"), "{error}");
}

#[test]
fn optimizer_state_is_not_mistaken_for_weights() {
    let checkpoint = Checkpoint::open(&golden::path("authors-2020.pth")).unwrap();
    // 12 convolutions, each with a weight and a batch norm of 5 tensors, and the last layer's 2.
    assert_eq!(checkpoint.tensors().count(), 12 * 6 + 2);
    assert_eq!(checkpoint.shape("conv1.weight").unwrap(), [1, 3, 7, 7, 7]);
}

#[test]
fn files_that_are_no_checkpoints_are_refused_by_what_they_are() {
    let place = Workplace::new();
    let safetensors = std::fs::read(golden::path("resnet-10-b-quarter.safetensors")).unwrap();
    for (content, expected) in [
        (b"".as_slice(), "not a PyTorch checkpoint but an empty file"),
        (b"once upon a time", "not a PyTorch checkpoint but neither a zip archive nor a pickle"),
        (&safetensors, "not a PyTorch checkpoint but a safetensors file, by its looks"),
    ] {
        std::fs::write(place.path("input.pth"), content).unwrap();
        assert_eq!(place.refusal(&place.path("input.pth"), &place.options()).to_string(), expected);
    }
    assert!(matches!(place.refusal(&place.path("absent.pth"), &place.options()), ConvertError::Checkpoint(_)));
    assert!(matches!(place.refusal(place.0.path(), &place.options()), ConvertError::Checkpoint(_)));
}

#[test]
fn checkpoints_cut_short_anywhere_are_refused() {
    let place = Workplace::new();
    for name in ["authors-2018.pth", "authors-2020.pth", "authors-2020-legacy.pth"] {
        let whole = std::fs::read(golden::path(name)).unwrap();
        for parts in 0..40 {
            std::fs::write(place.path("input.pth"), &whole[..whole.len() * parts / 40]).unwrap();
            place.refusal(&place.path("input.pth"), &place.options());
        }
    }
}
