//! `kinetoscope convert`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use candle_core::DType;
use clap::{Args as ClapArgs, ValueEnum};

use super::model::ShortcutArg;
use crate::convert::{ConvertOptions, Expectation, Selection, convert, read_preprocessing};
use crate::model::spec::ClipSpec;

/// Turn a PyTorch checkpoint into a model file
///
/// Takes 3D ResNets and R(2+1)D of 3D-ResNets-PyTorch, torchvision's r3d_18, mc3_18 and r2plus1d_18 and IG-65M's R(2+1)D, and
/// writes what `serve` and `classify` take. Code in the checkpoint is never executed. Family, depth, widths and class count are
/// read off the tensors. Weights are found under the usual keys and behind the usual prefixes; `inspect` shows what is found, --key, --prefix and --rename tell the rest.
#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// Checkpoint (.pth), as saved by any version of PyTorch, or its weights as safetensors
    #[arg(value_name = "IN.pth")]
    input: PathBuf,

    #[command(flatten)]
    selection: SelectionArgs,

    /// Model file to write; it appears whole or not at all
    #[arg(value_name = "OUT.safetensors")]
    output: PathBuf,

    /// Class names in the order of the last layer: text with one a line, numbered or not, CSV, or JSON
    #[arg(long, value_name = "FILE")]
    labels: PathBuf,

    /// How frames become the network's input: `2018` (the authors' first weights: pixels 0-255 minus the mean), `2020`
    /// (their newer ones: pixels / 255, mean and standard deviation), `torchvision`, or a JSON file (see
    /// weights/README.md)
    #[arg(long, value_name = "NAME|FILE")]
    preprocessing: PathBuf,

    /// Frames in a clip
    #[arg(long, value_name = "N", default_value_t = ClipSpec::default().frames)]
    clip_frames: usize,

    /// Height and width of a clip in pixels
    #[arg(long, value_name = "PIXELS", default_value_t = ClipSpec::default().size)]
    clip_size: usize,

    /// Use every N-th frame
    #[arg(long, value_name = "N", default_value_t = ClipSpec::default().temporal_stride)]
    temporal_stride: usize,

    /// Refuse a checkpoint of another depth
    #[arg(long, value_name = "N")]
    depth: Option<u32>,

    /// Refuse a checkpoint with another shortcut
    #[arg(long, value_enum)]
    shortcut: Option<ShortcutArg>,

    /// Temporal stride of the first convolution, which tensors don't show; 1 if absent
    #[arg(long, value_name = "N")]
    stem_stride: Option<usize>,

    /// Whether a max pool follows the first convolution, which tensors don't show; as published if absent
    #[arg(long, value_name = "BOOL")]
    max_pool: Option<bool>,

    /// Setting of the network that tensors don't show, such as stem.max_pool=false or epsilon=0.001; repeatable. `inspect` shows
    /// those of a model
    #[arg(long, value_name = "KEY=VALUE", value_parser = super::model::parse_setting)]
    config: Vec<(String, String)>,

    /// Type in which weights are stored
    #[arg(long, value_enum, default_value = "f32")]
    dtype: DTypeArg,

    /// Name by which requests choose the model; the input's file name if absent
    #[arg(long, help_heading = "About the model")]
    name: Option<String>,

    /// Version of the weights
    #[arg(long, default_value = "1", help_heading = "About the model")]
    weights_version: String,

    /// Licence of the weights, as an SPDX expression
    #[arg(long, help_heading = "About the model")]
    license: Option<String>,

    /// Where the weights come from
    #[arg(long, help_heading = "About the model")]
    origin: Option<String>,
}

/// Where in a checkpoint the weights are, if it does not show that by itself.
#[derive(Debug, Clone, ClapArgs)]
pub(super) struct SelectionArgs {
    /// Key under which the checkpoint has the weights, as `model` or `outer.inner`; the usual ones are tried if absent
    #[arg(long)]
    key: Option<String>,

    /// What the names of the network's tensors begin with, as `model.`; others are left out. Found by itself if absent
    #[arg(long)]
    prefix: Option<String>,

    /// Beginning of names to replace, as `head.dense=fc`; may be given several times
    #[arg(long, value_name = "OLD=NEW", value_parser = rename)]
    rename: Vec<(String, String)>,
}

fn rename(text: &str) -> Result<(String, String), String> {
    let (old, new) = text.split_once('=').ok_or("expected OLD=NEW")?;
    Ok((old.to_owned(), new.to_owned()))
}

impl From<SelectionArgs> for Selection {
    fn from(SelectionArgs { key, prefix, rename }: SelectionArgs) -> Self {
        Self { key, prefix, renames: rename }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DTypeArg {
    F32,
    F16,
    Bf16,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let expectation = |key: &str, value: Option<serde_json::Value>, option| {
        value.map(|value| Expectation { key: key.to_owned(), value, option })
    };
    let shortcut = args.shortcut.map(|shortcut| match shortcut {
        ShortcutArg::A => "a".into(),
        ShortcutArg::B => "b".into(),
    });
    let depth = expectation("depth", args.depth.map(Into::into), "--depth");
    let expected = depth.into_iter().chain(expectation("shortcut", shortcut, "--shortcut")).collect();
    let stem_stride = args.stem_stride.map(|stride| ("stem.stride_t".to_owned(), stride.to_string()));
    let max_pool = args.max_pool.map(|pool| ("stem.max_pool".to_owned(), pool.to_string()));
    let settings = stem_stride.into_iter().chain(max_pool).chain(args.config).collect();
    let options = ConvertOptions {
        selection: args.selection.into(),
        preprocessing: read_preprocessing(&args.preprocessing)?,
        clip: ClipSpec { frames: args.clip_frames, size: args.clip_size, temporal_stride: args.temporal_stride },
        labels: args.labels,
        expected,
        settings,
        dtype: match args.dtype {
            DTypeArg::F32 => DType::F32,
            DTypeArg::F16 => DType::F16,
            DTypeArg::Bf16 => DType::BF16,
        },
        name: args.name,
        version: args.weights_version,
        license: args.license,
        origin: args.origin,
    };
    let report = convert(&args.input, &args.output, &options)
        .with_context(|| format!("can't convert {}", args.input.display()))?;
    println!("{}: {report}", args.output.display());
    Ok(ExitCode::SUCCESS)
}
