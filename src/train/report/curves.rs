//! The picture of a run's curves: accuracy and loss over epochs, as in figures 2 and 3 of the paper.

use super::canvas::{Align, Canvas, Color, FAINT_INK, GRID, INK, Line, Point, Text, rgb};
use super::{EpochRecord, short};

const PANEL: (f32, f32) = (800.0, 660.0);

const TRAINING: u32 = 0x2b_6c_b0;
const VALIDATION: u32 = 0xd9_5f_0e;

/// Draws both panels.
pub(super) fn draw(records: &[EpochRecord]) -> Canvas {
    let mut canvas = Canvas::new(2 * PANEL.0 as u32, PANEL.1 as u32).expect("the size is fixed");
    let points = |value: &dyn Fn(&EpochRecord) -> Option<f64>| -> Vec<EpochValue> {
        let points = records.iter().filter_map(|record| Some((record.epoch as f64, value(record)?)));
        points.filter(|(_, value)| value.is_finite()).collect()
    };
    let accuracy = Panel {
        title: "Clip accuracy",
        left: 0.0,
        unit: "%",
        training: points(&|record| Some(100.0 * record.train_accuracy)),
        validation: points(&|record| Some(100.0 * record.validation_accuracy?)),
        best: highest,
    };
    let loss = Panel {
        title: "Clip loss",
        left: PANEL.0,
        unit: "",
        training: points(&|record| Some(record.train_loss)),
        validation: points(&|record| record.validation_loss),
        best: lowest,
    };
    for panel in [accuracy, loss] {
        panel.draw(&mut canvas, records);
    }
    canvas
}

/// An epoch and a value.
type EpochValue = (f64, f64);

/// One chart.
struct Panel {
    title: &'static str,
    /// Where it begins in the picture.
    left: f32,
    /// Stands behind the numbers of the vertical axis.
    unit: &'static str,
    training: Vec<EpochValue>,
    validation: Vec<EpochValue>,
    best: fn(&[EpochValue]) -> Option<EpochValue>,
}

impl Panel {
    fn draw(&self, canvas: &mut Canvas, records: &[EpochRecord]) {
        let epochs = records.iter().map(|record| record.epoch as f64);
        let epochs = Axis::of_epochs(&epochs.collect::<Vec<_>>());
        let all: Vec<f64> = self.training.iter().chain(&self.validation).map(|point| point.1).collect();
        let values = if self.unit == "%" { Axis::OF_PERCENT } else { Axis::of_values(&all) };
        let area = Area { left: self.left + 90.0, right: self.left + PANEL.0 - 40.0, top: 134.0, bottom: 580.0 };
        let at = |(epoch, value): EpochValue| -> Point {
            let across = area.left + epochs.place(epoch) * (area.right - area.left);
            (across, area.bottom - values.place(value).min(1.0) * (area.bottom - area.top))
        };

        canvas.text(self.title, (area.left, 46.0), Text { size: 28.0, bold: true, ..ink(INK) });
        self.legend(canvas, &area);
        for tick in values.ticks() {
            let y = at((epochs.from, tick)).1;
            canvas.line(&[(area.left, y), (area.right, y)], solid(GRID, 1.5));
            let label = format!("{}{}", values.label(tick), self.unit);
            canvas.text(&label, (area.left - 12.0, y + 6.5), Text { align: Align::Right, ..ink(FAINT_INK) });
        }
        for tick in epochs.ticks().filter(|&tick| tick >= 1.0) {
            let (x, _) = at((tick, values.from));
            canvas.line(&[(x, area.bottom), (x, area.bottom + 6.0)], solid(FAINT_INK, 1.5));
            canvas.text(&tick.to_string(), (x, area.bottom + 28.0), Text { align: Align::Center, ..ink(FAINT_INK) });
        }
        canvas.line(&[(area.left, area.bottom), (area.right, area.bottom)], solid(FAINT_INK, 1.5));
        let middle = (area.left + area.right) / 2.0;
        canvas.text("epoch", (middle, area.bottom + 58.0), Text { align: Align::Center, ..ink(INK) });

        for (epoch, rate) in rate_changes(records) {
            let x = at((epoch, values.from)).0;
            let line = Line { dash: Some([6.0, 6.0]), ..solid(0xb4_ba_c2, 1.5) };
            canvas.line(&[(x, area.top), (x, area.bottom)], line);
            let label = format!("rate {}", short(rate));
            canvas.text(&label, (x, area.top - 8.0), Text { size: 15.0, align: Align::Center, ..ink(FAINT_INK) });
        }
        for (points, color) in self.lines() {
            let points: Vec<Point> = points.iter().map(|&point| at(point)).collect();
            canvas.line(&points, solid(color, 3.0));
            if points.len() <= 40 {
                points.iter().for_each(|&point| canvas.dot(point, 4.0, rgb(color)));
            }
        }
        self.mark_what_is_beyond(canvas, &values, &at);
        if let Some(best) = (self.best)(&self.validation) {
            canvas.dot(at(best), 8.0, rgb(VALIDATION));
            canvas.dot(at(best), 4.5, Color::WHITE);
        }
    }

