//! Tensors of the Open Inference Protocol: the inputs a request brings, the outputs it asks for, the bytes between.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::{Buf, Bytes};

use crate::app::quote::Quoted;
use crate::app::{AppError, InferInput, Reason};
use crate::engine::ClipInput;
use crate::model::spec::ClipSpec;
use crate::oip::infer_parameter::ParameterChoice;
use crate::oip::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use crate::oip::{InferParameter, InferTensorContents, ModelInferRequest};

/// Name of the input of encoded videos.
pub(super) const VIDEO: &str = "VIDEO";
/// Name of the input of clips.
pub(super) const CLIPS: &str = "CLIPS";
/// Name of the output of scores.
pub(super) const PROBABILITIES: &str = "PROBABILITIES";
/// Name of the output of pooled features.
pub(super) const EMBEDDING: &str = "EMBEDDING";

/// What is wrong with a request.
#[derive(Debug, thiserror::Error)]
pub(super) enum TensorError {
    #[error("the request has {0} inputs; it takes one, {VIDEO} or {CLIPS}")]
    Inputs(usize),
    #[error("there is no input {0}; there are {VIDEO} and {CLIPS}")]
    UnknownInput(Quoted),
    #[error("there is no output {0}; there are {PROBABILITIES} and {EMBEDDING}")]
    UnknownOutput(Quoted),
    #[error("input {name} has the data type {actual}; it takes {expected}")]
    DataType { name: &'static str, actual: Quoted, expected: &'static str },
    #[error("input {name} has the shape {actual}; it takes {expected}")]
    Shape { name: &'static str, actual: Quoted, expected: String },
    #[error("input {name} has {actual} bytes or values; its shape needs {expected}")]
    Length { name: &'static str, actual: usize, expected: usize },
    #[error("input {name} has an element whose length of {length} bytes goes beyond its end")]
    Element { name: &'static str, length: usize },
    #[error("input {name} has a value that is not finite in clip {clip}")]
    NotFinite { name: &'static str, clip: usize },
    #[error("there are {raw} raw inputs for {inputs}; there is one for each or none")]
    RawInputs { raw: usize, inputs: usize },
    #[error("parameter {name} is not supported")]
    Parameter { name: Quoted },
    #[error("parameter {name} is not {expected}")]
    ParameterValue { name: Quoted, expected: &'static str },
}

impl From<TensorError> for AppError {
    fn from(error: TensorError) -> Self {
        Self::new(Reason::InvalidTensor, error.to_string())
    }
}

/// Takes the one input out of a request.
pub(super) fn input(request: &mut ModelInferRequest, clip: &ClipSpec) -> Result<InferInput, TensorError> {
    let (raw, inputs) = (request.raw_input_contents.len(), request.inputs.len());
    if raw > 0 && raw != inputs {
        return Err(TensorError::RawInputs { raw, inputs });
    }
    let tensor = request.inputs.pop().filter(|_| inputs == 1).ok_or(TensorError::Inputs(inputs))?;
    if let Some(name) = tensor.parameters.keys().next() {
        return Err(TensorError::Parameter { name: Quoted::text(name) });
    }
    let raw = request.raw_input_contents.pop();
    match tensor.name.as_str() {
        VIDEO => videos(tensor, raw).map(InferInput::Videos),
        CLIPS => clips(tensor, raw, clip).map(InferInput::Clips),
        _ => Err(TensorError::UnknownInput(Quoted::text(&tensor.name))),
    }
}

fn videos(tensor: InferInputTensor, raw: Option<Bytes>) -> Result<Vec<Bytes>, TensorError> {
    if tensor.datatype != "BYTES" {
        return Err(TensorError::DataType { name: VIDEO, actual: Quoted::text(&tensor.datatype), expected: "BYTES" });
    }
    let shape_error = || TensorError::Shape {
        name: VIDEO,
        actual: Quoted::list(&tensor.shape),
        expected: "[n] or [n, 1], n videos from 1 on".to_owned(),
    };
    let n = match tensor.shape[..] {
        [n] | [n, 1] => usize::try_from(n).ok().filter(|&n| n > 0).ok_or_else(shape_error)?,
        _ => return Err(shape_error()),
    };
    let videos = match raw {
        Some(raw) => elements(raw)?,
        None => contents(tensor.contents).bytes_contents,
    };
    if videos.len() != n {
        return Err(TensorError::Length { name: VIDEO, actual: videos.len(), expected: n });
    }
    Ok(videos)
}

/// Splits raw BYTES: before each element stands its length in four bytes, the lowest first.
fn elements(mut raw: Bytes) -> Result<Vec<Bytes>, TensorError> {
    let mut elements = Vec::new();
    while !raw.is_empty() {
        let length = raw.try_get_u32_le().map_err(|_| TensorError::Element { name: VIDEO, length: 4 })? as usize;
        if length > raw.len() {
            return Err(TensorError::Element { name: VIDEO, length });
        }
        elements.push(raw.split_to(length));
    }
    Ok(elements)
}

fn clips(tensor: InferInputTensor, raw: Option<Bytes>, clip: &ClipSpec) -> Result<Vec<ClipInput>, TensorError> {
    let (t, size, len) = (clip.frames as i64, clip.size as i64, clip.rgb_len());
    let (expected, is_rgb) = match tensor.datatype.as_str() {
        "UINT8" => ([t, size, size, 3], true),
        "FP32" => ([3, t, size, size], false),
        _ => {
            return Err(TensorError::DataType {
                name: CLIPS,
                actual: Quoted::text(&tensor.datatype),
                expected: "UINT8 or FP32",
            });
        }
    };
    let n = match tensor.shape[..] {
        [n, a, b, c, d] if [a, b, c, d] == expected => usize::try_from(n).ok().filter(|&n| n > 0),
        _ => None,
    };
    let n = n.ok_or_else(|| TensorError::Shape {
        name: CLIPS,
        actual: Quoted::list(&tensor.shape),
        expected: format!("[n, {}], n clips from 1 on", expected.map(|dim| dim.to_string()).join(", ")),
    })?;
    let contents = contents(tensor.contents);
    let needed = |value_len: usize| n.saturating_mul(len * value_len);
    let check = |actual, expected| match actual == expected {
        true => Ok(()),
        false => Err(TensorError::Length { name: CLIPS, actual, expected }),
    };
    if is_rgb {
        let mut bytes = match raw {
            Some(raw) => raw,
            // Larger values than a byte holds have no meaning.
            None => contents.uint_contents.iter().map(|&value| value.min(255) as u8).collect(),
        };
        check(bytes.len(), needed(1))?;
        return Ok((0..n).map(|_| ClipInput::Rgb(bytes.split_to(len))).collect());
    }
    let values: Vec<f32> = match raw {
        Some(raw) => {
            check(raw.len(), needed(4))?;
            raw.chunks_exact(4).map(|value| f32::from_le_bytes(value.try_into().expect("four bytes"))).collect()
        }
        None => contents.fp32_contents,
    };
    check(values.len(), needed(1))?;
    if let Some(index) = values.iter().position(|value| !value.is_finite()) {
        return Err(TensorError::NotFinite { name: CLIPS, clip: index / len });
    }
    Ok(values.chunks_exact(len).map(|clip| ClipInput::Normalised(Arc::from(clip))).collect())
}

fn contents(contents: Option<InferTensorContents>) -> InferTensorContents {
    contents.unwrap_or_default()
}

/// An output as a request asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Output {
    pub(super) name: &'static str,
    /// The `classification` parameter: this many best classes as text instead of numbers.
    pub(super) top_k: Option<usize>,
}

/// The outputs that a request asks for; the scores if it names none.
pub(super) fn outputs(requested: &[InferRequestedOutputTensor]) -> Result<Vec<Output>, TensorError> {
    if requested.is_empty() {
        return Ok(vec![Output { name: PROBABILITIES, top_k: None }]);
    }
    let outputs = requested.iter().map(|output| {
        let name = [PROBABILITIES, EMBEDDING].into_iter().find(|name| *name == output.name);
        let name = name.ok_or_else(|| TensorError::UnknownOutput(Quoted::text(&output.name)))?;
        let mut top_k = None;
        for (parameter, value) in &output.parameters {
            if parameter != "classification" || name != PROBABILITIES {
                return Err(TensorError::Parameter { name: Quoted::text(parameter) });
            }
            let expected = "a number of classes";
            let error = || TensorError::ParameterValue { name: Quoted::text(parameter), expected };
            top_k = Some(unsigned(value).ok_or_else(error)? as usize).filter(|&k| k > 0);
        }
        Ok(Output { name, top_k })
    });
    outputs.collect()
}

/// A request's own parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Parameters {
    /// 1 is the highest, 0 the model's default.
    pub(super) priority: u64,
    /// Microseconds; 0 is none.
    pub(super) timeout: u64,
    /// Whether a stream wants to be told that a response is the last of its request: each is.
    pub(super) final_flag: bool,
}

/// Reads the parameters of a request. One that asks for something that this server lacks is refused.
pub(super) fn parameters(parameters: &HashMap<String, InferParameter>) -> Result<Parameters, TensorError> {
    let mut known = Parameters::default();
    for (name, value) in parameters {
        let error = |expected| TensorError::ParameterValue { name: Quoted::text(name), expected };
        match name.as_str() {
            "priority" => known.priority = unsigned(value).ok_or_else(|| error("a number"))?,
            "timeout" => known.timeout = unsigned(value).ok_or_else(|| error("a number of microseconds"))?,
            "triton_enable_empty_final_response" => {
                known.final_flag = matches!(value.parameter_choice, Some(ParameterChoice::BoolParam(true)));
            }
            // No sequence is what every request is that has none.
            "sequence_id" | "sequence_start" | "sequence_end" if is_zero(value) => {}
            _ => return Err(TensorError::Parameter { name: Quoted::text(name) }),
        }
    }
    Ok(known)
}

fn unsigned(value: &InferParameter) -> Option<u64> {
    match value.parameter_choice {
        Some(ParameterChoice::Int64Param(value)) => value.try_into().ok(),
        Some(ParameterChoice::Uint64Param(value)) => Some(value),
        _ => None,
    }
}

fn is_zero(value: &InferParameter) -> bool {
    match &value.parameter_choice {
        None => true,
        Some(ParameterChoice::BoolParam(value)) => !value,
        Some(ParameterChoice::StringParam(value)) => value.is_empty(),
        Some(_) => unsigned(value) == Some(0),
    }
}

/// Raw FP32.
pub(super) fn raw_floats(values: impl Iterator<Item = f32>) -> Bytes {
    values.flat_map(f32::to_le_bytes).collect()
}

/// Raw BYTES.
pub(super) fn raw_elements(elements: impl Iterator<Item = String>) -> Bytes {
    let framed = elements.flat_map(|element| {
        let length = (element.len() as u32).to_le_bytes();
        length.into_iter().chain(element.into_bytes())
    });
    framed.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(name: &str, datatype: &str, shape: &[i64], raw: Vec<u8>) -> ModelInferRequest {
        let tensor = InferInputTensor {
            name: name.to_owned(),
            datatype: datatype.to_owned(),
            shape: shape.to_vec(),
            ..Default::default()
        };
        ModelInferRequest { inputs: vec![tensor], raw_input_contents: vec![raw.into()], ..Default::default() }
    }

    const CLIP: ClipSpec = ClipSpec { frames: 2, size: 2, temporal_stride: 1 };

    #[test]
    fn raw_elements_come_back_as_they_were() {
        let raw = raw_elements(["one".to_owned(), String::new(), "three".to_owned()].into_iter());
        assert_eq!(elements(raw.clone()).unwrap(), ["one", "", "three"].map(Bytes::from));
        for cut in [1, 5, raw.len() - 1] {
            assert!(matches!(elements(raw.slice(..cut)), Err(TensorError::Element { .. })), "cut at {cut}");
        }
        let lie = [0xff, 0xff, 0xff, 0xff, 1];
        assert!(elements(Bytes::copy_from_slice(&lie)).is_err());
    }

    #[test]
    fn clips_of_both_types_are_cut_apart() {
        let InferInput::Clips(clips) =
            input(&mut request(CLIPS, "UINT8", &[2, 2, 2, 2, 3], vec![7; 48]), &CLIP).unwrap()
        else {
            panic!("clips")
        };
        assert_eq!(clips, vec![ClipInput::Rgb(vec![7; 24].into()); 2]);
        let InferInput::Clips(clips) =
            input(&mut request(CLIPS, "FP32", &[1, 3, 2, 2, 2], vec![0; 96]), &CLIP).unwrap()
        else {
            panic!("clips")
        };
        assert_eq!(clips, [ClipInput::Normalised(vec![0.0; 24].into())]);
    }

    #[test]
    fn values_that_give_any_score_are_refused() {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = vec![0.0f32; 48];
            values[30] = value;
            let raw = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            let refused = input(&mut request(CLIPS, "FP32", &[2, 3, 2, 2, 2], raw), &CLIP);
            assert!(matches!(refused, Err(TensorError::NotFinite { clip: 1, .. })), "{refused:?}");
            let mut typed = request(CLIPS, "FP32", &[2, 3, 2, 2, 2], Vec::new());
            typed.raw_input_contents.clear();
            typed.inputs[0].contents = Some(InferTensorContents { fp32_contents: values, ..Default::default() });
            assert!(matches!(input(&mut typed, &CLIP), Err(TensorError::NotFinite { clip: 1, .. })), "{value}");
        }
    }

    #[test]
    fn shapes_that_lie_are_refused() {
        let shapes: [&[i64]; 6] =
            [&[], &[2], &[i64::MAX, 2, 2, 2, 3], &[-1, 2, 2, 2, 3], &[0, 2, 2, 2, 3], &[1, 3, 2, 2, 2]];
        for shape in shapes {
            assert!(input(&mut request(CLIPS, "UINT8", shape, vec![0; 24]), &CLIP).is_err(), "{shape:?}");
            assert!(input(&mut request(VIDEO, "BYTES", shape, vec![0; 24]), &CLIP).is_err(), "{shape:?}");
        }
        assert!(matches!(
            input(&mut request("AUDIO", "BYTES", &[1], Vec::new()), &CLIP),
            Err(TensorError::UnknownInput(name)) if name.to_string() == "\"AUDIO\""
        ));
    }

    #[test]
    fn parameters_that_ask_for_what_is_not_there_are_refused() {
        let of = |name: &str, value| {
            let parameter = InferParameter { parameter_choice: Some(value) };
            parameters(&HashMap::from([(name.to_owned(), parameter)]))
        };
        assert_eq!(of("priority", ParameterChoice::Uint64Param(1)).unwrap().priority, 1);
        assert_eq!(of("timeout", ParameterChoice::Int64Param(500)).unwrap().timeout, 500);
        assert!(of("sequence_id", ParameterChoice::Int64Param(0)).is_ok());
        assert!(of("sequence_id", ParameterChoice::Int64Param(3)).is_err());
        assert!(of("priority", ParameterChoice::Int64Param(-1)).is_err());
        assert!(of("shared_memory_region", ParameterChoice::StringParam("r".to_owned())).is_err());
    }
}
