//! `convert`: a PyTorch checkpoint becomes a model file.
//!
//! [`Checkpoint`] reads a `.pth` without executing any of it. Names and shapes of its tensors show which network
//! it is of; [`ConvertOptions`] say what they can't: class names, preprocessing, name and origin.

mod checkpoint;
mod labels;
mod names;
mod pickle;
mod preprocessing;
mod storage;

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use candle_conv3d::graph::Parameter;
use candle_core::{DType, Tensor};

pub(crate) use checkpoint::MODEL_FILE;
pub use checkpoint::{Checkpoint, CheckpointError};
pub use labels::{LabelsError, read_labels};
pub use names::Selection;
pub use pickle::PickleError;
pub use preprocessing::{PreprocessingError, read_preprocessing};
pub(crate) use storage::NEITHER;

use crate::model::file::{Model, ModelFileError, SpecError};
use crate::model::scores::ScoreFunction;
use crate::model::spec::{ClipSpec, ModelSpec, Preprocessing};
use crate::zoo::{ArchitectureError, DetectError, Detected, TensorShapes, detect};

/// What a checkpoint does not say about itself.
#[derive(Debug, Clone)]
pub struct ConvertOptions {
    /// Where in the checkpoint the weights are.
    pub selection: Selection,
    /// Class names in one of the forms of [`read_labels`].
    pub labels: PathBuf,
    /// From frames to the network's input.
    pub preprocessing: Preprocessing,
    /// Geometry of a clip.
    pub clip: ClipSpec,
    /// Settings of the network that tensors don't show, by name and value, such as `stem.max_pool` and `false`.
    pub settings: Vec<(String, String)>,
    /// Settings that the tensors must show, by name, value and what demands it.
    pub expected: Vec<Expectation>,
    /// F32, F16 or BF16: type of the convolutions' and the last layer's weights. Batch norm and biases stay F32:
    /// they are few, and the variances of networks on 0-255 pixels exceed the range of F16.
    pub dtype: DType,
    /// Name of the model; the input's file stem if `None`.
    pub name: Option<String>,
    /// Version of the weights.
    pub version: String,
    /// SPDX expression or a sentence.
    pub license: Option<String>,
    /// Where the weights come from.
    pub origin: Option<String>,
}

/// A setting that a checkpoint must show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expectation {
    /// Name of the setting, such as `depth`.
    pub key: String,
    /// Its value as JSON.
    pub value: serde_json::Value,
    /// The option that demands it, for the error.
    pub option: &'static str,
}

impl ConvertOptions {
    /// Options that leave to the checkpoint what it can show.
    pub fn new(labels: PathBuf, preprocessing: Preprocessing) -> Self {
        Self {
            selection: Selection::default(),
            labels,
            preprocessing,
            clip: ClipSpec::default(),
            settings: Vec::new(),
            expected: Vec::new(),
            dtype: DType::F32,
            name: None,
            version: "1".to_owned(),
            license: None,
            origin: None,
        }
    }
}

/// What was converted.
#[derive(Debug, Clone)]
pub struct ConvertReport {
    /// What the model file says about itself.
    pub spec: ModelSpec,
    /// Tensors written.
    pub tensors: usize,
    /// Values in them.
    pub values: usize,
    /// Type of the weights.
    pub dtype: DType,
    /// What the checkpoint calls its network (`arch` of the authors' code).
    pub arch: Option<String>,
}

impl fmt::Display for ConvertReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, {} classes: {} tensors, {} values, {}",
            self.spec.architecture,
            self.spec.labels.len(),
            self.tensors,
            self.values,
            self.dtype.as_str(),
        )
    }
}

/// Why a checkpoint is not converted.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// The checkpoint can't be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The class list can't be read.
    #[error(transparent)]
    Labels(#[from] LabelsError),
    /// The checkpoint is of no known network.
    #[error(transparent)]
    Detect(#[from] DetectError),
    /// The tensors show another setting than was asked for.
    #[error("the checkpoint is of {architecture}, whose {key} is {found}; expected {expected} by {option}")]
    Unexpected {
        /// The network in words.
        architecture: String,
        /// Name of the setting.
        key: String,
        /// By the tensors.
        found: String,
        /// By the options.
        expected: String,
        /// The option.
        option: &'static str,
    },
    /// The class list and the last layer disagree.
    #[error("{path} has {labels} labels; the checkpoint's last layer has {classes} classes")]
    LabelCount {
        /// The class list.
        path: PathBuf,
        /// Its names.
        labels: usize,
        /// Outputs of the last layer.
        classes: usize,
    },
    /// A tensor of another shape than its layer's.
    #[error("tensor {name} has shape {found:?}; expected {expected}")]
    Shape {
        /// Name in the checkpoint.
        name: String,
        /// Dimensions.
        found: Vec<usize>,
        /// Dimensions or a pattern of them.
        expected: String,
    },
    /// A tensor that no layer takes: some other network.
    #[error(
        "tensor {name} of shape {found:?} belongs to no layer of {architecture}; --prefix leaves out what has another"
    )]
    UnexpectedTensor {
        /// Name in the checkpoint.
        name: String,
        /// Dimensions.
        found: Vec<usize>,
        /// The network in words.
        architecture: String,
    },
    /// A type that model files don't hold.
    #[error("weights can't be stored as {}; allowed are f32, f16 and bf16", actual.as_str())]
    DType {
        /// By the options.
        actual: DType,
    },
    /// Weights that can only give NaN.
    #[error("tensor {name} holds a value that is not finite as {}", dtype.as_str())]
    NotFinite {
        /// Name in the checkpoint.
        name: String,
        /// Type it was converted to.
        dtype: DType,
    },
    /// The options make no sense.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The model file can't be written.
    #[error(transparent)]
    ModelFile(#[from] ModelFileError),
}