    fn lines(&self) -> [(&[EpochValue], u32); 2] {
        [(&self.training, TRAINING), (&self.validation, VALIDATION)]
    }

    /// Arrows where values lie above the chart, with the highest one's number.
    fn mark_what_is_beyond(&self, canvas: &mut Canvas, values: &Axis, at: &dyn Fn(EpochValue) -> Point) {
        for (points, color) in self.lines() {
            let beyond: Vec<EpochValue> = points.iter().copied().filter(|point| point.1 > values.to).collect();
            for &point in &beyond {
                let (x, y) = at(point);
                canvas.triangle([(x - 7.0, y + 4.0), (x + 7.0, y + 4.0), (x, y - 9.0)], rgb(color));
            }
            if let Some(highest) = highest(&beyond) {
                let (x, y) = at(highest);
                canvas.text(&short(highest.1), (x + 11.0, y + 4.0), Text { size: 15.0, ..ink(color) });
            }
        }
    }

    /// Names of the lines with their last and best values, below the title.
    fn legend(&self, canvas: &mut Canvas, area: &Area) {
        let value = |value: f64| match self.unit {
            "%" => format!("{value:.1}%"),
            _ => format!("{value:.3}"),
        };
        let training = self.training.last().map(|last| format!("training {}", value(last.1)));
        let validation = self.validation.last().map(|last| {
            let best = (self.best)(&self.validation).filter(|best| best != last);
            let best = best.map_or_else(String::new, |best| format!(", best {} (epoch {})", value(best.1), best.0));
            format!("validation {}{best}", value(last.1))
        });
        let mut left = area.left;
        for (text, color) in [(training, TRAINING), (validation, VALIDATION)] {
            let Some(text) = text else { continue };
            canvas.line(&[(left + 2.0, 74.0), (left + 26.0, 74.0)], solid(color, 4.0));
            canvas.text(&text, (left + 36.0, 80.0), ink(INK));
            left += 36.0 + canvas.text_width(&text, ink(INK)) + 28.0;
        }
    }
}

/// Where the lines are drawn, in pixels.
struct Area {
    left: f32,
    right: f32,
    top: f32,
    bottom: f32,
}

/// The part of a number line that is drawn.
#[derive(Debug, PartialEq)]
pub(super) struct Axis {
    from: f64,
    to: f64,
    step: f64,
}

impl Axis {
    /// All that an accuracy can be, so that charts of different runs look alike.
    const OF_PERCENT: Self = Self { from: 0.0, to: 100.0, step: 20.0 };

    /// From the first epoch to the last, with ticks on whole epochs.
    fn of_epochs(epochs: &[f64]) -> Self {
        let (from, to) = (lowest_of(epochs).unwrap_or(0.0), highest_of(epochs).unwrap_or(1.0));
        if from == to {
            return Self { from: from - 1.0, to: to + 1.0, step: 1.0 };
        }
        Self { from, to, step: nice_step(to - from, 10).max(1.0) }
    }

    /// From zero, or from below the lowest value if all of them are far from zero, to above the highest one that is no
    /// [spike](highest_usual).
    pub(super) fn of_values(values: &[f64]) -> Self {
        let (lowest, highest) = (lowest_of(values).unwrap_or(0.0), highest_usual(values).unwrap_or(1.0));
        let bottom = if lowest > 0.6 * highest { lowest } else { lowest.min(0.0) };
        let range = if highest > bottom { highest - bottom } else { highest.abs().max(1.0) };
        let step = nice_step(range, 6);
        let (from, to) = ((bottom / step).floor() * step, (highest / step).ceil() * step);
        Self { from, to: if to > from { to } else { from + step }, step }
    }

    /// 0 to 1 along the axis.
    pub(super) fn place(&self, value: f64) -> f32 {
        ((value - self.from) / (self.to - self.from)) as f32
    }

