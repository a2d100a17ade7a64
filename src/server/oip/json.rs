//! Requests and responses of inference as JSON, with tensors in it or as binary data behind it.

use std::collections::HashMap;
use std::fmt::{self, Display};

use bytes::{BufMut, Bytes, BytesMut};
use serde::de::{DeserializeSeed, Deserializer, Error, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::app::quote::Quoted;
use crate::app::{AppError, ModelSelector, Reason};
use crate::oip::infer_parameter::ParameterChoice;
use crate::oip::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use crate::oip::model_infer_response::InferOutputTensor;
use crate::oip::{InferParameter, ModelInferRequest, ModelInferResponse};

pub(super) fn malformed(error: &dyn Display) -> AppError {
    AppError::new(Reason::MalformedRequest, format!("the request can't be read: {error}"))
}

fn invalid(message: String) -> AppError {
    AppError::new(Reason::InvalidTensor, message)
}

type Parameters = HashMap<String, Value>;

#[derive(Deserialize)]
struct Request {
    #[serde(default)]
    id: String,
    #[serde(default)]
    parameters: Parameters,
    inputs: Vec<Input>,
    #[serde(default)]
    outputs: Vec<Output>,
}

#[derive(Deserialize)]
struct Input {
    name: String,
    datatype: String,
    shape: Vec<i64>,
    #[serde(default)]
    parameters: Parameters,
    #[serde(default)]
    data: Data,
}

#[derive(Deserialize)]
struct Output {
    name: String,
    #[serde(default)]
    parameters: Parameters,
}

/// The elements of a tensor, in row-major order however they are nested.
#[derive(Default)]
struct Data {
    numbers: Vec<f64>,
    texts: Vec<String>,
}

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut data = Self::default();
        Elements(&mut data).deserialize(deserializer)?;
        Ok(data)
    }
}

/// Adds what comes to [`Data`].
struct Elements<'a>(&'a mut Data);

impl<'de> DeserializeSeed<'de> for Elements<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Elements<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("numbers or texts, nested in arrays or not")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        while elements.next_element_seed(Elements(self.0))?.is_some() {}
        Ok(())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.visit_f64(value as f64)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.visit_f64(value as f64)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.0.numbers.push(value);
        Ok(())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        self.0.texts.push(value.to_owned());
        Ok(())
    }
}

/// Which outputs are to be binary.
#[derive(Debug, Default)]
pub(super) struct BinaryOutputs {
    all: bool,
    named: Vec<String>,
}

impl BinaryOutputs {
    fn has(&self, name: &str) -> bool {
        self.all || self.named.iter().any(|named| named == name)
    }
}

/// Reads a request whose JSON ends at `json_length`, if not at the end of the body.
pub(super) fn read(
    model: ModelSelector,
    mut body: Bytes,
    json_length: Option<usize>,
) -> Result<(ModelInferRequest, BinaryOutputs), AppError> {
    let length = json_length.unwrap_or(body.len());
    if length > body.len() {
        return Err(invalid(format!("the JSON ends after {length} bytes; the body has {}", body.len())));
    }
    let json = body.split_to(length);
    let mut request: Request = serde_json::from_slice(&json).map_err(|error| malformed(&error))?;
    drop(json);
    let mut binary = BinaryOutputs {
        all: request.parameters.remove("binary_data_output") == Some(Value::Bool(true)),
        named: Vec::new(),
    };
    let mut message = ModelInferRequest {
        model_name: model.name,
        model_version: model.version,
        id: request.id,
        parameters: parameters(request.parameters)?,
        ..Default::default()
    };
    for input in request.inputs {
        let (tensor, raw) = read_input(input, &mut body)?;
        message.inputs.push(tensor);
        message.raw_input_contents.push(raw);
    }
    if !body.is_empty() {
        return Err(invalid(format!("the body has {} bytes behind its last tensor", body.len())));
    }
    for Output { name, parameters: mut given } in request.outputs {
        if given.remove("binary_data") == Some(Value::Bool(true)) {
            binary.named.push(name.clone());
        }
        message.outputs.push(InferRequestedOutputTensor { name, parameters: parameters(given)? });
    }
    Ok((message, binary))
}

