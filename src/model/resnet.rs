//! The 3D ResNet as a candle network, for training and as the reference of the inference plans.

use candle_conv3d::{
    Activation, BatchStatistics, Conv3d, Conv3dConfig, ConvNormLayer, Following, MaxPool3d, MaxPool3dConfig, Precision,
    Statistics, Tape, Volume, add_relu, batch_norm, conv3d_no_bias, fixed_norm,
};
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Tensor, Var, bail};
use candle_nn::{Init, Linear, Module, ModuleT, VarBuilder};

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

/// Which batch norms take their statistics from the batch, and move their running ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormMode {
    /// None: all normalise by their running statistics, as in evaluation.
    Fixed,
    /// Those of block `from_block` and later, counted over all stages; the stem's too if `stem` is set.
    Batch {
        /// Whether the first convolution's belongs to them.
        stem: bool,
        /// The first block whose batch norms do.
        from_block: usize,
    },
}

impl NormMode {
    /// Whether the stem's belongs to them, and the first block whose do.
    fn trained(self) -> (bool, usize) {
        match self {
            Self::Fixed => (false, usize::MAX),
            Self::Batch { stem, from_block } => (stem, from_block),
        }
    }
}

/// Logits, and the way back from a loss over them to the gradients of all variables.
#[derive(Debug)]
pub struct ForwardPass {
    /// Logits `(n, classes)`.
    pub logits: Tensor,
    tape: Tape,
}

impl ForwardPass {
    /// Gradients of a `loss` of the logits.
    pub fn backward(self, loss: &Tensor) -> Result<GradStore> {
        let mut gradients = loss.backward()?;
        self.tape.backward(&mut gradients)?;
        Ok(gradients)
    }
}

#[derive(Debug, Clone)]
struct ConvNorm {
    conv: Conv3d,
    norm: BatchNorm,
}

/// Batch normalisation with PyTorch's constants: epsilon 1e-5, momentum 0.1.
#[derive(Debug, Clone)]
struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    /// Moved in training where these are variables.
    running_mean: Tensor,
    running_var: Tensor,
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
    ///
    /// Where `vb` gives variables, gradients reach them and running statistics are kept in them; where it gives plain
    /// tensors, no gradient is tracked.
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
        let mode = if train { NormMode::Batch { stem: true, from_block: 0 } } else { NormMode::Fixed };
        self.features(clips, mode)
    }

    /// The way of training: [`features`](Self::features) and [`classify`](Self::classify), by a [`Tape`] where it can take
    /// the clips, which computes in `precision` then.
    pub fn forward_pass(&self, clips: &Tensor, mode: NormMode, precision: Precision) -> Result<ForwardPass> {
        let mut tape = Tape::default();
        let features = if Tape::takes(clips) {
            self.record(&mut tape, &Volume::with_precision(clips, precision)?, mode)?
        } else {
            self.features(clips, mode)?
        };
        Ok(ForwardPass { logits: self.classify(&features)?, tape })
    }

    fn record(&self, tape: &mut Tape, clips: &Volume, mode: NormMode) -> Result<Tensor> {
        let (stem, from_block) = mode.trained();
        let pool = self.max_pool.as_ref().map_or(Following::Nothing, |pool| Following::MaxPool(*pool.config()));
        let mut x = self.stem.record(tape, clips, stem, Activation::Relu, pool)?;
        for (index, block) in self.blocks.iter().enumerate() {
            x = block.record(tape, &x, index >= from_block)?;
        }
        tape.mean(&x)
    }

    /// [`features_t`](Self::features_t) where only some batch norms are in training.
    pub fn features(&self, clips: &Tensor, mode: NormMode) -> Result<Tensor> {
        let (stem, from_block) = mode.trained();
        let mut x = self.stem.forward(clips, stem, Activation::Relu)?;
        if let Some(pool) = &self.max_pool {
            x = pool.forward(&x)?;
        }
        for (index, block) in self.blocks.iter().enumerate() {
            x = block.forward(&x, index >= from_block)?;
        }
        x.flatten_from(2)?.mean(2)
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
        let conv = conv3d_no_bias(layer.in_channels, layer.out_channels, layer.kernel, config, vb.pp(&layer.conv))?;
        Ok(Self { conv, norm: BatchNorm::new(layer.out_channels, &vb.pp(&layer.norm))? })
    }

    fn forward(&self, x: &Tensor, train: bool, activation: Activation) -> Result<Tensor> {
        self.norm.forward(&self.conv.forward(x)?, train, activation)
    }

    /// [`forward`](Self::forward) on a tape.
    fn record(
        &self,
        tape: &mut Tape,
        x: &Volume,
        train: bool,
        activation: Activation,
        following: Following<'_>,
    ) -> Result<Volume> {
        let BatchNorm { weight: norm_weight, bias: norm_bias, running_mean, running_var } = &self.norm;
        let statistics =
            if train { Statistics::Batch } else { Statistics::Fixed { mean: running_mean, variance: running_var } };
        let layer = ConvNormLayer {
            weight: self.conv.weight(),
            config: *self.conv.config(),
            norm_weight,
            norm_bias,
            statistics,
            epsilon: BatchNorm::EPSILON,
            activation,
            following,
        };
        let (output, statistics) = tape.conv_norm(x, &layer)?;
        if let Some(BatchStatistics { mean, variance, count }) = statistics {
            self.norm.move_statistics(&mean, &variance, count)?;
        }
        Ok(output)
    }
}

