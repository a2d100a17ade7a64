//! Reads the goldens that `generate.py` writes, and makes the weights and frames they are about.

// Each test binary uses a part of this module.
#![allow(dead_code)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use kinetoscope::model::counter::{self, CounterStream};
use kinetoscope::model::file::Model;
use kinetoscope::model::scores::ScoreFunction;
use kinetoscope::model::spec::{ClipSpec, ModelSpec, Preprocessing};
use kinetoscope::zoo::Architecture;
use serde::Deserialize;

/// A golden: how to build network and input, and what PyTorch answers.
pub(crate) struct Golden {
    pub(crate) recipe: Recipe,
    /// Batch norm statistics by checkpoint name, `logits`, and what else the case has.
    pub(crate) tensors: HashMap<String, Tensor>,
}

/// The `golden` entry of the metadata.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Recipe {
    pub(crate) architecture: Architecture,
    pub(crate) classes: usize,
    pub(crate) seed: u64,
    pub(crate) preprocessing: String,
    /// Geometry of the clips.
    #[serde(default)]
    pub(crate) clip: ClipSpec,
    /// What they show.
    #[serde(default)]
    pub(crate) clips: Vec<Clip>,
    /// Frames as a decoder would give them.
    pub(crate) video: Option<Video>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Clip {
    pub(crate) kind: String,
    pub(crate) seed: u64,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Video {
    pub(crate) kind: String,
    pub(crate) seed: u64,
    pub(crate) frames: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
}

/// Where `file` of the goldens is.
pub(crate) fn path(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file)
}

impl Golden {
    pub(crate) fn read(name: &str) -> Self {
        let bytes = std::fs::read(path(&format!("{name}.safetensors"))).expect("the golden is committed");
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).expect("generate.py wrote it");
        let recipe = &metadata.metadata().as_ref().expect("generate.py wrote a recipe")["golden"];
        let recipe = serde_json::from_str(recipe).expect("the recipe parses");
        let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).expect("generate.py wrote it");
        Self { recipe, tensors }
    }

    /// Channels of a batch norm.
    pub(crate) fn model_channels(&self, norm: &str) -> usize {
        let graph = self.recipe.architecture.graph(ClipSpec::default(), self.recipe.classes);
        let graph = graph.expect("generate.py describes a network");
        let name = format!("{norm}.weight");
        let parameter = graph.parameters().find(|parameter| parameter.name == name);
        parameter.expect("a norm has weights").shape[0]
    }

    pub(crate) fn preprocessing(&self) -> Preprocessing {
        match self.recipe.preprocessing.as_str() {
            "2018" => Preprocessing::AUTHORS_2018,
            "2020" => Preprocessing::AUTHORS_2020,
            "torchvision" => Preprocessing::TORCHVISION,
            other => panic!("no preprocessing is called {other}"),
        }
    }

    /// The network with its weights, as read from a model file.
    pub(crate) fn model(&self) -> Model {
        let &Recipe { ref architecture, classes, seed, .. } = &self.recipe;
        let spec = ModelSpec {
            name: "golden".to_owned(),
            version: "1".to_owned(),
            trained: false,
            license: None,
            origin: None,
            architecture: architecture.clone(),
            clip: self.recipe.clip,
            preprocessing: self.preprocessing(),
            labels: (0..classes).map(|class| format!("class {class}")).collect(),
            scores: ScoreFunction::default(),
        };
        let graph = spec.validate().expect("generate.py describes a network");
        let tensors = graph.parameters().map(|parameter| {
            let tensor = match self.tensors.get(&parameter.name) {
                Some(statistics) => statistics.clone(),
                None => {
                    let values = counter::weight(seed, &parameter.name, &parameter.shape);
                    Tensor::from_vec(values, parameter.shape.as_slice(), &Device::Cpu)
                        .expect("the shape is the values'")
                }
            };
            (parameter.name.clone(), tensor)
        });
        Model::new(spec.clone(), tensors.collect()).expect("names and shapes are the graph's")
    }

    /// The clips as the network takes them: `(n, 3, frames, size, size)`, f32.
    pub(crate) fn input(&self) -> Tensor {
        let ClipSpec { frames: count, size, .. } = self.recipe.clip;
        let clips = self.recipe.clips.iter().map(|clip| {
            let rgb = frames(&clip.kind, clip.seed, count, size, size);
            normalise(&rgb, [count, size, size], &self.preprocessing())
        });
        Tensor::stack(&clips.collect::<Vec<_>>(), 0).expect("all clips have one shape")
    }

    /// `(n, classes)`, f32.
    pub(crate) fn logits(&self) -> &Tensor {
        &self.tensors["logits"]
    }
}

/// The frames of `generate.py`: u8, `(t, h, w, 3)`.
pub(crate) fn frames(kind: &str, seed: u64, count: usize, height: usize, width: usize) -> Vec<u8> {
    let noise = CounterStream::new(seed, "noise");
    let slopes = CounterStream::new(seed, "gradient");
    let slopes: Vec<usize> = (0..12).map(|index| usize::from(slopes.byte(index)) % 7 + 1).collect();
    let gradient = |t: usize, y: usize, x: usize, c: usize| {
        let slope = &slopes[4 * c..];
        let phase = (slope[0] * x + slope[1] * y + 4 * slope[2] * t + 64 * slope[3]) % 510;
        phase.min(510 - phase)
    };
    let mut pixels = Vec::with_capacity(count * height * width * 3);
    for t in 0..count {
        for y in 0..height {
            for x in 0..width {
                for c in 0..3 {
                    let random = usize::from(noise.byte(pixels.len() as u64));
                    let pixel = match kind {
                        "black" => 0,
                        "white" => 255,
                        "checkerboard" => (x / 4 + y / 4 + t / 4) % 2 * 255,
                        "gradient" => gradient(t, y, x, c),
                        "noise" => random,
                        "binary" => random / 128 * 255,
                        "mixed" => (3 * gradient(t, y, x, c) + random) / 4,
                        other => panic!("no frames are called {other}"),
                    };
                    pixels.push(u8::try_from(pixel).expect("every recipe stays in 0..=255"));
                }
            }
        }
    }
    pixels
}

/// u8 `(t, h, w, 3)` to f32 `(3, t, h, w)`.
pub(crate) fn normalise(rgb: &[u8], [t, h, w]: [usize; 3], preprocessing: &Preprocessing) -> Tensor {
    let table = preprocessing.lookup_table();
    let values = rgb.iter().enumerate().map(|(index, &pixel)| table[index % 3][usize::from(pixel)]);
    let channels_last = Tensor::from_iter(values, &Device::Cpu).and_then(|values| values.reshape((t, h, w, 3)));
    channels_last.and_then(|values| values.permute((3, 0, 1, 2))?.contiguous()).expect("the shape is the frames'")
}

/// `|actual - expected| / |expected|` in the Euclidean norm.
pub(crate) fn relative_distance(actual: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(actual.dims(), expected.dims());
    let values = |tensor: &Tensor| {
        tensor
            .to_dtype(DType::F32)
            .and_then(|t| t.flatten_all())
            .and_then(|flat| flat.to_vec1::<f32>())
            .expect("f32 values")
    };
    let (actual, expected) = (values(actual), values(expected));
    let squares = actual.iter().zip(&expected).map(|(&a, &e)| (f64::from(a) - f64::from(e)).powi(2)).sum::<f64>();
    (squares / expected.iter().map(|&e| f64::from(e).powi(2)).sum::<f64>()).sqrt()
}
