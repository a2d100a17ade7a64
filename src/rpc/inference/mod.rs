//! `inference.GRPCInferenceService`: the Open Inference Protocol, version 2, so that clients of Triton and KServe work
//! unchanged.
//!
//! Each model takes `VIDEO`, encoded videos, or `CLIPS`, their pixels; it gives `PROBABILITIES` and `EMBEDDING`, a row a
//! video or clip.

mod tensors;

use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};

use super::oip::grpc_inference_service_server::GrpcInferenceService;
use super::oip::model_infer_response::InferOutputTensor;
use super::oip::model_metadata_response::TensorMetadata;
use super::oip::{self, infer_parameter::ParameterChoice};
use super::proto::ModelSelector;
use super::quote::Quoted;
use super::request::Deadline;
use super::service::{self, Service};
use super::status;
use super::stream::Answers;
use super::{Reason, batch};
use crate::classify::scores::top_labels;
use crate::classify::{ClassifyError, ClassifyOptions};
use crate::engine::batcher::Priority;
use crate::engine::{ClipInput, Engine};
use crate::model::softmax;
use crate::model::spec::ModelSpec;
use crate::repository::{Repository, RepositoryError};
use crate::video::Source;
use tensors::{CLIPS, EMBEDDING, Input, Output, PROBABILITIES, TensorError, VIDEO};

impl From<TensorError> for Status {
    fn from(error: TensorError) -> Self {
        status::invalid(Reason::InvalidTensor, error.to_string())
    }
}

/// The row of one video or clip.
struct Row {
    probabilities: Vec<f32>,
    embedding: Vec<f32>,
}

impl Service {
    fn model(&self, name: &str, version: &str) -> Result<Arc<Engine>, Status> {
        self.engine(Some(&ModelSelector { name: name.to_owned(), version: version.to_owned() }))
    }

    async fn infer(
        &self,
        mut request: oip::ModelInferRequest,
        deadline: Option<Deadline>,
    ) -> Result<oip::ModelInferResponse, Status> {
        let engine = self.model(&request.model_name, &request.model_version)?;
        let spec = engine.spec();
        let outputs = tensors::outputs(&request.outputs)?;
        let parameters = tensors::parameters(&request.parameters)?;
        let priority = match parameters.priority {
            1 => Priority::High,
            0 | 2 => Priority::Normal,
            _ => Priority::Low,
        };
        let input = tensors::input(&mut request, &spec.clip)?;
        let run = async {
            match input {
                Input::Videos(videos) => self.infer_videos(&engine, videos, priority).await,
                Input::Clips(clips) => infer_clips(&engine, clips, priority).await,
            }
        };
        let own = (parameters.timeout > 0).then(|| Duration::from_micros(parameters.timeout));
        let rest = deadline.map(|Deadline(at)| at.saturating_duration_since(Instant::now()));
        let rows = match own.into_iter().chain(rest).min() {
            Some(limit) => tokio::time::timeout(limit, run).await.map_err(|_| status::deadline_exceeded(limit))??,
            None => run.await?,
        };
        let (outputs, raw) = outputs.into_iter().map(|output| tensor(output, &rows, spec)).unzip();
        let last = oip::InferParameter { parameter_choice: Some(ParameterChoice::BoolParam(true)) };
        Ok(oip::ModelInferResponse {
            model_name: spec.name.clone(),
            model_version: spec.version.clone(),
            id: request.id,
            parameters: parameters.final_flag.then(|| ("triton_final_response".to_owned(), last)).into_iter().collect(),
            outputs,
            raw_output_contents: raw,
        })
    }

    /// One after the other: the clips of each make batches already, and the others' answers are needed anyway.
    async fn infer_videos(
        &self,
        engine: &Engine,
        videos: Vec<bytes::Bytes>,
        priority: Priority,
    ) -> Result<Vec<Row>, Status> {
        let options = ClassifyOptions { top_k: None, embedding: true, priority, ..ClassifyOptions::default() };
        let mut rows = Vec::with_capacity(videos.len());
        for video in videos {
            self.services.metrics.received(video.len() as u64);
            let answer = self.classify(engine, Source::Bytes(video), &options, None).await?;
            let mut probabilities = vec![0.0; engine.spec().labels.len()];
            for label in answer.labels {
                probabilities[label.index] = label.score;
            }
            rows.push(Row { probabilities, embedding: answer.embedding });
        }
        Ok(rows)
    }
}

async fn infer_clips(engine: &Engine, clips: Vec<ClipInput>, priority: Priority) -> Result<Vec<Row>, Status> {
    let failed = |error| status::from_classify_error(&ClassifyError::Engine(error));
    let queue = engine.video(priority);
    let (running, mut pending) = mpsc::unbounded_channel();
    let submit = async {
        // Ends with the clips, and with it the answers.
        let running = running;
        for clip in clips {
            let clip = queue.submit(clip).await.map_err(failed)?;
            running.send(clip).map_err(|_| status::internal(&"nobody waits for a clip"))?;
        }
        Ok(())
    };
    let collect = async {
        let mut rows = Vec::new();
        while let Some(clip) = pending.recv().await {
            let output = clip.await.map_err(failed)?;
            rows.push(Row { probabilities: softmax(&output.logits), embedding: output.embedding });
        }
        Ok::<_, Status>(rows)
    };
    tokio::try_join!(submit, collect).map(|((), rows)| rows)
}

