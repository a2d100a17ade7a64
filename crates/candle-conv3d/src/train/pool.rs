//! Max pooling that remembers where each maximum was.

use rayon::prelude::*;

use crate::geometry::Window;

/// Shapes of one pool.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shapes {
    /// Clips times channels.
    pub(crate) volumes: usize,
    /// (t, h, w) of the input.
    pub(crate) input: [usize; 3],
    /// (t, h, w) of the output.
    pub(crate) output: [usize; 3],
    pub(crate) window: Window,
}

/// A maximum and the place in the volume that it came from.
type Best = (f32, u32);

/// Maxima of `input` (volumes, t, h, w), and for each the index of its place in its volume.
///
/// One axis after another, width first, so that among equal values the first in (t, h, w) order wins.
pub(crate) fn forward(shapes: &Shapes, input: &[f32]) -> (Vec<f32>, Vec<u32>) {
    let Shapes { volumes, input: [frames, height, width], output: [t_out, h_out, w_out], window } = *shapes;
    let out_len = t_out * h_out * w_out;
    let mut maxima = vec![0f32; volumes * out_len];
    let mut places = vec![0u32; volumes * out_len];
    let spans = |axis: usize| -> Vec<std::ops::Range<usize>> {
        (0..shapes.output[axis]).map(|place| window.covered(axis, place, shapes.input[axis])).collect()
    };
    let (t_spans, h_spans, w_spans) = (spans(0), spans(1), spans(2));
    input
        .par_chunks(frames * height * width)
        .zip(maxima.par_chunks_mut(out_len).zip(places.par_chunks_mut(out_len)))
        .for_each_init(
            || (vec![(0f32, 0u32); height * w_out], vec![(0f32, 0u32); frames * h_out * w_out]),
            |(rows, areas), (volume, (maxima, places))| {
                for (t, (frame, area)) in
                    volume.chunks_exact(height * width).zip(areas.chunks_exact_mut(h_out * w_out)).enumerate()
                {
                    for (y, (row, out)) in frame.chunks_exact(width).zip(rows.chunks_exact_mut(w_out)).enumerate() {
                        let first = ((t * height + y) * width) as u32;
                        for (span, out) in w_spans.iter().zip(out) {
                            let mut best = (row[span.start], first + span.start as u32);
                            for (x, &value) in row.iter().enumerate().take(span.end).skip(span.start + 1) {
                                best = better(best, (value, first + x as u32));
                            }
                            *out = best;
                        }
                    }
                    reduce(rows, w_out, &h_spans, area);
                }
                // The frames of `areas` are its rows now.
                let mut best = vec![(0f32, 0u32); out_len];
                reduce(areas, h_out * w_out, &t_spans, &mut best);
                for ((maximum, place), best) in maxima.iter_mut().zip(places).zip(best) {
                    (*maximum, *place) = best;
                }
            },
        );
    (maxima, places)
}

/// For each span, the best of those rows of `values`, column by column.
fn reduce(values: &[Best], row_len: usize, spans: &[std::ops::Range<usize>], out: &mut [Best]) {
    for (span, out) in spans.iter().zip(out.chunks_exact_mut(row_len)) {
        out.copy_from_slice(&values[span.start * row_len..][..row_len]);
        for row in span.start + 1..span.end {
            for (best, &candidate) in out.iter_mut().zip(&values[row * row_len..][..row_len]) {
                *best = better(*best, candidate);
            }
        }
    }
}

/// The earlier of equals; NaN beats everything.
fn better(best: Best, candidate: Best) -> Best {
    if candidate.0 > best.0 || candidate.0.is_nan() { candidate } else { best }
}

/// Gradient of the input (volumes, t, h, w) from `upstream` (volumes, t', h', w') and the `places` of the maxima.
pub(crate) fn input_gradient(shapes: &Shapes, places: &[u32], upstream: &[f32]) -> Vec<f32> {
    let (in_len, out_len) = (shapes.input.iter().product::<usize>(), shapes.output.iter().product::<usize>());
    let mut gradient = vec![0f32; shapes.volumes * in_len];
    gradient.par_chunks_mut(in_len).zip(places.par_chunks(out_len).zip(upstream.par_chunks(out_len))).for_each(
        |(gradient, (places, upstream))| {
            for (&place, upstream) in places.iter().zip(upstream) {
                gradient[place as usize] += upstream;
            }
        },
    );
    gradient
}
