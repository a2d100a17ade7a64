//! Messages of the API as proto3 JSON, by their definitions.

use std::sync::LazyLock;

use prost::{Message, Name};
use prost_reflect::{DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions};
use serde::Deserializer;

use crate::app::{AppError, Reason};
use crate::proto;

/// The definitions of the API.
pub(super) static DEFINITIONS: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(proto::FILE_DESCRIPTOR_SET).expect("our own definitions are valid"));

pub(super) fn descriptor<M: Name>() -> MessageDescriptor {
    DEFINITIONS.get_message_by_name(&M::full_name()).expect("a message of the API is defined in it")
}

/// Fields with default values are written too, as people look for them; not messages that aren't there.
const WRITTEN: SerializeOptions = SerializeOptions::new().skip_default_fields(false);

const READ: DeserializeOptions = DeserializeOptions::new().deny_unknown_fields(true);

/// Writes a message.
pub(super) fn encode<M: Message + Name>(message: &M) -> Vec<u8> {
    let message = DynamicMessage::decode(descriptor::<M>(), message.encode_to_vec().as_slice())
        .expect("a message is what its definition says");
    let mut json = Vec::with_capacity(1024);
    message
        .serialize_with_options(&mut serde_json::Serializer::new(&mut json), &WRITTEN)
        .expect("messages of the API can be JSON");
    json
}

/// Reads a message.
pub(super) fn decode<'a, M: Message + Name + Default>(
    json: impl Deserializer<'a, Error = serde_json::Error>,
) -> Result<M, AppError> {
    let malformed = |error: &dyn std::fmt::Display| {
        AppError::new(Reason::MalformedRequest, format!("the request can't be read: {error}"))
    };
    let message = DynamicMessage::deserialize_with_options(descriptor::<M>(), json, &READ);
    message.map_err(|error| malformed(&error))?.transcode_to().map_err(|error| malformed(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_written_as_proto3_says() {
        let progress = proto::Progress {
            received_bytes: 1 << 60,
            clips: 0,
            position: Some(prost_types::Duration { seconds: 1, nanos: 500_000_000 }),
        };
        let json = String::from_utf8(encode(&progress)).unwrap();
        assert_eq!(json, r#"{"receivedBytes":"1152921504606846976","clips":"0","position":"1.500s"}"#);
        let json = String::from_utf8(encode(&proto::Progress::default())).unwrap();
        assert_eq!(json, r#"{"receivedBytes":"0","clips":"0"}"#);
        let segment = proto::LabelScore { index: 0, label: "pan \"left\"".to_owned(), score: 0.1 };
        assert_eq!(encode(&segment), br#"{"index":0,"label":"pan \"left\"","score":0.1}"#);
    }

    #[test]
    fn messages_are_read_by_either_name_and_unknown_fields_are_errors() {
        for json in [r#"{"topK": 3, "segments": "SEGMENT_MODE_CLIP"}"#, r#"{"top_k": "3", "segments": 1}"#] {
            let options: proto::ClassificationOptions = decode(&mut serde_json::Deserializer::from_str(json)).unwrap();
            assert_eq!((options.top_k, options.segments), (Some(3), 1));
        }
        let wrong = decode::<proto::ClassificationOptions>(&mut serde_json::Deserializer::from_str(r#"{"topk": 3}"#));
        assert_eq!(wrong.unwrap_err().reason, Reason::MalformedRequest);
    }
}
