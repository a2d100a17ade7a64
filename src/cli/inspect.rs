//! `kinetoscope inspect`.

use std::io::Read;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use candle_conv3d::graph::Graph;
use clap::Args as ClapArgs;
use serde_json::{Value, json};

use super::convert::SelectionArgs;
use super::model;
use crate::convert::{Checkpoint, Selection, describe_network};
use crate::hub::ModelSource;
use crate::model::file::{Model, SPEC_KEY};
use crate::model::spec::{ClipSpec, ColorMatrix, ModelSpec, Preprocessing, Resize};
use crate::zoo::{Detected, TensorShapes, detect};

/// Say what a model file or checkpoint is
///
/// A model file is checked as `serve` checks it.
#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// Model file (.safetensors) or checkpoint (.pth), or one on the Hugging Face Hub as hf:ORG/REPO[/FILE][@REVISION]; the
    /// built-in model if absent
    #[arg(value_name = "FILE")]
    file: Option<ModelSource>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    selection: SelectionArgs,

    /// List every tensor with its shape
    #[arg(long)]
    tensors: bool,

    /// Print the network as a table of its layers
    #[arg(long, conflicts_with_all = ["json", "tensors"])]
    layers: bool,

    /// Print the network as a graph for Graphviz: `kinetoscope inspect --graph | dot -Tsvg > network.svg`
    #[arg(long, conflicts_with_all = ["json", "tensors", "layers"])]
    graph: bool,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    // A checkpoint is told from a model file by its first bytes.
    let path = args.file.as_ref().map(model::locate).transpose()?;
    let selection = args.selection.into();
    if args.layers || args.graph {
        let network = match &path {
            Some(path) if is_model_file(path)? => model::read(path)?.graph,
            Some(path) => network_of_checkpoint(path, &selection)?,
            None => model::load(None)?.graph,
        };
        if args.graph {
            print!("{}", network.graphviz());
        } else {
            print!("{}", network.table());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let description = match &path {
        Some(path) if is_model_file(path)? => describe_model(model::read(path)?),
        Some(path) => describe_checkpoint(path, &selection)?,
        None => describe_model(model::load(None)?),
    };
    if args.json {
        println!("{}", description.json(args.tensors));
    } else {
        print!("{}", description.text(args.tensors));
    }
    Ok(ExitCode::SUCCESS)
}

/// What there is to say about a file.
struct Description {
    /// `(key, words, JSON)` in order.
    facts: Vec<(&'static str, String, Value)>,
    /// `(name, shape)` in order of names.
    tensors: Vec<(String, Vec<usize>)>,
}

impl Description {
    fn text(&self, with_tensors: bool) -> String {
        let mut text = String::new();
        for (key, words, _) in &self.facts {
            text += &format!("{:<14} {words}\n", key.replace('_', " "));
        }
        if with_tensors {
            for (name, shape) in &self.tensors {
                text += &format!("  {name} {shape:?}\n");
            }
        }
        text
    }

    fn json(&self, with_tensors: bool) -> Value {
        let facts = self.facts.iter().map(|(key, _, value)| ((*key).to_owned(), value.clone()));
        let mut object: serde_json::Map<String, Value> = facts.collect();
        if with_tensors {
            let tensors = self.tensors.iter().map(|(name, shape)| json!({"name": name, "shape": shape}));
            object.insert("tensors".to_owned(), tensors.collect());
        }
        Value::Object(object)
    }
}

fn describe_model(model: Model) -> Description {
    let dtype = model.dtype().as_str();
    let bytes = model.tensor_bytes();
    let ModelSpec { name, version, trained, license, origin, architecture, clip, preprocessing, labels, scores } =
        &model.spec;
    let unknown = || "unknown".to_owned();
    let values: usize = model.tensors.values().map(|tensor| tensor.elem_count()).sum();
    let mut shown: Vec<&str> = labels.iter().take(5).map(String::as_str).collect();
    if labels.len() > shown.len() {
        shown.push("...");
    }
    let facts = vec![
        ("kind", "Kinetoscope model file".to_owned(), json!("model")),
        ("name", name.clone(), json!(name)),
        ("version", version.clone(), json!(version)),
        ("trained", if *trained { "yes" } else { "no: its labels mean nothing" }.to_owned(), json!(trained)),
        ("architecture", architecture.to_string(), json!(architecture)),
        (
            "weights",
            format!("{values} values, {dtype}, {:.1} MB", bytes as f64 / 1e6),
            json!({"values": values, "dtype": dtype, "bytes": bytes}),
        ),
        (
            "clip",
            format!("{} frames of {size}x{size}, every {}. frame", clip.frames, clip.temporal_stride, size = clip.size),
            json!(clip),
        ),
        ("preprocessing", describe_preprocessing(preprocessing, clip.size), json!(preprocessing)),
        ("labels", format!("{}: {}", labels.len(), shown.join(", ")), json!(labels)),
        ("scores", scores.to_string(), json!(scores)),
        ("license", license.clone().unwrap_or_else(unknown), json!(license)),
        ("origin", origin.clone().unwrap_or_else(unknown), json!(origin)),
    ];
    let mut tensors: Vec<_> =
        model.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.dims().to_vec())).collect();
    tensors.sort();
    Description { facts, tensors }
}

