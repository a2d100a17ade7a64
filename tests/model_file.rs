//! A model file comes back as it was written, and one that does not fit is refused by name.

use std::collections::HashMap;
use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use kinetoscope::model::builtin;
use kinetoscope::model::file::{Model, ModelFileError, SPEC_KEY, SpecError};
use kinetoscope::model::spec::{ClipSpec, ModelSpec, Resize};
use kinetoscope::zoo::ArchitectureError;

struct File(tempfile::TempDir);

impl File {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("model.safetensors")
    }

    /// Writes any tensors under any description, as no correct writer would.
    fn write(&self, spec: &str, tensors: &HashMap<String, Tensor>) -> Result<Model, ModelFileError> {
        let metadata = HashMap::from([(SPEC_KEY.to_owned(), spec.to_owned())]);
        safetensors::serialize_to_file(tensors, Some(metadata), &self.path()).unwrap();
        Model::read(&self.path())
    }
}

/// The error of a built-in model whose tensors were changed.
fn refusal(change: impl FnOnce(&mut HashMap<String, Tensor>)) -> ModelFileError {
    let mut model = builtin::model().unwrap();
    change(&mut model.tensors);
    File::new().write(&serde_json::to_string(&model.spec).unwrap(), &model.tensors).unwrap_err()
}

/// The error of a built-in model whose description was changed.
fn spec_refusal(change: impl FnOnce(&mut ModelSpec)) -> SpecError {
    let mut model = builtin::model().unwrap();
    change(&mut model.spec);
    let error = File::new().write(&serde_json::to_string(&model.spec).unwrap(), &model.tensors).unwrap_err();
    match error {
        ModelFileError::Spec(error) => error,
        other => panic!("{other}"),
    }
}

#[test]
fn model_comes_back_as_it_was_written() {
    let file = File::new();
    let model = builtin::model().unwrap();
    model.write(&file.path()).unwrap();
    let read = Model::read(&file.path()).unwrap();
    assert_eq!((read.spec, read.graph), (model.spec, model.graph));
    for (name, tensor) in &model.tensors {
        let written = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(read.tensors[name].flatten_all().unwrap().to_vec1::<f32>().unwrap(), written, "{name}");
    }
    let left: Vec<_> = std::fs::read_dir(file.0.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "no temporary file stays: {left:?}");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(file.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644, "a server of another user can read it");
    }
}

#[test]
fn a_failed_write_leaves_the_old_file() {
    let file = File::new();
    let model = builtin::model().unwrap();
    let path = file.0.path().join("no/such/directory/model.safetensors");
    assert!(matches!(model.write(&path), Err(ModelFileError::Io { .. })));
    assert!(!path.exists());
}

#[test]
fn missing_tensor_is_named_with_its_shape() {
    let error = refusal(|tensors| drop(tensors.remove("layer2.0.conv1.weight")));
    assert_eq!(error.to_string(), "tensor layer2.0.conv1.weight is missing; expected shape [32, 16, 3, 3, 3]");
}

#[test]
fn wrong_shape_is_named_with_both_shapes() {
    let error = refusal(|tensors| {
        tensors.insert("fc.bias".to_owned(), Tensor::zeros(9, DType::F32, &Device::Cpu).unwrap());
    });
    assert_eq!(error.to_string(), "tensor fc.bias has shape [9]; expected [10]");
}

#[test]
fn tensor_of_no_layer_is_refused_but_pytorchs_batch_counters_are_not() {
    let scalar = Tensor::zeros((), DType::I64, &Device::Cpu).unwrap();
    let error = refusal(|tensors| drop(tensors.insert("layer5.weight".to_owned(), scalar.clone())));
    assert!(matches!(error, ModelFileError::UnexpectedTensor { name, .. } if name == "layer5.weight"));

    let mut model = builtin::model().unwrap();
    model.tensors.insert("bn1.num_batches_tracked".to_owned(), scalar);
    let spec = serde_json::to_string(&model.spec).unwrap();
    assert!(File::new().write(&spec, &model.tensors).is_ok());
}

#[test]
fn values_that_are_not_finite_and_other_types_are_refused() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let error = refusal(|tensors| {
            let bias = Tensor::full(f32::NAN, 10, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
            tensors.insert("fc.bias".to_owned(), bias);
        });
        assert!(matches!(error, ModelFileError::NotFinite { name } if name == "fc.bias"), "{dtype:?}");
    }
    let error = refusal(|tensors| {
        tensors.insert("fc.bias".to_owned(), Tensor::zeros(10, DType::F64, &Device::Cpu).unwrap());
    });
    assert!(matches!(error, ModelFileError::DType { name, .. } if name == "fc.bias"));
}

#[test]
fn labels_must_fit_the_last_layer_and_differ() {
    let mut model = builtin::model().unwrap();
    model.spec.labels.pop();
    let spec = serde_json::to_string(&model.spec).unwrap();
    let error = File::new().write(&spec, &model.tensors).unwrap_err();
    assert!(error.to_string().starts_with("tensor fc.weight has shape [10, 128]; expected [9, 128]"), "{error}");

    let duplicate = spec_refusal(|spec| spec.labels[7] = spec.labels[2].clone());
    assert!(matches!(duplicate, SpecError::DuplicateLabel { first: 2, second: 7, .. }));
    assert_eq!(spec_refusal(|spec| spec.labels[3] = " ".to_owned()), SpecError::EmptyLabel { index: 3 });
}

#[test]
fn descriptions_that_no_network_has_are_refused() {
    let deeper = |spec: &mut ModelSpec| spec.architecture = spec.architecture.with_setting("depth", "19").unwrap();
    assert_eq!(spec_refusal(deeper), SpecError::Architecture(ArchitectureError::Depth { actual: 19 }));
    assert!(matches!(spec_refusal(|spec| spec.name = "../etc".to_owned()), SpecError::Name { .. }));
    let clip = ClipSpec { frames: 0, ..ClipSpec::default() };
    assert_eq!(spec_refusal(|spec| spec.clip = clip), SpecError::Clip { actual: clip });
    let resize = Resize::Fixed { height: 100, width: 200 };
    assert!(matches!(spec_refusal(|spec| spec.preprocessing.resize = resize), SpecError::Resize { size: 112, .. }));
    assert!(matches!(spec_refusal(|spec| spec.preprocessing.std[1] = 0.0), SpecError::Normalisation { .. }));
}

#[test]
fn files_without_a_description_are_told_how_to_get_one() {
    let file = File::new();
    safetensors::serialize_to_file(builtin::model().unwrap().tensors, None, &file.path()).unwrap();
    let error = Model::read(&file.path()).unwrap_err();
    assert!(matches!(error, ModelFileError::NoSpec) && error.to_string().contains("kinetoscope convert"), "{error}");

    let error = file.write("{\"name\": 5}", &HashMap::new()).unwrap_err();
    assert!(matches!(error, ModelFileError::SpecSyntax(_)), "{error}");
}

#[test]
fn damaged_files_are_refused_wherever_they_are_cut() {
    let file = File::new();
    builtin::model().unwrap().write(&file.path()).unwrap();
    let whole = std::fs::read(file.path()).unwrap();
    for len in [0, 1, 7, 8, 9, 100, 4000, whole.len() / 2, whole.len() - 1] {
        assert!(Model::from_bytes(&whole[..len]).is_err(), "{len} bytes");
    }
    let mut huge_header = whole;
    huge_header[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(Model::from_bytes(&huge_header).is_err());
}