/// One output's description and bytes.
fn tensor(output: Output, rows: &[Row], spec: &ModelSpec) -> (InferOutputTensor, bytes::Bytes) {
    let n = rows.len() as i64;
    let describe = |datatype: &str, width: usize| InferOutputTensor {
        name: output.name.to_owned(),
        datatype: datatype.to_owned(),
        shape: vec![n, width as i64],
        ..Default::default()
    };
    match output {
        Output { top_k: Some(k), .. } => {
            let k = k.min(spec.labels.len());
            let classes = rows.iter().flat_map(|row| {
                let probabilities: Vec<f64> = row.probabilities.iter().map(|&score| score.into()).collect();
                let best = top_labels(&probabilities, &spec.labels, Some(k), 0.0);
                best.into_iter().map(|best| format!("{:.6}:{}:{}", best.score, best.index, best.label))
            });
            (describe("BYTES", k), tensors::raw_elements(classes))
        }
        Output { name: PROBABILITIES, .. } => {
            let values = rows.iter().flat_map(|row| row.probabilities.iter().copied());
            (describe("FP32", spec.labels.len()), tensors::raw_floats(values))
        }
        _ => {
            let width = rows.first().map_or(0, |row| row.embedding.len());
            let values = rows.iter().flat_map(|row| row.embedding.iter().copied());
            (describe("FP32", width), tensors::raw_floats(values))
        }
    }
}

#[tonic::async_trait]
impl GrpcInferenceService for Service {
    type ModelStreamInferStream = Answers<oip::ModelStreamInferResponse>;

    async fn server_live(
        &self,
        _: Request<oip::ServerLiveRequest>,
    ) -> Result<Response<oip::ServerLiveResponse>, Status> {
        Ok(Response::new(oip::ServerLiveResponse { live: true }))
    }

    async fn server_ready(
        &self,
        _: Request<oip::ServerReadyRequest>,
    ) -> Result<Response<oip::ServerReadyResponse>, Status> {
        let ready = *self.is_ready.borrow();
        Ok(Response::new(oip::ServerReadyResponse { ready }))
    }

    async fn model_ready(
        &self,
        request: Request<oip::ModelReadyRequest>,
    ) -> Result<Response<oip::ModelReadyResponse>, Status> {
        let oip::ModelReadyRequest { name, version } = request.into_inner();
        let ready = self.model(&name, &version).is_ok_and(|engine| engine.state().is_serving());
        Ok(Response::new(oip::ModelReadyResponse { ready }))
    }

    async fn server_metadata(
        &self,
        _: Request<oip::ServerMetadataRequest>,
    ) -> Result<Response<oip::ServerMetadataResponse>, Status> {
        let extensions =
            ["classification", "binary_tensor_data", "model_configuration", "statistics", "model_repository"];
        Ok(Response::new(oip::ServerMetadataResponse {
            name: "kinetoscope".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            extensions: extensions.map(str::to_owned).into(),
        }))
    }

    async fn model_metadata(
        &self,
        request: Request<oip::ModelMetadataRequest>,
    ) -> Result<Response<oip::ModelMetadataResponse>, Status> {
        let oip::ModelMetadataRequest { name, version } = request.into_inner();
        let engine = self.model(&name, &version)?;
        let spec = engine.spec();
        let tensor = |name: &str, datatype: &str, shape: Vec<i64>| TensorMetadata {
            name: name.to_owned(),
            datatype: datatype.to_owned(),
            shape,
        };
        let clip = [-1].into_iter().chain(clip_dims(spec)).collect();
        Ok(Response::new(oip::ModelMetadataResponse {
            name: spec.name.clone(),
            versions: self.versions(&spec.name),
            platform: PLATFORM.to_owned(),
            inputs: vec![tensor(VIDEO, "BYTES", vec![-1, 1]), tensor(CLIPS, "UINT8", clip)],
            outputs: vec![
                tensor(PROBABILITIES, "FP32", vec![-1, spec.labels.len() as i64]),
                tensor(EMBEDDING, "FP32", vec![-1, -1]),
            ],
        }))
    }

