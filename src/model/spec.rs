//! What a model file says about itself: architecture, clip geometry, preprocessing and labels.
//!
//! A [`ModelSpec`] is stored as JSON in the safetensors `__metadata__`, so that one file holds all that is
//! needed to serve a model and nothing about a model lives in code.

use serde::{Deserialize, Serialize};

use super::scores::ScoreFunction;
use crate::zoo::Architecture;

/// All that a model file says about itself beside its tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// Name by which requests choose the model, such as `resnet-34-kinetics`.
    pub name: String,
    /// Version of the weights; free text. Of several, a server takes the newest: 1.10 comes after 1.9.
    pub version: String,
    /// False for a network whose weights were only initialised: its scores mean nothing.
    pub trained: bool,
    /// SPDX expression or a sentence; `None` if unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
    /// Where the weights come from: a URL, a paper, a training command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// The network.
    pub architecture: Architecture,
    /// Geometry of one clip.
    pub clip: ClipSpec,
    /// From decoded frames to the network's input.
    pub preprocessing: Preprocessing,
    /// Class names in the order of the last layer's outputs.
    pub labels: Vec<String>,
    /// From the network's logits to scores; softmax of the logits as they are if the file says nothing.
    #[serde(default, skip_serializing_if = "ScoreFunction::is_default")]
    pub scores: ScoreFunction,
}

impl ModelSpec {
    /// Name and version: what tells models of a server apart.
    pub fn id(&self) -> (&str, &str) {
        (&self.name, &self.version)
    }
}

/// Geometry of one clip: the network's input is `(n, 3, frames, size, size)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipSpec {
    /// Frames in a clip (16 for the published weights).
    pub frames: usize,
    /// Height and width in pixels (112 for the published weights).
    pub size: usize,
    /// Every `temporal_stride`-th frame of the video is used; 1 for the published weights.
    pub temporal_stride: usize,
}

/// From decoded frames to the network's input: resize, centre crop to [`ClipSpec::size`], then for each channel
/// `(pixel / pixel_divisor - mean) / std`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preprocessing {
    /// Target size of the whole frame before the crop.
    pub resize: Resize,
    /// True: Pillow's bilinear, a triangle filter widened to the scale. False: two taps an axis whatever the
    /// scale, as torchvision's `resize(antialias=False)`.
    pub antialias: bool,
    /// How Y'CbCr becomes RGB.
    pub color_matrix: ColorMatrix,
    /// Divides pixels of 0-255 first: 1 or 255 (`norm_value` of the authors' code).
    pub pixel_divisor: f32,
    /// Subtracted from the divided pixel, in RGB order.
    pub mean: [f32; 3],
    /// Divides last, in RGB order.
    pub std: [f32; 3],
}

/// Target size of a frame before the centre crop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Resize {
    /// The short side becomes the clip's size, the long side `floor(size * long / short)`: the authors' `Scale`.
    ShortSide,
    /// Every frame becomes this size, whatever its aspect ratio (torchvision: 128x171).
    Fixed {
        /// Pixels.
        height: usize,
        /// Pixels.
        width: usize,
    },
}

/// Which matrix turns Y'CbCr into RGB. The value range (full or limited) always follows the tags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ColorMatrix {
    /// BT.601 for every video: the published weights were trained on frames converted this way.
    Bt601,
    /// What the video's tags say (BT.601 where they say nothing).
    Tagged,
}

impl Preprocessing {
    /// The first published Kinetics weights (branch `CVPR2018` of the authors' code): pixels 0-255 minus the
    /// ActivityNet mean, no division.
    pub const AUTHORS_2018: Self = Self {
        resize: Resize::ShortSide,
        antialias: true,
        color_matrix: ColorMatrix::Bt601,
        pixel_divisor: 1.0,
        mean: [114.7748, 107.7354, 99.4750],
        std: [1.0, 1.0, 1.0],
    };

    /// The newer weights (branch `master`): pixels / 255, Kinetics mean and standard deviation.
    pub const AUTHORS_2020: Self = Self {
        pixel_divisor: 255.0,
        mean: [0.4345, 0.4051, 0.3775],
        std: [0.2768, 0.2713, 0.2737],
        ..Self::AUTHORS_2018
    };

    /// torchvision's `R3D_18_Weights.KINETICS400_V1.transforms()`.
    pub const TORCHVISION: Self = Self {
        resize: Resize::Fixed { height: 128, width: 171 },
        antialias: false,
        color_matrix: ColorMatrix::Bt601,
        pixel_divisor: 255.0,
        mean: [0.43216, 0.394666, 0.37645],
        std: [0.22803, 0.22145, 0.216989],
    };

    /// The network's input for a pixel of 0-255, for each channel and each of the 256 values.
    pub fn lookup_table(&self) -> [[f32; 256]; 3] {
        std::array::from_fn(|channel| {
            std::array::from_fn(|pixel| (pixel as f32 / self.pixel_divisor - self.mean[channel]) / self.std[channel])
        })
    }
}

impl Default for ClipSpec {
    /// The published weights' clip: 16 consecutive frames of 112x112.
    fn default() -> Self {
        Self { frames: 16, size: 112, temporal_stride: 1 }
    }
}

impl ClipSpec {
    /// Bytes of one clip as 8-bit RGB: `frames * size * size * 3`.
    pub fn rgb_len(&self) -> usize {
        self.frames * self.size * self.size * 3
    }
}