fn read_input(mut input: Input, binary: &mut Bytes) -> Result<(InferInputTensor, Bytes), AppError> {
    let raw = match input.parameters.remove("binary_data_size") {
        Some(size) => {
            let size = size.as_u64().and_then(|size| usize::try_from(size).ok()).filter(|&size| size <= binary.len());
            let message = || format!("input {} has more binary data than the body", Quoted::text(&input.name));
            binary.split_to(size.ok_or_else(|| invalid(message()))?)
        }
        None => raw(&input)?,
    };
    // How texts are to be read is said by a parameter that `raw` knows.
    input.parameters.remove("content_type");
    let Input { name, datatype, shape, parameters: given, .. } = input;
    let parameters = parameters(given)?;
    Ok((InferInputTensor { name, datatype, shape, parameters, contents: None }, raw))
}

/// The elements as bytes.
fn raw(Input { name, datatype, parameters, data, .. }: &Input) -> Result<Bytes, AppError> {
    let mut raw = BytesMut::new();
    match datatype.as_str() {
        "BYTES" => {
            let is_base64 = parameters.get("content_type").and_then(Value::as_str) == Some("base64");
            for text in &data.texts {
                let element = if is_base64 { decode_base64(text)? } else { text.as_bytes().to_vec() };
                raw.put_u32_le(element.len() as u32);
                raw.put_slice(&element);
            }
        }
        "UINT8" => {
            for &value in &data.numbers {
                if !(0.0..=255.0).contains(&value) || value.fract() != 0.0 {
                    return Err(invalid(format!("input {} has {value}, which is no UINT8", Quoted::text(name))));
                }
                raw.put_u8(value as u8);
            }
        }
        _ => data.numbers.iter().for_each(|&value| raw.put_f32_le(value as f32)),
    }
    Ok(raw.freeze())
}

fn decode_base64(text: &str) -> Result<Vec<u8>, AppError> {
    use base64::Engine;
    let decoded = base64::engine::general_purpose::STANDARD.decode(text);
    decoded.map_err(|error| invalid(format!("an element is not base64: {error}")))
}

fn parameters(given: Parameters) -> Result<HashMap<String, InferParameter>, AppError> {
    let convert = |(name, value): (String, Value)| {
        let choice = match &value {
            Value::Bool(value) => ParameterChoice::BoolParam(*value),
            Value::String(value) => ParameterChoice::StringParam(value.clone()),
            Value::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(value), _) => ParameterChoice::Int64Param(value),
                (None, Some(value)) => ParameterChoice::Uint64Param(value),
                (None, None) => ParameterChoice::DoubleParam(number.as_f64().unwrap_or(f64::NAN)),
            },
            _ => return Err(invalid(format!("parameter {} is no number, text or bool", Quoted::text(&name)))),
        };
        Ok((name, InferParameter { parameter_choice: Some(choice) }))
    };
    given.into_iter().map(convert).collect()
}

#[derive(Serialize)]
struct Response {
    model_name: String,
    model_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    id: String,
    outputs: Vec<WrittenOutput>,
}

#[derive(Serialize)]
struct WrittenOutput {
    name: String,
    datatype: String,
    shape: Vec<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<BinarySize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Written>,
}