    async fn model_infer(
        &self,
        request: Request<oip::ModelInferRequest>,
    ) -> Result<Response<oip::ModelInferResponse>, Status> {
        let _place = self.place()?;
        let deadline = service::deadline(request.extensions());
        self.infer(request.into_inner(), deadline).await.map(Response::new)
    }

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<oip::ModelInferRequest>>,
    ) -> Result<Response<Self::ModelStreamInferStream>, Status> {
        let answers = batch::answer_each(self.clone(), request, |service, message, refused, deadline| async move {
            let id = message.id.clone();
            let answer = match refused {
                Some(status) => Err(status),
                None => service.infer(message, deadline).await,
            };
            match answer {
                Ok(response) => {
                    oip::ModelStreamInferResponse { error_message: String::new(), infer_response: Some(response) }
                }
                Err(status) => oip::ModelStreamInferResponse {
                    error_message: status.message().to_owned(),
                    // Tells which request failed.
                    infer_response: Some(oip::ModelInferResponse { id, ..Default::default() }),
                },
            }
        });
        answers.map(Response::new)
    }

    async fn model_config(
        &self,
        request: Request<oip::ModelConfigRequest>,
    ) -> Result<Response<oip::ModelConfigResponse>, Status> {
        let oip::ModelConfigRequest { name, version } = request.into_inner();
        let engine = self.model(&name, &version)?;
        let (spec, config) = (engine.spec(), engine.config());
        let input = |name: &str, data_type: oip::DataType, dims| oip::ModelInput {
            name: name.to_owned(),
            data_type: data_type.into(),
            dims,
            // A request brings one of them.
            optional: true,
        };
        let output = |name: &str, dims| oip::ModelOutput {
            name: name.to_owned(),
            data_type: oip::DataType::TypeFp32.into(),
            dims,
        };
        Ok(Response::new(oip::ModelConfigResponse {
            config: Some(oip::ModelConfig {
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
            }),
        }))
    }

    async fn model_statistics(
        &self,
        request: Request<oip::ModelStatisticsRequest>,
    ) -> Result<Response<oip::ModelStatisticsResponse>, Status> {
        let oip::ModelStatisticsRequest { name, version } = request.into_inner();
        let engines: Vec<Arc<Engine>> = match name.is_empty() {
            true => self.services.models.served().engines().cloned().collect(),
            false => vec![self.model(&name, &version)?],
        };
        let model_stats = engines.into_iter().map(|engine| {
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
        });
        Ok(Response::new(oip::ModelStatisticsResponse { model_stats: model_stats.collect() }))
    }

    async fn repository_index(
        &self,
        request: Request<oip::RepositoryIndexRequest>,
    ) -> Result<Response<oip::RepositoryIndexResponse>, Status> {
        let only_ready = request.into_inner().ready;
        let served = self.services.models.served();
        let running = served.engines().map(|engine| {
            let (spec, ready) = (engine.spec(), engine.state().is_serving());
            let reason = if ready { "" } else { "its worker is starting" };
            (ready, spec.name.clone(), spec.version.clone(), reason.to_owned())
        });
        let refused = served.refused.iter().cloned().map(|file| (false, file.name, file.version, file.reason));
        let models =
            running.chain(refused).filter(|(ready, ..)| *ready || !only_ready).map(|(ready, name, version, reason)| {
                oip::repository_index_response::ModelIndex {
                    name,
                    version,
                    state: if ready { "READY" } else { "UNAVAILABLE" }.to_owned(),
                    reason,
                }
            });
        Ok(Response::new(oip::RepositoryIndexResponse { models: models.collect() }))
    }

    async fn repository_model_load(
        &self,
        request: Request<oip::RepositoryModelLoadRequest>,
    ) -> Result<Response<oip::RepositoryModelLoadResponse>, Status> {
        let oip::RepositoryModelLoadRequest { model_name, parameters, .. } = request.into_inner();
        if let Some(parameter) = parameters.keys().next() {
            let message = format!(
                "parameter {} is not supported: models are loaded as their files have them",
                Quoted::text(parameter)
            );
            return Err(status::invalid(Reason::ParameterUnsupported, message));
        }
        self.change_models(move |models| models.load(&model_name)).await?;
        Ok(Response::new(oip::RepositoryModelLoadResponse {}))
    }

    async fn repository_model_unload(
        &self,
        request: Request<oip::RepositoryModelUnloadRequest>,
    ) -> Result<Response<oip::RepositoryModelUnloadResponse>, Status> {
        // The one parameter that Triton knows, `unload_dependents`, is about ensembles.
        let name = request.into_inner().model_name;
        self.change_models(move |models| models.unload(&name)).await?;
        Ok(Response::new(oip::RepositoryModelUnloadResponse {}))
    }
}

const PLATFORM: &str = "kinetoscope_resnet3d";

/// A clip of 8-bit RGB.
fn clip_dims(spec: &ModelSpec) -> [i64; 4] {
    [spec.clip.frames as i64, spec.clip.size as i64, spec.clip.size as i64, 3]
}

impl Service {
    fn versions(&self, name: &str) -> Vec<String> {
        let served = self.services.models.served();
        let specs = served.engines().map(|engine| engine.spec());
        specs.filter(|spec| spec.name == name).map(|spec| spec.version.clone()).collect()
    }

    /// Loads or unloads models, if callers may.
    async fn change_models(
        &self,
        change: impl FnOnce(&Repository) -> Result<(), RepositoryError> + Send + 'static,
    ) -> Result<(), Status> {
        if !self.options.model_control {
            return Err(status::no_model_control());
        }
        let models = Arc::clone(&self.services.models);
        // Goes on if the caller leaves: a change that was begun is not taken back.
        let changed = tokio::task::spawn_blocking(move || change(&models)).await;
        changed.map_err(|error| status::internal(&error))?.map_err(|error| status::from_repository_error(&error))
    }
}
