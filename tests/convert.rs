//! Checkpoints that PyTorch saved become model files that answer as PyTorch does.

mod golden;

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use golden::{Golden, relative_distance};
use kinetoscope::convert::{Checkpoint, ConvertError, ConvertOptions, Expectation, LabelsError, Selection, convert};
use kinetoscope::model::file::{Model, SpecError};
use kinetoscope::model::spec::Preprocessing;

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
    let network = model.network(DType::F32, &Device::Cpu).unwrap();
    let logits = network.forward(&golden.input()).unwrap().swap_remove(0);
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

fn depth(depth: u32) -> Expectation {
    Expectation { key: "depth".to_owned(), value: depth.into(), option: "--depth" }
}

fn shortcut(shortcut: &str) -> Expectation {
    Expectation { key: "shortcut".to_owned(), value: shortcut.into(), option: "--shortcut" }
}

#[test]
fn report_says_what_was_found() {
    let place = Workplace::new();
    let options = ConvertOptions {
        expected: vec![depth(10), shortcut("a")],
        name: Some("kinetics-10".to_owned()),
        license: Some("MIT".to_owned()),
        origin: Some("a test".to_owned()),
        ..place.options()
    };
    let report = convert(&golden::path("authors-2018.pth"), &place.path("model.safetensors"), &options).unwrap();
    assert_eq!(report.arch.as_deref(), Some("resnet-10"));
    assert_eq!(
        report.to_string(),
        "3D ResNet-10, shortcut A, channels x 0.03125, 4 classes: 47 tensors, 16198 values, f32"
    );
    let model = Model::read(&place.path("model.safetensors")).unwrap();
    assert_eq!(model.spec, report.spec);
    assert_eq!(model.spec.name, "kinetics-10");
    assert_eq!(model.spec.license.as_deref(), Some("MIT"));
}

#[test]
fn flags_that_the_tensors_contradict_are_refused() {
    let place = Workplace::new();
    let checkpoint = golden::path("authors-2018.pth");
    let error = place.refusal(&checkpoint, &ConvertOptions { expected: vec![depth(34)], ..place.options() });
    assert_eq!(
        error.to_string(),
        "the checkpoint is of 3D ResNet-10, shortcut A, channels x 0.03125, whose depth is 10; expected 34 by --depth"
    );
    let error = place.refusal(&checkpoint, &ConvertOptions { expected: vec![shortcut("b")], ..place.options() });
    assert!(error.to_string().ends_with("whose shortcut is \"a\"; expected \"b\" by --shortcut"), "{error}");
    let checkpoint = golden::path("authors-2020.pth");
    let error = place.refusal(&checkpoint, &ConvertOptions { expected: vec![shortcut("a")], ..place.options() });
    assert!(matches!(error, ConvertError::Unexpected { option: "--shortcut", .. }), "{error}");
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
    convert(&golden::path("authors-2020.pth"), &place.path("model.safetensors"), &place.options()).unwrap();
    let model = std::fs::read(place.path("model.safetensors")).unwrap();
    std::fs::remove_file(place.path("model.safetensors")).unwrap();
    for (content, expected) in [
        (b"".as_slice(), "not a PyTorch checkpoint but an empty file"),
        (b"once upon a time", "not a PyTorch checkpoint but neither a zip archive nor a pickle"),
        (
            &model,
            "not a PyTorch checkpoint but a model file already; `serve`, `classify` and `train --init` take it as it is",
        ),
        (
            b"<!DOCTYPE html><html><title>Virus scan warning</title></html>",
            "not a PyTorch checkpoint but a web page, saved instead of the file; the link leads to a page that asks or refuses: \
             open it in a browser",
        ),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 254\n",
            "not a PyTorch checkpoint but a Git LFS pointer, which stands for the file; `git lfs pull` gets the file itself",
        ),
        (
            b"{\"error\": \"no access\"}",
            "not a PyTorch checkpoint but JSON, perhaps the answer of a server that refused the file",
        ),
    ] {
        std::fs::write(place.path("input.pth"), content).unwrap();
        assert_eq!(place.refusal(&place.path("input.pth"), &place.options()).to_string(), expected);
    }
    assert!(matches!(place.refusal(&place.path("absent.pth"), &place.options()), ConvertError::Checkpoint(_)));
    assert!(matches!(place.refusal(place.0.path(), &place.options()), ConvertError::Checkpoint(_)));
}

/// The tensors of a golden checkpoint under other names, as a plain safetensors file.
fn plain_safetensors(place: &Workplace, rename: impl Fn(&str) -> String) -> PathBuf {
    let mut checkpoint = Checkpoint::open(&golden::path("authors-2020.pth")).unwrap();
    let names: Vec<String> = checkpoint.tensors().map(|(name, _)| name.to_owned()).collect();
    let tensors: std::collections::HashMap<String, candle_core::Tensor> =
        names.iter().map(|name| (rename(name), checkpoint.read(name).unwrap())).collect();
    let path = place.path("input.safetensors");
    candle_core::safetensors::save(&tensors, &path).unwrap();
    path
}

#[test]
fn plain_safetensors_behind_any_wrapper_convert() {
    let place = Workplace::new();
    let output = place.path("model.safetensors");
    for wrapper in ["", "module.", "model.", "net.", "_orig_mod.", "module.model.", "backbone.", "encoder.video."] {
        let input = plain_safetensors(&place, |name| format!("{wrapper}{name}"));
        convert(&input, &output, &place.options()).unwrap_or_else(|error| panic!("{wrapper}: {error}"));
        let distance = distance_from_pytorch(&Model::read(&output).unwrap(), "authors-2020");
        assert!(distance < 1e-5, "{wrapper}: {distance:e}");
    }
    for head in ["cls_head.fc_cls", "head", "fc.1"] {
        let name = |name: &str| match name.strip_prefix("fc") {
            Some(rest) => format!("{head}{rest}"),
            None => format!("backbone.{name}"),
        };
        let input = plain_safetensors(&place, name);
        convert(&input, &output, &place.options()).unwrap_or_else(|error| panic!("{head}: {error}"));
    }
}

