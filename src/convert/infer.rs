//! Which network a checkpoint is of, from the names and shapes of its tensors.

use super::ConvertError;
use super::checkpoint::Checkpoint;
use crate::model::layout::{DEPTHS, stages};
use crate::model::spec::{Architecture, Family, Shortcut, Stem};

/// What the tensors don't show.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Hints {
    pub(super) depth: Option<u32>,
    pub(super) shortcut: Option<Shortcut>,
    pub(super) stem_stride_t: Option<usize>,
    pub(super) max_pool: Option<bool>,
}

/// The architecture and class count of a checkpoint. Hints that the tensors contradict are refused.
pub(super) fn infer(checkpoint: &Checkpoint, hints: &Hints) -> Result<(Architecture, usize), ConvertError> {
    let (family, stem_name) = if checkpoint.contains("conv1.weight") {
        (Family::ResNet3d, "conv1.weight")
    } else if checkpoint.contains("stem.0.weight") {
        (Family::TorchvisionR3d, "stem.0.weight")
    } else {
        let names = checkpoint.tensors().map(|(name, _)| name.to_owned()).take(4).collect();
        return Err(ConvertError::UnknownNames { names });
    };

    let &[_, 3, kernel_t, 7, 7] = checkpoint.shape(stem_name)? else {
        return Err(shape(checkpoint, stem_name, "[channels, 3, frames, 7, 7]"));
    };
    let defaults = match family {
        Family::ResNet3d => Stem::AUTHORS,
        Family::TorchvisionR3d => Stem::TORCHVISION,
    };
    let stem = Stem {
        kernel_t,
        stride_t: hints.stem_stride_t.unwrap_or(defaults.stride_t),
        max_pool: hints.max_pool.unwrap_or(defaults.max_pool),
    };

    // Every convolution of torchvision's blocks is the first member of a sequence.
    let suffix = match family {
        Family::ResNet3d => "weight",
        Family::TorchvisionR3d => "0.weight",
    };
    let bottleneck = checkpoint.contains(&format!("layer1.0.conv3.{suffix}"));
    let blocks = [1, 2, 3, 4].map(|stage| {
        let has = |index: &usize| checkpoint.contains(&format!("layer{stage}.{index}.conv1.{suffix}"));
        (0..).take_while(has).count()
    });
    let depth = DEPTHS.into_iter().find(|&depth| stages(depth) == Some((blocks, bottleneck)));
    let depth = depth.ok_or(ConvertError::UnknownDepth { blocks, bottleneck })?;
    if let Some(expected) = hints.depth
        && expected != depth
    {
        return Err(ConvertError::Depth { found: depth, expected, blocks, bottleneck });
    }

    let last_name = format!("layer4.0.conv1.{suffix}");
    let &[last_width, _, _, _, _] = checkpoint.shape(&last_name)? else {
        return Err(shape(checkpoint, &last_name, "[channels, channels, t, h, w]"));
    };
    let widen_factor = widen_factor(last_width);

    let projection = "layer2.0.downsample.0.weight";
    let shortcut = if checkpoint.contains(projection) { Shortcut::B } else { Shortcut::A };
    if let Some(expected) = hints.shortcut
        && expected != shortcut
    {
        return Err(ConvertError::Shortcut { expected, projection });
    }

    let &[classes, _] = checkpoint.shape("fc.weight")? else {
        return Err(shape(checkpoint, "fc.weight", "[classes, features]"));
    };
    Ok((Architecture { family, depth, shortcut, widen_factor, stem }, classes))
}

/// The factor that gives the same channels everywhere as the unknown one that gave the last stage `last_width`. Only
/// the last stage tells: with a factor `w` it has `floor(512 w)` channels, and the others are floors of parts of that.
fn widen_factor(last_width: usize) -> f64 {
    last_width as f64 / 512.0
}

fn shape(checkpoint: &Checkpoint, name: &str, expected: &str) -> ConvertError {
    match checkpoint.shape(name) {
        Ok(found) => {
            ConvertError::Shape { name: name.to_owned(), found: found.to_vec(), expected: expected.to_owned() }
        }
        Err(error) => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_of_every_stage_follow_from_the_last() {
        for thousandths in 16..4000 {
            let factor = f64::from(thousandths) / 1000.0;
            let widths = |factor: f64| [64.0, 128.0, 256.0, 512.0].map(|width| (width * factor) as usize);
            let [_, _, _, last] = widths(factor);
            assert_eq!(widths(widen_factor(last)), widths(factor), "{factor}");
        }
    }
}