    /// A tick's number with as many digits as tell it from the next.
    pub(super) fn label(&self, tick: f64) -> String {
        // No minus, and no exponent, for nothing.
        let tick = if tick.abs() < self.step / 2.0 { 0.0 } else { tick };
        let largest = self.from.abs().max(self.to.abs());
        if tick != 0.0 && !(1e-4..1e7).contains(&largest) {
            let digits = (largest.log10().floor() - self.step.log10().floor()).clamp(0.0, 15.0) as usize;
            return format!("{tick:.digits$e}");
        }
        let whole = |decimals: &i32| {
            let scaled = self.step * 10f64.powi(*decimals);
            (scaled - scaled.round()).abs() < 1e-6 * scaled
        };
        let decimals = (0..=15).find(whole).unwrap_or(15) as usize;
        format!("{tick:.decimals$}")
    }

    pub(super) fn ticks(&self) -> impl Iterator<Item = f64> {
        let (first, last) = ((self.from / self.step).ceil() as i64, (self.to / self.step + 1e-9).floor() as i64);
        (first..=last).map(|tick| tick as f64 * self.step)
    }
}

/// The highest value but for those that lie so far above nine tenths of all that these would be a flat line below them.
fn highest_usual(values: &[f64]) -> Option<f64> {
    /// Times the range of the lower nine tenths, from zero on.
    const FAR: f64 = 3.0;
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let highest = *sorted.last()?;
    // At least one of few values may be a spike.
    let usual = sorted[((sorted.len() * 9) / 10).min(sorted.len().saturating_sub(2))];
    if sorted.len() < 4 || highest <= FAR * usual.abs() {
        return Some(highest);
    }
    sorted.into_iter().rev().find(|&value| value <= FAR * usual.abs())
}

/// 1, 2 or 5 times a power of ten, so that a range has at most so many steps.
fn nice_step(range: f64, steps: u32) -> f64 {
    let raw = range / f64::from(steps);
    let power = 10f64.powf(raw.log10().floor());
    let nice = [1.0, 2.0, 5.0].into_iter().map(|factor| factor * power);
    nice.clone().find(|&step| step >= raw * (1.0 - 1e-9)).unwrap_or(10.0 * power)
}

/// The epochs that began with another learning rate, and that rate. None if the rate changes all the time, as in a
/// warm-up or along a cosine.
fn rate_changes(records: &[EpochRecord]) -> Vec<EpochValue> {
    const MOST: usize = 6;
    let pairs = records.windows(2).filter(|pair| pair[0].learning_rate != pair[1].learning_rate);
    let changes: Vec<_> = pairs.map(|pair| (pair[1].epoch as f64, pair[1].learning_rate)).collect();
    if changes.len() <= MOST { changes } else { Vec::new() }
}

fn highest(points: &[EpochValue]) -> Option<EpochValue> {
    points.iter().copied().reduce(|best, point| if point.1 > best.1 { point } else { best })
}

fn lowest(points: &[EpochValue]) -> Option<EpochValue> {
    points.iter().copied().reduce(|best, point| if point.1 < best.1 { point } else { best })
}

fn highest_of(values: &[f64]) -> Option<f64> {
    values.iter().copied().reduce(f64::max)
}

fn lowest_of(values: &[f64]) -> Option<f64> {
    values.iter().copied().reduce(f64::min)
}

pub(super) fn ink(color: u32) -> Text {
    Text { size: 18.0, color: rgb(color), bold: false, align: Align::Left, rotation: 0.0 }
}

pub(super) fn solid(color: u32, width: f32) -> Line {
    Line { color: rgb(color), width, dash: None }
}

#[cfg(test)]
mod tests {
    use super::super::tests::record;
    use super::*;

    #[test]
    fn axes_have_round_ticks_around_all_values() {
        let axis = Axis::of_values(&[3.0, 57.3]);
        assert_eq!((axis.from, axis.to, axis.step), (0.0, 60.0, 10.0));
        let far_from_zero = Axis::of_values(&[5.2, 5.9]);
        assert!(far_from_zero.from > 5.0 && far_from_zero.from <= 5.2 && far_from_zero.to >= 5.9, "{far_from_zero:?}");
        for same in [[0.0, 0.0], [4.0, 4.0], [-2.0, -2.0]] {
            let axis = Axis::of_values(&same);
            assert!(axis.to > axis.from && axis.ticks().count() <= 10, "{axis:?}");
        }
        assert_eq!(Axis::of_epochs(&[7.0]).ticks().collect::<Vec<_>>(), [6.0, 7.0, 8.0]);
        assert!(Axis::of_epochs(&[1.0, 4.0]).ticks().eq([1.0, 2.0, 3.0, 4.0]));
    }

