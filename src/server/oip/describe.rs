//! The server and its models in the protocol's words.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use crate::app::{App, AppError, ModelSelector};
use crate::engine::Engine;
use crate::model::spec::ModelSpec;
use crate::oip;
use crate::oip::model_metadata_response::TensorMetadata;
use crate::oip::repository_index_response::ModelIndex;

use super::tensors::{CLIPS, EMBEDDING, PROBABILITIES, VIDEO};

const PLATFORM: &str = "kinetoscope_resnet3d";

/// A clip of 8-bit RGB.
fn clip_dims(spec: &ModelSpec) -> [i64; 4] {
    [spec.clip.frames as i64, spec.clip.size as i64, spec.clip.size as i64, 3]
}

pub(super) fn server() -> oip::ServerMetadataResponse {
    let extensions = ["classification", "binary_tensor_data", "model_configuration", "statistics", "model_repository"];
    oip::ServerMetadataResponse {
        name: "kinetoscope".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        extensions: extensions.map(str::to_owned).into(),
    }
}

pub(super) fn is_ready(app: &App, model: &ModelSelector) -> bool {
    app.engine(model).is_ok_and(|engine| engine.state().is_serving())
}

pub(super) fn metadata(app: &App, model: &ModelSelector) -> Result<oip::ModelMetadataResponse, AppError> {
    let engine = app.engine(model)?;
    let spec = engine.spec();
    let tensor = |name: &str, datatype: &str, shape: Vec<i64>| TensorMetadata {
        name: name.to_owned(),
        datatype: datatype.to_owned(),
        shape,
    };
    let clip = [-1].into_iter().chain(clip_dims(spec)).collect();
    Ok(oip::ModelMetadataResponse {
        name: spec.name.clone(),
        versions: app.versions(&spec.name),
        platform: PLATFORM.to_owned(),
        inputs: vec![tensor(VIDEO, "BYTES", vec![-1, 1]), tensor(CLIPS, "UINT8", clip)],
        outputs: vec![
            tensor(PROBABILITIES, "FP32", vec![-1, spec.labels.len() as i64]),
            tensor(EMBEDDING, "FP32", vec![-1, -1]),
        ],
    })
}

pub(super) fn config(app: &App, model: &ModelSelector) -> Result<oip::ModelConfig, AppError> {
    let engine = app.engine(model)?;
    let (spec, config) = (engine.spec(), engine.config());
    let input = |name: &str, data_type: oip::DataType, dims| oip::ModelInput {
        name: name.to_owned(),
        data_type: data_type.into(),
        dims,
        // A request brings one of them.
        optional: true,
    };
    let output =
        |name: &str, dims| oip::ModelOutput { name: name.to_owned(), data_type: oip::DataType::TypeFp32.into(), dims };
    Ok(oip::ModelConfig {
        name: spec.name.clone(),
        platform: PLATFORM.to_owned(),
        backend: "kinetoscope".to_owned(),
        max_batch_size: config.max_batch as i32,
        input: vec![
            input(VIDEO, oip::DataType::TypeString, vec![1]),
            input(CLIPS, oip::DataType::TypeUint8, clip_dims(spec).into()),
        ],
        output: vec![output(PROBABILITIES, vec![spec.labels.len() as i64]), output(EMBEDDING, vec![-1])],
        dynamic_batching: Some(oip::ModelDynamicBatching {
            preferred_batch_size: vec![config.max_batch as i32],
            max_queue_delay_microseconds: config.max_delay.as_micros() as u64,
        }),
    })
}

pub(super) fn statistics(app: &App, model: &ModelSelector) -> Result<oip::ModelStatisticsResponse, AppError> {
    let engines = app.engines(model)?;
    Ok(oip::ModelStatisticsResponse { model_stats: engines.iter().map(of_engine).collect() })
}

fn of_engine(engine: &Arc<Engine>) -> oip::ModelStatistics {
    let (spec, done) = (engine.spec(), engine.statistics());
    let time = |count, time: Duration| Some(oip::StatisticDuration { count, ns: time.as_nanos() as u64 });
    let last = done.last.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    oip::ModelStatistics {
        name: spec.name.clone(),
        version: spec.version.clone(),
        last_inference: last.map_or(0, |since| since.as_millis() as u64),
        inference_count: done.clips,
        execution_count: done.batches,
        inference_stats: Some(oip::InferStatistics {
            success: time(done.clips, done.queued + done.computed),
            queue: time(done.clips, done.queued),
            // perf_analyzer wants all three counts to be the same. Clips are packed and unpacked within the batch.
            compute_input: time(done.clips, Duration::ZERO),
            compute_infer: time(done.clips, done.computed),
            compute_output: time(done.clips, Duration::ZERO),
            ..Default::default()
        }),
    }
}

pub(super) fn index(app: &App, only_ready: bool) -> Vec<ModelIndex> {
    let models = app.index().into_iter().filter(|model| model.is_ready || !only_ready);
    models
        .map(|model| ModelIndex {
            name: model.name,
            version: model.version,
            state: if model.is_ready { "READY" } else { "UNAVAILABLE" }.to_owned(),
            reason: model.reason,
        })
        .collect()
}
