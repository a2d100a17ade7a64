//! The same training with several seeds: how much of a result is luck.

use std::fmt::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};

use super::{Args, Ended, Signals, train};
use crate::replacement::write_whole;
use crate::train::report::EpochRecord;

/// The table of all seeds, in the folder of the runs.
const FILE: &str = "seeds.csv";

/// Trains with each seed into a folder of its own below `out`, and sums up their best epochs.
pub(super) fn run(mut args: Args, out: &Path, signals: &Signals) -> anyhow::Result<ExitCode> {
    if args.world.world_size > 1 {
        bail!("--seeds is for one process: start each seed by itself");
    }
    let seeds = std::mem::take(&mut args.seeds);
    let mut results = Vec::new();
    for (number, &seed) in seeds.iter().enumerate() {
        let folder = out.join(format!("seed-{seed}"));
        println!("seed {seed}, {} of {}: {}", number + 1, seeds.len(), folder.display());
        args.recipe.set_seed(seed);
        let Ended { code, stopped, best } = train(&args, &folder, signals).with_context(|| format!("seed {seed}"))?;
        if stopped {
            return Ok(code);
        }
        results.push((seed, best.context("a training without an epoch has no result")?));
        println!();
    }
    let path = out.join(FILE);
    write_whole(&path, csv(&results).as_bytes()).with_context(|| format!("can't write {}", path.display()))?;
    print!("{}", table(&results));
    Ok(ExitCode::SUCCESS)
}

/// A figure of a run, if it has it.
type Figure = fn(&EpochRecord) -> Option<f64>;

/// Figures by their name in the CSV and in the table.
const FIGURES: [(&str, &str, Figure); 4] = [
    ("validation_loss", "valid. loss", |record| record.validation_loss),
    ("validation_accuracy", "accuracy", |record| record.validation_accuracy),
    ("validation_mean_class_accuracy", "class mean", |record| record.validation_mean_class_accuracy),
    ("validation_mean_average_precision", "mAP", |record| record.validation_mean_average_precision),
];

fn csv(results: &[(u64, EpochRecord)]) -> String {
    let mut text = format!("seed,epoch,{}\n", FIGURES.map(|(name, ..)| name).join(","));
    for (seed, record) in results {
        let values = FIGURES.map(|(.., of)| of(record).map_or_else(String::new, |value| value.to_string()));
        writeln!(text, "{seed},{},{}", record.epoch, values.join(",")).expect("strings take all text");
    }
    text
}

/// A row a seed, and the mean and the standard deviation of all.
fn table(results: &[(u64, EpochRecord)]) -> String {
    let figures: Vec<_> =
        FIGURES.iter().filter(|(.., of)| results.iter().any(|(_, record)| of(record).is_some())).collect();
    let mut text = format!("{:>20}  {:>5}", "seed", "epoch");
    figures.iter().for_each(|(_, title, _)| text += &format!("  {title:>11}"));
    text += "\n";
    let cell = |title: &str, value: f64| match title {
        "valid. loss" => format!("  {value:>11.4}"),
        _ => format!("  {:>10.2}%", 100.0 * value),
    };
    for (seed, record) in results {
        text += &format!("{seed:>20}  {:>5}", record.epoch);
        for (_, title, of) in &figures {
            text += &of(record).map_or_else(|| format!("  {:>11}", "-"), |value| cell(title, value));
        }
        text += "\n";
    }
    for (name, summed) in [("mean", mean as fn(&[f64]) -> f64), ("standard deviation", deviation)] {
        text += &format!("{name:>20}  {:>5}", "");
        for (_, title, of) in &figures {
            let values: Vec<f64> = results.iter().filter_map(|(_, record)| of(record)).collect();
            text += &cell(title, summed(&values));
        }
        text += "\n";
    }
    text
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Of a sample: the squares' sum divided by one less than there are values. 0 of one.
fn deviation(values: &[f64]) -> f64 {
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / (values.len().max(2) - 1) as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn record(epoch: u64, accuracy: f64) -> EpochRecord {
        EpochRecord {
            epoch,
            learning_rate: 0.1,
            train_loss: 1.0,
            train_accuracy: 0.5,
            validation_loss: Some(0.5),
            validation_accuracy: Some(accuracy),
            validation_mean_class_accuracy: None,
            validation_mean_average_precision: None,
            clips_per_second: 1.0,
            waited_fraction: 0.0,
            elapsed: Duration::ZERO,
        }
    }

    #[test]
    fn table_ends_with_mean_and_deviation_of_the_sample() {
        let results = [(1, record(3, 0.5)), (2, record(9, 0.75)), (3, record(4, 1.0))];
        let expected = "                seed  epoch  valid. loss     accuracy
                   1      3       0.5000       50.00%
                   2      9       0.5000       75.00%
                   3      4       0.5000      100.00%
                mean              0.5000       75.00%
  standard deviation              0.0000       25.00%
";
        assert_eq!(table(&results), expected);
        assert_eq!(csv(&results).lines().nth(1), Some("1,3,0.5,0.5,,"));
        assert_eq!(deviation(&[0.5]), 0.0);
    }
}