    #[test]
    fn ticks_differ_however_close_they_are() {
        for values in
            [vec![0.59310, 0.59317], vec![1.2345678, 1.2345679], vec![98.0, 98.2], vec![0.0, 1e-9], vec![1e9, 1.3e9]]
        {
            let axis = Axis::of_values(&values);
            let labels: Vec<String> = axis.ticks().map(|tick| axis.label(tick)).collect();
            let mut different = labels.clone();
            different.dedup();
            assert!(labels.len() >= 2 && labels == different, "{values:?}: {labels:?}");
        }
        let axis = Axis::of_values(&[0.0, 2.4]);
        assert_eq!(
            axis.ticks().map(|tick| axis.label(tick)).collect::<Vec<_>>(),
            ["0.0", "0.5", "1.0", "1.5", "2.0", "2.5"]
        );
    }

    #[test]
    fn one_spike_does_not_flatten_the_rest() {
        let mut losses = vec![1.1, 1.0, 0.9, 0.8, 0.7, 0.6, 0.55, 0.5, 0.45, 0.44];
        assert_eq!(highest_usual(&losses), Some(1.1));
        losses[4] = 250.0;
        assert_eq!(highest_usual(&losses), Some(1.1));
        assert!(Axis::of_values(&losses).to < 2.0);
        // A loss that falls steeply is none.
        assert_eq!(highest_usual(&[6.0, 3.0, 2.0, 1.5]), Some(6.0));
        assert_eq!(highest_usual(&[9.0, 1.0]), Some(9.0));
        assert_eq!(highest_usual(&[]), None);

        let of =
            |epoch: u64| EpochRecord { train_loss: losses[epoch as usize - 1], validation_loss: None, ..record(epoch) };
        let canvas = draw(&(1..=10).map(of).collect::<Vec<_>>());
        let color = |x: u32, y: u32| {
            canvas.pixel(x, y) == {
                let [_, r, g, b] = TRAINING.to_be_bytes();
                [r, g, b]
            }
        };
        // The arrow stands above the upper end of the chart.
        assert!((800..1600).any(|x| color(x, 128)), "the spike is not marked");
    }

    #[test]
    fn accuracy_is_drawn_from_0_to_100() {
        assert_eq!(Axis::OF_PERCENT.ticks().collect::<Vec<_>>(), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
    }

    #[test]
    fn a_rate_that_changes_all_the_time_is_not_marked() {
        let with_rates = |rates: &[f64]| -> Vec<EpochRecord> {
            let records = rates.iter().enumerate();
            records.map(|(epoch, &learning_rate)| EpochRecord { learning_rate, ..record(epoch as u64) }).collect()
        };
        assert_eq!(rate_changes(&with_rates(&[0.1, 0.1, 0.01, 0.01, 0.001])), [(2.0, 0.01), (4.0, 0.001)]);
        let warm_up: Vec<f64> = (1..20).map(f64::from).collect();
        assert_eq!(rate_changes(&with_rates(&warm_up)), []);
    }

    #[test]
    fn both_lines_are_drawn_even_of_one_epoch_or_of_numbers_that_are_none() {
        let colors = |records: &[EpochRecord]| {
            let canvas = draw(records);
            let (width, height) = canvas.size();
            let has = |color: u32| {
                let [_, r, g, b] = color.to_be_bytes();
                // Below the legend.
                (0..width).any(|x| (100..height).any(|y| canvas.pixel(x, y) == [r, g, b]))
            };
            [has(TRAINING), has(VALIDATION)]
        };
        assert_eq!(colors(&[record(0)]), [true, true]);
        assert_eq!(colors(&[record(0), record(1), record(2)]), [true, true]);
        let diverged = EpochRecord { train_loss: f64::NAN, validation_loss: Some(f64::INFINITY), ..record(1) };
        assert_eq!(colors(&[record(0), diverged]), [true, true]);
        let no_validation = EpochRecord { validation_loss: None, validation_accuracy: None, ..record(0) };
        assert_eq!(colors(&[no_validation]), [true, false]);
        assert_eq!(colors(&[]), [false, false]);
    }
}