impl From<ArchitectureError> for ConvertError {
    fn from(error: ArchitectureError) -> Self {
        SpecError::from(error).into()
    }
}

/// The network of a checkpoint in words, as [`convert`] will see it.
pub fn describe_network(checkpoint: &Checkpoint) -> Result<String, ConvertError> {
    let Detected { architecture, classes } = detect(&TensorShapes::new(checkpoint.tensors()))?;
    Ok(format!("{architecture}, {classes} classes"))
}

/// Makes the model file `output` from the checkpoint `input`. The output appears whole or not at all.
pub fn convert(input: &Path, output: &Path, options: &ConvertOptions) -> Result<ConvertReport, ConvertError> {
    let (model, report) = model_from_checkpoint(input, options)?;
    model.write(output)?;
    Ok(report)
}

/// The model that a checkpoint and the options make.
pub fn model_from_checkpoint(input: &Path, options: &ConvertOptions) -> Result<(Model, ConvertReport), ConvertError> {
    if !matches!(options.dtype, DType::F32 | DType::F16 | DType::BF16) {
        return Err(ConvertError::DType { actual: options.dtype });
    }
    let mut checkpoint = Checkpoint::open_selected(input, &options.selection)?;
    let Detected { mut architecture, classes } = detect(&TensorShapes::new(checkpoint.tensors()))?;
    for Expectation { key, value, option } in &options.expected {
        let found = architecture.setting(key).unwrap_or_default();
        if found != *value {
            let (found, expected) = (found.to_string(), value.to_string());
            let architecture = architecture.to_string();
            return Err(ConvertError::Unexpected { architecture, key: key.clone(), found, expected, option });
        }
    }
    for (key, value) in &options.settings {
        architecture = architecture.with_setting(key, value)?;
    }
    let labels = read_labels(&options.labels)?;
    if labels.len() != classes {
        return Err(ConvertError::LabelCount { path: options.labels.clone(), labels: labels.len(), classes });
    }
    let stem = input.file_stem().unwrap_or_default().to_string_lossy();
    let spec = ModelSpec {
        name: options.name.clone().unwrap_or_else(|| stem.into_owned()),
        version: options.version.clone(),
        trained: true,
        license: options.license.clone(),
        origin: options.origin.clone(),
        architecture: architecture.clone(),
        clip: options.clip,
        preprocessing: options.preprocessing,
        labels,
        scores: ScoreFunction::default(),
    };
    let graph = spec.validate()?;
    let parameters: Vec<&Parameter> = graph.parameters().collect();

    // All shapes before any values: a checkpoint of another network is refused at once.
    for parameter in &parameters {
        let found = checkpoint.shape(&parameter.name)?;
        if found != parameter.shape {
            let (name, found) = (parameter.name.clone(), found.to_vec());
            return Err(ConvertError::Shape { name, found, expected: format!("{:?}", parameter.shape) });
        }
    }
    let known: std::collections::HashSet<&str> = parameters.iter().map(|parameter| parameter.name.as_str()).collect();
    let counter = |name: &str| name.ends_with(".num_batches_tracked");
    if let Some((name, found)) = checkpoint.tensors().find(|(name, _)| !known.contains(name) && !counter(name)) {
        let (name, found) = (name.to_owned(), found.to_vec());
        return Err(ConvertError::UnexpectedTensor { name, found, architecture: architecture.to_string() });
    }

    let mut tensors = HashMap::with_capacity(parameters.len());
    let mut values = 0;
    for parameter in &parameters {
        let tensor = checkpoint.read(&parameter.name)?;
        let dtype = if parameter.shape.len() > 1 { options.dtype } else { DType::F32 };
        let tensor = tensor.to_dtype(dtype).map_err(ModelFileError::from)?;
        if !is_finite(&tensor)? {
            return Err(ConvertError::NotFinite { name: parameter.name.clone(), dtype });
        }
        values += tensor.elem_count();
        tensors.insert(parameter.name.clone(), tensor);
    }
    let report = ConvertReport {
        spec: spec.clone(),
        tensors: tensors.len(),
        values,
        dtype: options.dtype,
        arch: checkpoint.arch().map(str::to_owned),
    };
    Ok((Model::new(spec, tensors)?, report))
}

fn is_finite(tensor: &Tensor) -> Result<bool, ModelFileError> {
    let values = tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
    Ok(values.iter().all(|value| value.is_finite()))
}
