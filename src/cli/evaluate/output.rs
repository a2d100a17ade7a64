//! The files of an evaluation.

use std::ops::ControlFlow;
use std::path::Path;

use anyhow::Context;

use super::Args;
use crate::model::spec::{ClipSpec, ColorMatrix, Preprocessing};
use crate::replacement::write_whole;
use crate::train::dataset::Example;
use crate::train::evaluate::{
    ErrorRow, Evaluation, Page, ResultFile, STRIP_FRAME_SIZE, STRIP_FRAMES, Strip, Summary, confusion_csv,
    confusion_png, draw_confusion, draw_reliability, draw_strips, reliability_png,
};
use crate::video::{DecodeOptions, Decoder};

/// Side of the frames on the page, in pixels.
const THUMBNAIL: usize = 128;
/// Frames of each video there.
const THUMBNAILS: usize = 5;
/// Labels that are listed of each video there.
const LABELS: usize = 3;
/// Of classes in a confusion matrix on the page: with more, the picture would be most of the page.
const MOST_CLASSES: usize = 120;

/// Writes what `--out` promises.
pub(super) fn write_folder(
    args: &Args,
    out: &Path,
    summary: &Summary,
    evaluation: &Evaluation,
    examples: &[Example],
    ids: &[String],
) -> anyhow::Result<()> {
    let write = |name: &str, write: &dyn Fn(&Path) -> std::io::Result<()>| {
        let path = out.join(name);
        write(&path).with_context(|| format!("can't write {}", path.display()))
    };
    let text = |text: String| move |path: &Path| write_whole(path, text.as_bytes());
    write("summary.json", &text(serde_json::to_string_pretty(summary)? + "\n"))?;
    write("results.json", &text(serde_json::to_string(&ResultFile::new(evaluation, ids))?))?;
    write("classes.csv", &text(summary.classes_csv()))?;
    if !summary.multi_label {
        write("confusion.csv", &text(confusion_csv(evaluation)))?;
        let (confusion, names) = (evaluation.confusion(), evaluation.classes());
        write("confusion.png", &|path| draw_confusion(&confusion, names, path))?;
    }
    if let Some(calibration) = &summary.calibration {
        write("reliability.png", &|path| draw_reliability(calibration, path))?;
    }
    if args.examples > 0 {
        let strips = strips(args, evaluation, examples);
        write("examples.png", &|path| draw_strips(&strips, path))?;
    }
    Ok(())
}

/// Writes the page of `--report`.
pub(super) fn write_page(
    args: &Args,
    path: &Path,
    summary: &Summary,
    evaluation: &Evaluation,
    examples: &[Example],
) -> anyhow::Result<()> {
    let thumbnails = Frames { count: THUMBNAILS, size: THUMBNAIL, decoder: decoder(args) };
    let errors = evaluation.errors();
    let row = |&(example, _): &(usize, f64)| {
        let (_, answer) = evaluation.answers().find(|(other, _)| *other == example)?;
        let rgb = thumbnails.decode(&examples[example], answer.frames);
        Some(ErrorRow {
            name: examples[example].id.clone(),
            frames: rgb.and_then(|rgb| crate::train::evaluate::side_by_side(&rgb, THUMBNAIL)),
            truth: evaluation.truth(example),
            truth_score: evaluation.truth_score(example, answer),
            predicted: evaluation.predicted_labels(example, answer, LABELS),
        })
    };
    let has_matrix = !summary.multi_label && summary.classes.len() <= MOST_CLASSES;
    let page = Page {
        summary,
        error_count: errors.len(),
        errors: errors.iter().take(args.report_errors.into()).filter_map(row).collect(),
        confusion: has_matrix.then(|| confusion_png(&evaluation.confusion(), evaluation.classes())).transpose()?,
        reliability: summary.calibration.as_ref().map(reliability_png).transpose()?,
    };
    write_whole(path, page.html().as_bytes()).with_context(|| format!("can't write {}", path.display()))
}

/// Frames of some videos and what the model says about them.
fn strips(args: &Args, evaluation: &Evaluation, examples: &[Example]) -> Vec<Strip> {
    let frames = Frames { count: STRIP_FRAMES, size: STRIP_FRAME_SIZE, decoder: decoder(args) };
    let strip = |example: usize| {
        let (_, answer) = evaluation.answers().find(|(other, _)| *other == example)?;
        Some(Strip {
            name: examples[example].id.clone(),
            size: STRIP_FRAME_SIZE,
            rgb: frames.decode(&examples[example], answer.frames),
            truth: evaluation.truth(example),
            predicted: evaluation.predicted(answer),
            score: answer.video.first()?.score,
            right: evaluation.is_right(example, answer),
        })
    };
    evaluation.chosen(args.examples.into()).into_iter().filter_map(strip).collect()
}

fn decoder(args: &Args) -> Decoder {
    Decoder::new(args.backend.decode_isolation.within(&args.backend.limits.limits()))
}

/// Frames at equal distances, cropped at the centre.
struct Frames {
    count: usize,
    /// Height and width in pixels.
    size: usize,
    decoder: Decoder,
}

impl Frames {
    /// Pixels `(n, size, size, 3)` of a video of so many frames; `None` if they can't be had (any more).
    fn decode(&self, example: &Example, frames: u64) -> Option<Vec<u8>> {
        let temporal_stride = usize::try_from(frames / self.count as u64).ok()?.max(1);
        let clip = ClipSpec { frames: self.count, size: self.size, temporal_stride };
        let preprocessing = Preprocessing { color_matrix: ColorMatrix::Tagged, ..Preprocessing::AUTHORS_2018 };
        let options = DecodeOptions { range: example.range, max_clips_wanted: Some(1), ..DecodeOptions::default() };
        let mut rgb = None;
        let first_only = |clip: crate::video::Clip| {
            rgb = Some(clip.rgb);
            ControlFlow::Break(())
        };
        let source = example.source().ok()?;
        let decoded = self.decoder.decode_clips(&source, &clip, &preprocessing, &options, first_only);
        decoded.ok().and(rgb)
    }
}
