//! Inference on a message of the protocol.

use std::time::Duration;

use bytes::Bytes;

use crate::app::{App, AppError, Deadline, InferRequest, Inference, ModelSelector, Row};
use crate::classify::scores::top_labels;
use crate::engine::batcher::Priority;
use crate::model::spec::ModelSpec;
use crate::oip::infer_parameter::ParameterChoice;
use crate::oip::model_infer_response::InferOutputTensor;
use crate::oip::{InferParameter, ModelInferRequest, ModelInferResponse};

use super::tensors::{self, Output, PROBABILITIES};

/// Answers one request, for which there is a permit.
pub(super) async fn infer(
    app: &App,
    mut request: ModelInferRequest,
    deadline: Option<Deadline>,
) -> Result<ModelInferResponse, AppError> {
    let model = ModelSelector { name: request.model_name.clone(), version: request.model_version.clone() };
    let mut asked = None;
    let Inference { model: spec, rows } = app
        .infer::<AppError>(&model, |spec| {
            let outputs = tensors::outputs(&request.outputs)?;
            let parameters = tensors::parameters(&request.parameters)?;
            asked = Some((outputs, parameters));
            Ok(InferRequest {
                priority: match parameters.priority {
                    1 => Priority::High,
                    0 | 2 => Priority::Normal,
                    _ => Priority::Low,
                },
                timeout: (parameters.timeout > 0).then(|| Duration::from_micros(parameters.timeout)),
                input: tensors::input(&mut request, &spec.clip)?,
                deadline,
            })
        })
        .await?;
    let (outputs, parameters) = asked.expect("the request was read");
    let (outputs, raw) = outputs.into_iter().map(|output| tensor(output, &rows, &spec)).unzip();
    let last = InferParameter { parameter_choice: Some(ParameterChoice::BoolParam(true)) };
    Ok(ModelInferResponse {
        model_name: spec.name.clone(),
        model_version: spec.version.clone(),
        id: request.id,
        parameters: parameters.final_flag.then(|| ("triton_final_response".to_owned(), last)).into_iter().collect(),
        outputs,
        raw_output_contents: raw,
    })
}

/// One output's description and bytes.
fn tensor(output: Output, rows: &[Row], spec: &ModelSpec) -> (InferOutputTensor, Bytes) {
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