#[derive(Serialize)]
struct BinarySize {
    binary_data_size: usize,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Written {
    Numbers(Vec<f32>),
    Texts(Vec<String>),
}

/// The JSON of a response, and the binary data behind it.
pub(super) fn write(answer: ModelInferResponse, binary: &BinaryOutputs) -> (Vec<u8>, Vec<u8>) {
    let mut tensors = Vec::new();
    let raw = answer.raw_output_contents;
    let outputs = answer.outputs.into_iter().zip(raw).map(|(InferOutputTensor { name, datatype, shape, .. }, raw)| {
        let (mut parameters, mut data) = (None, None);
        if binary.has(&name) {
            parameters = Some(BinarySize { binary_data_size: raw.len() });
            tensors.extend_from_slice(&raw);
        } else {
            data = Some(elements(&datatype, &raw));
        }
        WrittenOutput { name, datatype, shape, parameters, data }
    });
    let outputs = outputs.collect();
    let response =
        Response { model_name: answer.model_name, model_version: answer.model_version, id: answer.id, outputs };
    (serde_json::to_vec(&response).expect("texts and finite numbers are JSON"), tensors)
}

/// The elements of a tensor that this server wrote.
fn elements(datatype: &str, raw: &[u8]) -> Written {
    if datatype != "BYTES" {
        let values = raw.chunks_exact(4).map(|value| f32::from_le_bytes(value.try_into().expect("four bytes")));
        return Written::Numbers(values.collect());
    }
    let (mut texts, mut rest) = (Vec::new(), raw);
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let (text, after) = after.split_at(u32::from_le_bytes(*length) as usize);
        texts.push(String::from_utf8_lossy(text).into_owned());
        rest = after;
    }
    Written::Texts(texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_json(json: Value, tensors: &[u8]) -> Result<(ModelInferRequest, BinaryOutputs), AppError> {
        let json = json.to_string();
        let body = [json.as_bytes(), tensors].concat();
        read(ModelSelector::default(), body.into(), (!tensors.is_empty()).then_some(json.len()))
    }

    #[test]
    fn tensors_in_json_and_behind_it_are_the_same() {
        let as_json = serde_json::json!({"inputs": [
            {"name": "CLIPS", "datatype": "UINT8", "shape": [1, 2, 2], "data": [[[1, 2], [3, 255]]]},
        ]});
        let as_binary = serde_json::json!({"inputs": [
            {"name": "CLIPS", "datatype": "UINT8", "shape": [1, 2, 2], "parameters": {"binary_data_size": 4}},
        ]});
        let (json, _) = read_json(as_json, &[]).unwrap();
        let (binary, _) = read_json(as_binary, &[1, 2, 3, 255]).unwrap();
        assert_eq!(json, binary);
        assert_eq!(json.raw_input_contents, [Bytes::from_static(&[1, 2, 3, 255])]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let input = |datatype: &str, data: Value, size: Value| {
            serde_json::json!({"inputs": [
                {"name": "X", "datatype": datatype, "shape": [1], "data": data, "parameters": size},
            ]})
        };
        for (json, tensors) in [
            (input("UINT8", serde_json::json!([256]), serde_json::json!({})), &[][..]),
            (input("UINT8", serde_json::json!([0.5]), serde_json::json!({})), &[]),
            (input("UINT8", serde_json::json!([]), serde_json::json!({"binary_data_size": 9})), &[1, 2]),
            (input("UINT8", serde_json::json!([]), serde_json::json!({"binary_data_size": 1})), &[1, 2]),
            (input("BYTES", serde_json::json!(["*"]), serde_json::json!({"content_type": "base64"})), &[]),
            (input("BYTES", serde_json::json!(["x"]), serde_json::json!({"list": [1]})), &[]),
        ] {
            assert_eq!(
                read_json(json.clone(), tensors).map(|_| ()).unwrap_err().reason,
                Reason::InvalidTensor,
                "{json}"
            );
        }
        let beyond = read(ModelSelector::default(), Bytes::from_static(b"{}"), Some(3));
        assert_eq!(beyond.map(|_| ()).unwrap_err().reason, Reason::InvalidTensor);
    }

    #[test]
    fn outputs_are_binary_where_the_request_says_so() {
        let output = |name: &str, datatype: &str| InferOutputTensor {
            name: name.to_owned(),
            datatype: datatype.to_owned(),
            shape: vec![1, 1],
            ..Default::default()
        };
        let answer = ModelInferResponse {
            model_name: "m".to_owned(),
            outputs: vec![output("A", "FP32"), output("B", "FP32"), output("C", "BYTES")],
            raw_output_contents: vec![
                Bytes::copy_from_slice(&0.5f32.to_le_bytes()),
                Bytes::copy_from_slice(&2.0f32.to_le_bytes()),
                Bytes::from_static(b"\x02\x00\x00\x00ok"),
            ],
            ..Default::default()
        };
        let (json, tensors) = write(answer, &BinaryOutputs { all: false, named: vec!["B".to_owned()] });
        let json: Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(json["outputs"][0]["data"], serde_json::json!([0.5]));
        assert_eq!(json["outputs"][1]["parameters"], serde_json::json!({"binary_data_size": 4}));
        assert_eq!(json["outputs"][2]["data"], serde_json::json!(["ok"]));
        assert_eq!(tensors, 2.0f32.to_le_bytes());
    }
}
