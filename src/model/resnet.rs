//! The 3D ResNet as a candle network, for training and as the reference of the inference plans.

use candle_conv3d::{Conv3d, Conv3dConfig, MaxPool3d, MaxPool3dConfig};
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{BatchNorm, BatchNormConfig, Linear, Module, ModuleT, VarBuilder};

use super::file::Model;
use super::layout::{Block, BlockShortcut, ConvLayer, Layout};

/// A 3D ResNet: `(n, 3, t, h, w)` to logits `(n, classes)`.
#[derive(Debug, Clone)]
pub struct ResNet3d {
    stem: ConvNorm,
    max_pool: Option<MaxPool3d>,
    blocks: Vec<ResidualBlock>,
    fc: Linear,
}

#[derive(Debug, Clone)]
struct ConvNorm {
    conv: Conv3d,
    norm: BatchNorm,
}

#[derive(Debug, Clone)]
struct ResidualBlock {
    convs: Vec<ConvNorm>,
    shortcut: ShortcutPath,
}

#[derive(Debug, Clone)]
enum ShortcutPath {
    Identity,
    Strided { stride: usize, out_channels: usize },
    Projection(ConvNorm),
}

impl ResNet3d {
    /// The network of a layout with the variables of `vb`, named as in the checkpoint.
    pub fn new(layout: &Layout, vb: VarBuilder<'_>) -> Result<Self> {
        let max_pool = layout
            .max_pool
            .then(|| MaxPool3d::new(MaxPool3dConfig { kernel: [3; 3], stride: [2; 3], padding: [1; 3] }));
        Ok(Self {
            stem: ConvNorm::new(&layout.stem, &vb)?,
            max_pool,
            blocks: layout.blocks.iter().map(|block| ResidualBlock::new(block, &vb)).collect::<Result<_>>()?,
            fc: candle_nn::linear(layout.features, layout.classes, vb.pp("fc"))?,
        })
    }

    /// The network of a model file, its weights converted to `dtype` on `device`.
    pub fn from_model(model: &Model, dtype: DType, device: &Device) -> Result<Self> {
        Self::new(&model.layout, VarBuilder::from_tensors(model.tensors.clone(), dtype, device))
    }

    /// The averaged features of each clip, `(n, features)`: input of the last layer, also called embedding.
    pub fn features_t(&self, clips: &Tensor, train: bool) -> Result<Tensor> {
        let mut x = self.stem.forward_t(clips, train)?.relu()?;
        if let Some(pool) = &self.max_pool {
            x = pool.forward(&x)?;
        }
        for block in &self.blocks {
            x = block.forward_t(&x, train)?;
        }
        x.mean((2, 3, 4))
    }

    /// Logits `(n, classes)` of features `(n, features)`.
    pub fn classify(&self, features: &Tensor) -> Result<Tensor> {
        self.fc.forward(features)
    }
}

impl ModuleT for ResNet3d {
    fn forward_t(&self, clips: &Tensor, train: bool) -> Result<Tensor> {
        self.classify(&self.features_t(clips, train)?)
    }
}

impl ConvNorm {
    fn new(layer: &ConvLayer, vb: &VarBuilder<'_>) -> Result<Self> {
        let config = Conv3dConfig { stride: layer.stride, padding: layer.padding };
        let conv = candle_conv3d::conv3d_no_bias(
            layer.in_channels,
            layer.out_channels,
            layer.kernel,
            config,
            vb.pp(&layer.conv),
        )?;
        let norm = candle_nn::batch_norm(layer.out_channels, BatchNormConfig::default(), vb.pp(&layer.norm))?;
        Ok(Self { conv, norm })
    }

    fn forward_t(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        self.norm.forward_t(&self.conv.forward(x)?, train)
    }
}

impl ResidualBlock {
    fn new(block: &Block, vb: &VarBuilder<'_>) -> Result<Self> {
        let shortcut = match &block.shortcut {
            BlockShortcut::Identity => ShortcutPath::Identity,
            &BlockShortcut::Strided { stride, out_channels } => ShortcutPath::Strided { stride, out_channels },
            BlockShortcut::Projection(layer) => ShortcutPath::Projection(ConvNorm::new(layer, vb)?),
        };
        let convs = block.convs.iter().map(|layer| ConvNorm::new(layer, vb)).collect::<Result<_>>()?;
        Ok(Self { convs, shortcut })
    }

    fn forward_t(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let mut y = x.clone();
        for (index, conv) in self.convs.iter().enumerate() {
            if index > 0 {
                y = y.relu()?;
            }
            y = conv.forward_t(&y, train)?;
        }
        let shortcut = match &self.shortcut {
            ShortcutPath::Identity => x.clone(),
            &ShortcutPath::Strided { stride, out_channels } => strided_shortcut(x, stride, out_channels)?,
            ShortcutPath::Projection(conv) => conv.forward_t(x, train)?,
        };
        (y + shortcut)?.relu()
    }
}

/// Shortcut A: every `stride`-th position along t, h and w, and zeros for the new channels. The gradient flows;
/// the authors' code cuts it (`out.data`), which their paper does not ask for.
fn strided_shortcut(x: &Tensor, stride: usize, out_channels: usize) -> Result<Tensor> {
    let mut picked = x.clone();
    if stride > 1 {
        for dim in 2..5 {
            let len = picked.dim(dim)? as u32;
            let indices = Tensor::arange_step(0, len, stride as u32, x.device())?;
            picked = picked.index_select(&indices, dim)?;
        }
    }
    picked.pad_with_zeros(1, 0, out_channels - x.dim(1)?)
}