#[test]
fn weights_under_other_names_are_selected() {
    let place = Workplace::new();
    let output = place.path("model.safetensors");
    let input = plain_safetensors(&place, |name| match name.strip_prefix("fc.") {
        Some(rest) => format!("top.dense.{rest}"),
        None => name.to_owned(),
    });
    let error = convert(&input, &output, &place.options()).unwrap_err();
    assert_eq!(error.to_string(), "the checkpoint has no tensor fc.weight");
    let renames = vec![("top.dense".to_owned(), "fc".to_owned())];
    let selection = Selection { renames, ..Selection::default() };
    convert(&input, &output, &ConvertOptions { selection, ..place.options() }).unwrap();

    let mut checkpoint = Checkpoint::open(&golden::path("authors-2020.pth")).unwrap();
    let names: Vec<String> = checkpoint.tensors().map(|(name, _)| name.to_owned()).collect();
    let both = names.iter().flat_map(|name| ["student.", "teacher."].map(|prefix| (format!("{prefix}{name}"), name)));
    let both: std::collections::HashMap<String, candle_core::Tensor> =
        both.map(|(both, name)| (both, checkpoint.read(name).unwrap())).collect();
    let input = place.path("both.safetensors");
    candle_core::safetensors::save(&both, &input).unwrap();
    let error = convert(&input, &output, &place.options()).unwrap_err().to_string();
    assert_eq!(error, "the checkpoint has several networks; --prefix says which: \"student.\", \"teacher.\"");
    let selection = Selection { prefix: Some("teacher.".to_owned()), ..Selection::default() };
    convert(&input, &output, &ConvertOptions { selection, ..place.options() }).unwrap();
}

#[test]
fn weights_under_the_keys_of_training_scripts_convert() {
    let place = Workplace::new();
    let whole = std::fs::read(golden::path("authors-2020-legacy.pth")).unwrap();
    // The length of a string stands before it (BINUNICODE).
    let string = |text: &str| [b"X".as_slice(), &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
    let (old, input) = (string("state_dict"), place.path("input.pth"));
    let at = whole.windows(old.len()).position(|window| window == old).expect("the authors' key");
    for key in ["model", "model_state_dict", "net", "model_state", "what they call it"] {
        std::fs::write(&input, [&whole[..at], &string(key), &whole[at + old.len()..]].concat()).unwrap();
        convert(&input, &place.path("model.safetensors"), &place.options())
            .unwrap_or_else(|error| panic!("{key}: {error}"));
        let selection = Selection { key: Some(key.to_owned()), ..Selection::default() };
        assert!(Checkpoint::open_selected(&input, &selection).is_ok(), "{key}");
    }
    let selection = Selection { key: Some("ema".to_owned()), ..Selection::default() };
    let error = Checkpoint::open_selected(&input, &selection).err().expect("no such key").to_string();
    assert!(error.starts_with("the checkpoint has no dictionary of tensors under ema; its keys are "), "{error}");
}

/// The archive with another name, and the zip64 records that torch puts before the end of its archives.
fn repacked(name: &str) -> Vec<u8> {
    use std::io::{Read, Write};
    let file = std::fs::File::open(golden::path("authors-2020.pth")).unwrap();
    let mut from = zip::ZipArchive::new(file).unwrap();
    let mut to = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for index in 0..from.len() {
        let mut entry = from.by_index(index).unwrap();
        let (_, rest) =
            entry.name().unwrap().split_once('/').map(|(root, rest)| (root.to_owned(), rest.to_owned())).unwrap();
        let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        to.start_file(format!("{name}/{rest}"), stored).unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        to.write_all(&bytes).unwrap();
    }
    let mut bytes = to.finish().unwrap().into_inner();
    let end = bytes.split_off(bytes.len() - 22);
    assert!(end.starts_with(b"PK\x05\x06"), "the archive has no comment");
    let number =
        |at: usize, len: usize| end[at..at + len].iter().rev().fold(0u64, |sum, &byte| sum << 8 | u64::from(byte));
    let (entries, size, offset, record) = (number(10, 2), number(12, 4), number(16, 4), bytes.len() as u64);
    bytes.extend(b"PK\x06\x06");
    bytes.extend(44u64.to_le_bytes());
    bytes.extend([30, 3, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    [entries, entries, size, offset].iter().for_each(|number| bytes.extend(number.to_le_bytes()));
    bytes.extend(b"PK\x06\x07\0\0\0\0");
    bytes.extend(record.to_le_bytes());
    bytes.extend(1u32.to_le_bytes());
    bytes.extend(end);
    bytes
}

#[test]
fn archive_of_any_name_converts() {
    let place = Workplace::new();
    // With 21 letters, a second header of the archive's directory stands where a reader may look for the first.
    for letters in [1, 20, 21, 22, 67, 113] {
        let name = "n".repeat(letters);
        std::fs::write(place.path("input.pth"), repacked(&name)).unwrap();
        convert(&place.path("input.pth"), &place.path("model.safetensors"), &place.options())
            .unwrap_or_else(|error| panic!("{letters}: {error}"));
    }
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