fn describe_preprocessing(preprocessing: &Preprocessing, size: usize) -> String {
    let Preprocessing { resize, antialias, color_matrix, pixel_divisor, mean, std } = preprocessing;
    let resize = match resize {
        Resize::ShortSide => format!("short side to {size}"),
        Resize::Fixed { height, width } => format!("{height}x{width}"),
    };
    let antialias = if *antialias { "antialiased" } else { "not antialiased" };
    let matrix = match color_matrix {
        ColorMatrix::Bt601 => "BT.601",
        ColorMatrix::Tagged => "colours as tagged",
    };
    format!(
        "resize {resize} ({antialias}), crop {size}x{size}, {matrix}, (pixel / {pixel_divisor} - {mean:?}) / {std:?}"
    )
}

fn describe_checkpoint(path: &Path, selection: &Selection) -> anyhow::Result<Description> {
    let checkpoint =
        Checkpoint::open_selected(path, selection).with_context(|| format!("can't read {}", path.display()))?;
    let mut tensors: Vec<_> = checkpoint.tensors().map(|(name, shape)| (name.to_owned(), shape.to_vec())).collect();
    tensors.sort();
    let values: usize = tensors.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    let arch = checkpoint.arch().map(str::to_owned);
    let network = describe_network(&checkpoint);
    let words = match &network {
        Ok(network) => network.clone(),
        Err(error) => format!("none that `convert` takes: {error}"),
    };
    let facts = vec![
        ("kind", "PyTorch checkpoint; `kinetoscope convert` makes a model file of it".to_owned(), json!("checkpoint")),
        ("network", words, json!(network.ok())),
        ("arch", arch.clone().unwrap_or_else(|| "not recorded".to_owned()), json!(arch)),
        (
            "weights",
            format!("{} tensors, {values} values", tensors.len()),
            json!({"tensors": tensors.len(), "values": values}),
        ),
    ];
    Ok(Description { facts, tensors })
}

/// The network that `convert` sees in a checkpoint, for clips of the usual geometry.
fn network_of_checkpoint(path: &Path, selection: &Selection) -> anyhow::Result<Graph> {
    let checkpoint =
        Checkpoint::open_selected(path, selection).with_context(|| format!("can't read {}", path.display()))?;
    let Detected { architecture, classes } = detect(&TensorShapes::new(checkpoint.tensors()))?;
    Ok(architecture.graph(ClipSpec::default(), classes)?)
}

/// Whether a file is a model file, by the metadata in its header: other safetensors files are weights to convert.
fn is_model_file(path: &Path) -> anyhow::Result<bool> {
    /// Largest header that safetensors has.
    const MAX_HEADER: u64 = 100_000_000;
    let mut file = std::fs::File::open(path).with_context(|| format!("can't open {}", path.display()))?;
    let read = |bytes: u64, file: &mut std::fs::File| {
        let mut read = Vec::new();
        let result = file.take(bytes).read_to_end(&mut read);
        result.map(|_| read).with_context(|| format!("can't read {}", path.display()))
    };
    let length = read(8, &mut file)?;
    let length = length.first_chunk().map_or(0, |length| u64::from_le_bytes(*length));
    if length > MAX_HEADER {
        return Ok(false);
    }
    let header: Value = serde_json::from_slice(&read(length, &mut file)?).unwrap_or_default();
    Ok(header.get("__metadata__").is_some_and(|metadata| metadata.get(SPEC_KEY).is_some()))
}
