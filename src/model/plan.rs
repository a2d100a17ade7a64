//! From a model file to an inference plan.

use std::convert::Infallible;

use candle_conv3d::graph::{BindError, Graph, GraphError, Parameter};
use candle_conv3d::plan::{Plan, PlanError, PlanOptions};
use candle_core::{DType, Tensor};

use super::file::Model;

/// Why a model has no plan.
#[derive(Debug, thiserror::Error)]
pub enum ModelPlanError {
    /// The network and the plan don't fit.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The network and its values don't fit.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// A tensor can't be read.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl From<BindError<candle_core::Error>> for ModelPlanError {
    fn from(error: BindError<candle_core::Error>) -> Self {
        match error {
            BindError::Graph(error) => error.into(),
            BindError::Values(error) => error.into(),
        }
    }
}

impl From<BindError<Infallible>> for ModelPlanError {
    fn from(error: BindError<Infallible>) -> Self {
        let BindError::Graph(error) = error;
        error.into()
    }
}

/// Compiles a model for CPUs, for clips of its geometry. The plan has two outputs: logits `(n, classes)` and the pooled
/// features before the last layer `(n, features)`.
pub fn compile(model: &Model, options: PlanOptions) -> Result<Plan, ModelPlanError> {
    Ok(bound_graph(model)?.compile(options)?)
}

/// The model's graph with its weights.
pub fn bound_graph(model: &Model) -> Result<Graph, ModelPlanError> {
    let mut graph = model.graph.clone();
    graph.bind(|parameter: &Parameter| values(&model.tensors[&parameter.name]))?;
    Ok(graph)
}

fn values(tensor: &Tensor) -> Result<Vec<f32>, candle_core::Error> {
    tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}
