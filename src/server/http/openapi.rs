//! The API as OpenAPI 3.1, made from the definitions of its messages.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use axum::response::{IntoResponse, Response};
use prost_reflect::{Cardinality, EnumDescriptor, FieldDescriptor, FileDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value, json};
use tonic::codegen::http::header::CONTENT_TYPE;

use super::form::Form;
use super::json::descriptor;
use crate::app::{Category, Reason};
use crate::proto::{
    ClassificationOptions, ClassifyVideoRequest, ClassifyVideoResponse, ClassifyVideoStreamResponse, GetModelResponse,
    ListModelsResponse,
};

static DOCUMENT: LazyLock<String> = LazyLock::new(|| describe().to_string());

pub(super) async fn document() -> Response {
    ([(CONTENT_TYPE, "application/json")], DOCUMENT.as_str()).into_response()
}

fn describe() -> Value {
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Kinetoscope",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "Tells which actions happen in videos.",
            "license": {"name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{}, {"token": []}],
        "paths": paths(),
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": schemas(),
            "responses": {"Error": {
                "description": "The call failed.",
                "headers": {
                    "X-Request-Id": {"schema": {"type": "string"}},
                    "Retry-After": {"description": "Seconds, where trying again helps.", "schema": {"type": "integer"}},
                },
                "content": {"application/json": {"schema": reference("Error")}},
            }},
        },
    })
}

fn paths() -> Value {
    json!({
        "/v1/videos:classify": {"post": {
            "operationId": "classifyVideo",
            "summary": "Classifies one video",
            "parameters": classify_parameters(),
            "requestBody": {
                "required": true,
                "content": {
                    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
                    "multipart/form-data": {"schema": {
                        "type": "object",
                        "description": "Options, then the file.",
                        "required": ["file"],
                        "properties": {"file": {"type": "string", "format": "binary"}},
                    }},
                    "application/json": {"schema": {"anyOf": [
                        {
                            "type": "object",
                            "required": ["uri"],
                            "additionalProperties": false,
                            "properties": {"uri": {"type": "string"}, "options": reference("ClassificationOptions")},
                        },
                        reference("ClassifyVideoRequest"),
                    ]}},
                },
            },
            "responses": responses("The labels of the video, or events while it is classified.", json!({
                Form::Json.media_type(): {"schema": reference("ClassifyVideoResponse")},
                Form::NdJson.media_type(): {"schema": reference("ClassifyVideoStreamResponse")},
                Form::EventStream.media_type(): {},
                Form::Vtt.media_type(): {"schema": {"type": "string"}},
                Form::Csv.media_type(): {"schema": {"type": "string"}},
            })),
        }},
        "/v1/uploads/{key}/events": {"get": {
            "operationId": "watchUpload",
            "summary": "Events of a video that another request uploads with this key in `events`",
            "parameters": [{"name": "key", "in": "path", "required": true, "schema": key_schema()}],
            "responses": responses("The events.", json!({
                Form::EventStream.media_type(): {},
                Form::NdJson.media_type(): {"schema": reference("ClassifyVideoStreamResponse")},
            })),
        }},
        "/v1/models": {"get": {
            "operationId": "listModels",
            "summary": "All models, without their labels, and what the server takes",
            "responses": responses("The models.", of_json::<ListModelsResponse>()),
        }},
        "/v1/models/{name}": {"get": {
            "operationId": "getModel",
            "summary": "One model with its labels",
            "parameters": [
                {"name": "name", "in": "path", "required": true, "schema": {"type": "string"}},
                {"name": "version", "in": "query", "schema": {"type": "string"}},
            ],
            "responses": responses("The model.", of_json::<GetModelResponse>()),
        }},
    })
}

fn of_json<M: prost::Name>() -> Value {
    json!({Form::Json.media_type(): {"schema": reference(M::NAME)}})
}

fn responses(description: &str, content: Value) -> Value {
    json!({
        "200": {"description": description, "content": content},
        "default": {"$ref": "#/components/responses/Error"},
    })
}

fn key_schema() -> Value {
    json!({"type": "string", "pattern": "^[A-Za-z0-9_-]{16,64}$"})
}

/// Options as in the query.
fn classify_parameters() -> Vec<Value> {
    let query = |name: &str, description: &str, schema: Value| json!({"name": name, "in": "query", "description": description, "schema": schema});
    let seconds = json!({"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?s?$"});
    let own = [
        query("model", "Name of the model; the default model if absent.", json!({"type": "string"})),
        query("modelVersion", "Version of the model.", json!({"type": "string"})),
        query(
            "timeout",
            "Seconds in which the call has to be answered, such as 10s.",
            json!({"type": "string", "pattern": "^[1-9][0-9]{0,4}s?$"}),
        ),
        query("events", "Key under which another request gets the events.", key_schema()),
    ];
    let options = descriptor::<ClassificationOptions>();
    let comments = Comments::of(&options.parent_file());
    let of_message = options.fields().filter(|field| field.name() != "model").map(|field| {
        let schema = match field.kind() {
            Kind::Message(_) => seconds.clone(),
            kind => schema_of(&kind),
        };
        query(field.json_name(), &comments.at(field.path()), schema)
    });
    own.into_iter().chain(of_message).collect()
}

/// All messages and enums that the paths name, and those in them.
fn schemas() -> Map<String, Value> {
    let mut schemas = Map::from_iter([("Error".to_owned(), error_schema())]);
    let roots = [
        descriptor::<ClassifyVideoRequest>(),
        descriptor::<ClassifyVideoResponse>(),
        descriptor::<ClassifyVideoStreamResponse>(),
        descriptor::<ListModelsResponse>(),
        descriptor::<GetModelResponse>(),
    ];
    roots.iter().for_each(|root| add_message(&mut schemas, root));
    schemas
}

