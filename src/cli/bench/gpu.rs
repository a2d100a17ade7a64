//! `kinetoscope bench model` on a GPU.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use serde_json::json;

use super::{ModelArgs, print_network, write_logits};
use crate::bench::gpu::{GpuModel, GpuOptions, GpuTiming};
use crate::bench::model::Effort;
use crate::engine::Precision;
use crate::model::file::Model;

/// Times one GPU with algorithms and a CUDA graph for exactly the batch sizes that were asked for.
pub(super) fn run(
    args: &ModelArgs,
    model: &Model,
    ordinals: &[usize],
    precision: Precision,
    cache: Option<PathBuf>,
    started: Instant,
) -> anyhow::Result<ExitCode> {
    let [ordinal] = ordinals else { bail!("bench model times one GPU: choose it by --device cuda:N") };
    let batches: Vec<usize> = args.batch.iter().map(|&batch| batch.into()).collect();
    let options = GpuOptions {
        ordinal: *ordinal,
        precision,
        batches: batches.clone(),
        candidates: args.candidates.into(),
        cache,
        threads: args.engine.threads(),
    };
    let gpu = GpuModel::new(model, options)?;
    let load_seconds = started.elapsed().as_secs_f64();
    let spec = &model.spec;
    if !args.json {
        print_network(spec);
        let (info, memory) = (gpu.info(), gpu.memory_bytes() as f64 / f64::from(1 << 20));
        println!("{}, {precision}, loaded in {load_seconds:.2} s, {memory:.0} MiB of GPU memory", info.name);
        println!("scores at most {:.1e} away from the CPU's", gpu.self_check());
        println!(
            "{:>6} {:>14} {:>14} {:>14} {:>8} {:>9}",
            "batch", "GPU only, /s", "one at a time", "two at a time", "TFLOP/s", "run, ms"
        );
    }
    let effort = Effort { min_time: Duration::from_secs_f32(args.seconds), ..Effort::default() };
    let mut last_logits = Vec::new();
    for batch in batches {
        let (timing, logits) = gpu.time(batch, effort)?;
        last_logits = logits;
        let GpuTiming { device, latency, throughput, runs } = timing;
        // As if every product of direct convolution were computed: comparable between engines.
        let tflops = 2e-12 * gpu.multiply_adds() as f64 * device;
        if args.json {
            let line = json!({
                "model": spec.name, "device": gpu.info().name, "precision": precision.to_string(), "batch": batch,
                "device_clips_per_second": device, "clips_per_second": throughput,
                "ms_per_run": 1e3 * latency.as_secs_f64(), "tflops_direct_equivalent": tflops, "runs": runs,
                "gpu_memory_bytes": gpu.memory_bytes(), "load_seconds": load_seconds,
                "self_check_difference": gpu.self_check(),
            });
            println!("{line}");
        } else {
            let alone = batch as f64 / latency.as_secs_f64();
            let ms = 1e3 * latency.as_secs_f64();
            println!("{batch:>6} {device:>14.0} {alone:>14.0} {throughput:>14.0} {tflops:>8.1} {ms:>9.3}");
        }
    }
    if args.layers {
        for layer in gpu.layers() {
            let micros = 1e6 * layer.time.as_secs_f64();
            println!("       {:<24} {:<48} {micros:>9.1} us  {}", layer.name, layer.shape, layer.algorithm);
        }
    }
    write_logits(args.logits.as_deref(), &last_logits)?;
    Ok(ExitCode::SUCCESS)
}
