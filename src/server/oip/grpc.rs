//! `inference.GRPCInferenceService`.

use tonic::{Request, Response, Status, Streaming};

use super::{describe, infer};
use crate::app::quote::Quoted;
use crate::app::{AppError, ModelSelector, Reason};
use crate::oip::{self, grpc_inference_service_server::GrpcInferenceService};
use crate::server::grpc::many;
use crate::server::grpc::service::{self, Answers, Service};

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
        Ok(Response::new(oip::ServerReadyResponse { ready: self.0.is_ready() }))
    }

    async fn model_ready(
        &self,
        request: Request<oip::ModelReadyRequest>,
    ) -> Result<Response<oip::ModelReadyResponse>, Status> {
        let oip::ModelReadyRequest { name, version } = request.into_inner();
        let ready = describe::is_ready(&self.0, &ModelSelector { name, version });
        Ok(Response::new(oip::ModelReadyResponse { ready }))
    }

    async fn server_metadata(
        &self,
        _: Request<oip::ServerMetadataRequest>,
    ) -> Result<Response<oip::ServerMetadataResponse>, Status> {
        Ok(Response::new(describe::server()))
    }

    async fn model_metadata(
        &self,
        request: Request<oip::ModelMetadataRequest>,
    ) -> Result<Response<oip::ModelMetadataResponse>, Status> {
        let oip::ModelMetadataRequest { name, version } = request.into_inner();
        Ok(Response::new(describe::metadata(&self.0, &ModelSelector { name, version })?))
    }

    async fn model_infer(
        &self,
        request: Request<oip::ModelInferRequest>,
    ) -> Result<Response<oip::ModelInferResponse>, Status> {
        let _permit = self.0.video_permit()?;
        let deadline = service::deadline(request.extensions());
        Ok(Response::new(infer::infer(&self.0, request.into_inner(), deadline).await?))
    }

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<oip::ModelInferRequest>>,
    ) -> Result<Response<Self::ModelStreamInferStream>, Status> {
        let answers =
            many::answer_each(self.0.clone(), request, |Service(app), message, refused, deadline| async move {
                let oip::ModelInferRequest { id, .. } = &message;
                let id = id.clone();
                let answer = match refused {
                    Some(error) => Err(error),
                    None => infer::infer(&app, message, deadline).await,
                };
                match answer {
                    Ok(response) => {
                        oip::ModelStreamInferResponse { error_message: String::new(), infer_response: Some(response) }
                    }
                    Err(error) => oip::ModelStreamInferResponse {
                        error_message: error.message,
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
        let config = describe::config(&self.0, &ModelSelector { name, version })?;
        Ok(Response::new(oip::ModelConfigResponse { config: Some(config) }))
    }

    async fn model_statistics(
        &self,
        request: Request<oip::ModelStatisticsRequest>,
    ) -> Result<Response<oip::ModelStatisticsResponse>, Status> {
        let oip::ModelStatisticsRequest { name, version } = request.into_inner();
        Ok(Response::new(describe::statistics(&self.0, &ModelSelector { name, version })?))
    }

    async fn repository_index(
        &self,
        request: Request<oip::RepositoryIndexRequest>,
    ) -> Result<Response<oip::RepositoryIndexResponse>, Status> {
        let models = describe::index(&self.0, request.into_inner().ready);
        Ok(Response::new(oip::RepositoryIndexResponse { models }))
    }

    async fn repository_model_load(
        &self,
        request: Request<oip::RepositoryModelLoadRequest>,
    ) -> Result<Response<oip::RepositoryModelLoadResponse>, Status> {
        let oip::RepositoryModelLoadRequest { model_name, parameters, .. } = request.into_inner();
        refuse_parameters(parameters.keys())?;
        self.0.load_model(model_name).await?;
        Ok(Response::new(oip::RepositoryModelLoadResponse {}))
    }

    async fn repository_model_unload(
        &self,
        request: Request<oip::RepositoryModelUnloadRequest>,
    ) -> Result<Response<oip::RepositoryModelUnloadResponse>, Status> {
        // The one parameter that Triton knows, `unload_dependents`, is about ensembles.
        self.0.unload_model(request.into_inner().model_name).await?;
        Ok(Response::new(oip::RepositoryModelUnloadResponse {}))
    }
}

/// Models are loaded without parameters.
pub(super) fn refuse_parameters<'a>(mut names: impl Iterator<Item = &'a String>) -> Result<(), AppError> {
    let Some(name) = names.next() else { return Ok(()) };
    let message =
        format!("parameter {} is not supported: models are loaded as their files have them", Quoted::text(name));
    Err(AppError::new(Reason::ParameterUnsupported, message))
}