fn error_schema() -> Value {
    let reasons: Vec<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    let categories: BTreeSet<&str> = Reason::ALL.iter().map(|reason| Category::as_str(reason.category())).collect();
    json!({
        "type": "object",
        "required": ["error"],
        "properties": {"error": {
            "type": "object",
            "required": ["code", "reason", "message"],
            "properties": {
                "code": {"type": "string", "enum": categories},
                "reason": {"type": "string", "enum": reasons},
                "message": {"type": "string"},
                "retryDelay": {"type": "string", "description": "Where trying again helps, such as `1s`."},
            },
        }},
    })
}

fn add_message(schemas: &mut Map<String, Value>, message: &MessageDescriptor) {
    if is_well_known(message) || schemas.contains_key(message.name()) {
        return;
    }
    let comments = Comments::of(&message.parent_file());
    // Before its fields, which may lead back to it.
    schemas.insert(message.name().to_owned(), Value::Null);
    let mut properties = Map::new();
    for field in message.fields() {
        match field.kind() {
            Kind::Message(message) => add_message(schemas, &message),
            Kind::Enum(values) => add_enum(schemas, &values),
            _ => {}
        }
        properties.insert(field.json_name().to_owned(), property(&field, &comments));
    }
    let schema = json!({
        "type": "object",
        "description": comments.at(message.path()),
        "properties": properties,
        "additionalProperties": false,
    });
    schemas.insert(message.name().to_owned(), schema);
}

fn add_enum(schemas: &mut Map<String, Value>, values: &EnumDescriptor) {
    let comments = Comments::of(&values.parent_file());
    let names: Vec<String> = values.values().map(|value| value.name().to_owned()).collect();
    let words: Vec<String> =
        values.values().map(|value| format!("* `{}`: {}", value.name(), comments.at(value.path()))).collect();
    let description = format!("{}\n\n{}", comments.at(values.path()), words.join("\n"));
    let schema = json!({"type": "string", "enum": names, "description": description});
    schemas.insert(values.name().to_owned(), schema);
}

fn property(field: &FieldDescriptor, comments: &Comments) -> Value {
    let one = schema_of(&field.kind());
    let mut schema = match field.cardinality() {
        Cardinality::Repeated => json!({"type": "array", "items": one}),
        _ => one,
    };
    schema["description"] = comments.at(field.path()).into();
    schema
}

fn schema_of(kind: &Kind) -> Value {
    match kind {
        Kind::Bool => json!({"type": "boolean"}),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => json!({"type": "integer", "format": "int32"}),
        Kind::Uint32 | Kind::Fixed32 => json!({"type": "integer", "minimum": 0, "maximum": u32::MAX}),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => json!({"type": "string", "pattern": "^-?[0-9]+$"}),
        Kind::Uint64 | Kind::Fixed64 => json!({"type": "string", "pattern": "^[0-9]+$"}),
        Kind::Float | Kind::Double => json!({"type": "number"}),
        Kind::String => json!({"type": "string"}),
        Kind::Bytes => json!({"type": "string", "contentEncoding": "base64"}),
        // `google.protobuf.Duration`, the only one.
        Kind::Message(message) if is_well_known(message) => {
            json!({"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]+)?s$"})
        }
        Kind::Message(message) => reference(message.name()),
        Kind::Enum(values) => reference(values.name()),
    }
}

fn is_well_known(message: &MessageDescriptor) -> bool {
    message.package_name() == "google.protobuf"
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

/// What stands before the definitions of a file.
struct Comments(Vec<(Vec<i32>, String)>);

impl Comments {
    fn of(file: &FileDescriptor) -> Self {
        let info = file.file_descriptor_proto().source_code_info.clone().unwrap_or_default();
        let comments = info.location.into_iter().filter_map(|location| {
            let text = location.leading_comments?;
            let words: Vec<&str> = text.split_whitespace().collect();
            Some((location.path, words.join(" ")))
        });
        Self(comments.collect())
    }

    fn at(&self, path: &[i32]) -> String {
        self.0.iter().find(|(at, _)| at == path).map_or_else(String::new, |(_, text)| text.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_of_the_messages_is_described_as_the_definitions_have_it() {
        let document = describe();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        for message in super::super::json::DEFINITIONS.all_messages().filter(|message| !is_well_known(message)) {
            let Some(schema) = schemas.get(message.name()) else { continue };
            let described: BTreeSet<&str> =
                schema["properties"].as_object().unwrap().keys().map(String::as_str).collect();
            let fields: Vec<FieldDescriptor> = message.fields().collect();
            let defined: BTreeSet<&str> = fields.iter().map(|field| field.json_name()).collect();
            assert_eq!(described, defined, "{}", message.name());
            for field in &fields {
                let text = schema["properties"][field.json_name()]["description"].as_str().unwrap();
                assert!(!text.is_empty(), "{} has words", field.full_name());
            }
        }
        for name in ["ClassificationOptions", "VideoClassification", "ClipResult", "Progress", "Model", "Limits"] {
            assert!(schemas.contains_key(name), "{name}");
        }
    }

    #[test]
    fn references_lead_somewhere() {
        let document = describe();
        let text = document.to_string();
        for reference in text.split("\"#/components/").skip(1).map(|rest| rest.split('"').next().unwrap()) {
            assert!(document.pointer(&format!("/components/{reference}")).is_some(), "{reference}");
        }
    }
}