impl BatchNorm {
    const EPSILON: f64 = 1e-5;
    const MOMENTUM: f64 = 0.1;

    fn new(channels: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        let get = |name: &str, value: f64| vb.get_with_hints(channels, name, Init::Const(value));
        Ok(Self {
            weight: get("weight", 1.0)?,
            bias: get("bias", 0.0)?,
            running_mean: get("running_mean", 0.0)?,
            running_var: get("running_var", 1.0)?,
        })
    }

    /// Moves the running statistics if `train` is set: as in PyTorch, the variance that is kept is the unbiased one while
    /// that which normalises is biased.
    fn forward(&self, x: &Tensor, train: bool, activation: Activation) -> Result<Tensor> {
        let Self { weight, bias, running_mean, running_var } = self;
        if !train {
            let (mean, variance) = (running_mean.detach(), running_var.detach());
            return fixed_norm(x, weight, bias, &mean, &variance, Self::EPSILON, activation);
        }
        let normalised = batch_norm(x, weight, bias, Self::EPSILON, activation)?;
        let count = x.elem_count() / x.dim(1)?.max(1);
        self.move_statistics(&normalised.mean, &normalised.variance, count)?;
        Ok(normalised.output)
    }

    /// Moves running statistics that are variables towards those of a batch with `count` values a channel.
    fn move_statistics(&self, mean: &Tensor, variance: &Tensor, count: usize) -> Result<()> {
        if count < 2 {
            bail!(
                "batch norm has {count} value a channel in training; it needs 2: take more clips a batch, or longer ones"
            );
        }
        let unbiased = (variance * (count as f64 / (count - 1) as f64))?;
        for (running, batch) in [(&self.running_mean, mean), (&self.running_var, &unbiased)] {
            if running.is_variable() {
                let kept = (running.detach() * (1.0 - Self::MOMENTUM))?;
                let moved = (kept + (batch.to_dtype(running.dtype())? * Self::MOMENTUM)?)?;
                // A variable's tensor becomes that same variable.
                Var::from_tensor(running)?.set(&moved)?;
            }
        }
        Ok(())
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

    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let mut y = x.clone();
        for (index, conv) in self.convs.iter().enumerate() {
            let last = index + 1 == self.convs.len();
            y = conv.forward(&y, train, if last { Activation::Identity } else { Activation::Relu })?;
        }
        let shortcut = match &self.shortcut {
            ShortcutPath::Identity => x.clone(),
            &ShortcutPath::Strided { stride, out_channels } => strided_shortcut(x, stride, out_channels)?,
            ShortcutPath::Projection(conv) => conv.forward(x, train, Activation::Identity)?,
        };
        add_relu(&y, &shortcut)
    }

    /// [`forward`](Self::forward) on a tape.
    fn record(&self, tape: &mut Tape, x: &Volume, train: bool) -> Result<Volume> {
        let shortcut = match &self.shortcut {
            ShortcutPath::Identity => x.clone(),
            &ShortcutPath::Strided { stride, out_channels } => tape.strided_shortcut(x, stride, out_channels)?,
            ShortcutPath::Projection(conv) => conv.record(tape, x, train, Activation::Identity, Following::Nothing)?,
        };
        let mut y = x.clone();
        for (index, conv) in self.convs.iter().enumerate() {
            let last = index + 1 == self.convs.len();
            let following = if last { Following::Add(&shortcut) } else { Following::Nothing };
            y = conv.record(tape, &y, train, Activation::Relu, following)?;
        }
        Ok(y)
    }
}

/// Shortcut A: every `stride`-th position along t, h and w, and zeros for the new channels. The gradient flows;
/// the authors' code cuts it (`out.data`), which their paper does not ask for.
fn strided_shortcut(x: &Tensor, stride: usize, out_channels: usize) -> Result<Tensor> {
    let mut picked = x.clone();
    if stride > 1 {
        // A pool over single places picks, and is the fastest that does.
        let pick = MaxPool3dConfig { kernel: [1; 3], stride: [stride; 3], padding: [0; 3] };
        picked = MaxPool3d::new(pick).forward(x)?;
    }
    picked.pad_with_zeros(1, 0, out_channels - x.dim(1)?)
}
