//! Models by name, and the API's promise never to change what it says.

use std::collections::BTreeMap;

use kinetoscope::engine::Engine;
use kinetoscope::metrics::Metrics;
use kinetoscope::model::{builtin, init};
use kinetoscope::proto;
use kinetoscope::server::ServeOptions;
use prost::Message;
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorSet};
use tonic::Code;

use crate::media::Media;
use crate::support::{Server, engine_config, limits, reason, request};

fn selector(name: &str, version: &str) -> proto::ModelSelector {
    proto::ModelSelector { name: name.to_owned(), version: version.to_owned() }
}

async fn two_models() -> Server {
    let models = [("first", "1"), ("second", "7")].map(|(name, version)| {
        let spec = builtin::spec();
        let spec = kinetoscope::model::spec::ModelSpec {
            name: name.to_owned(),
            version: version.to_owned(),
            trained: false,
            ..spec
        };
        Engine::start(init::initialise(spec, 3).unwrap(), engine_config(), &Metrics::default()).unwrap()
    });
    Server::with_models(models.into(), limits(), ServeOptions::default()).await
}

#[tokio::test]
async fn models_are_listed_default_first_and_described_by_name() {
    let server = two_models().await;
    let mut client = server.client().await;
    let list = client.list_models(proto::ListModelsRequest {}).await.unwrap().into_inner();
    let names: Vec<_> = list.models.iter().map(|model| (model.name.as_str(), model.default)).collect();
    assert_eq!(names, [("first", true), ("second", false)]);
    assert_eq!(list.limits.unwrap().max_frames, 400);

    let request = proto::GetModelRequest { model: Some(selector("second", "")) };
    let model = client.get_model(request).await.unwrap().into_inner().model.unwrap();
    assert_eq!((model.version.as_str(), model.labels.len(), model.trained), ("7", 10, false));
    assert_eq!(model.clip.unwrap(), proto::ClipGeometry { frames: 16, size: 112, temporal_stride: 1 });
}

#[tokio::test]
async fn an_untrained_model_says_so_in_its_answers() {
    let media = Media::new();
    let args = "-f lavfi -i testsrc2=size=160x120:rate=25 -t 0.5 -pix_fmt yuv420p";
    let video = std::fs::read(media.make("video.mp4", args)).unwrap();
    let response = two_models().await.client().await.classify_video(request(video)).await.unwrap();
    let warnings = response.into_inner().classification.unwrap().warnings;
    assert!(warnings[0].contains("untrained"), "{warnings:?}");
}

#[tokio::test]
async fn unknown_model_or_version_is_not_found() {
    let server = two_models().await;
    let mut client = server.client().await;
    for model in [selector("third", ""), selector("first", "7")] {
        let status = client.get_model(proto::GetModelRequest { model: Some(model.clone()) }).await.unwrap_err();
        assert_eq!(reason(&status), (Code::NotFound, "MODEL_NOT_FOUND".to_owned()));
        assert!(status.message().contains("second"), "the message names what there is: {}", status.message());
        let options = proto::ClassificationOptions { model: Some(model), ..Default::default() };
        let request = proto::ClassifyVideoRequest { options: Some(options), ..request(vec![1, 2, 3]) };
        let status = client.classify_video(request).await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound);
    }
}

#[tokio::test]
async fn not_found_names_each_model_once_and_cuts_what_was_asked_for() {
    let models = [("m", "1"), ("m", "2"), ("other", "7")].map(|(name, version)| {
        let spec = kinetoscope::model::spec::ModelSpec {
            name: name.to_owned(),
            version: version.to_owned(),
            ..builtin::spec()
        };
        let build = || -> Result<Box<dyn kinetoscope::engine::Executor>, kinetoscope::engine::ExecutorError> {
            Ok(Box::new(crate::support::Slow(std::time::Duration::ZERO)))
        };
        let config = kinetoscope::engine::EngineConfig::new(1, 1);
        Engine::with_workers(spec, config, 1, Box::new(build), &Metrics::default()).unwrap()
    });
    let server = Server::with_models(models.into(), limits(), ServeOptions::default()).await;
    let mut client = server.client().await;
    let mut refused = async |name: &str| {
        let request = proto::GetModelRequest { model: Some(selector(name, "")) };
        client.get_model(request).await.unwrap_err()
    };
    assert_eq!(refused("n").await.message(), "no model \"n\"; there are m (1, 2), other (7)");
    for long in ["n".repeat(100_000), "\u{1F4A9}".repeat(25_000), "\n\"".repeat(50_000)] {
        let status = refused(&long).await;
        assert_eq!(reason(&status), (Code::NotFound, "MODEL_NOT_FOUND".to_owned()));
        let trailers = status.message().len() + status.details().len();
        assert!(trailers < 2000 && status.message().contains("other (7)"), "{trailers} bytes: {status:?}");
    }
}

/// Everything a client can depend on: for each field, value and call, what it is.
type Surface = BTreeMap<String, String>;

fn surface(set: &[u8]) -> Surface {
    let mut surface = Surface::new();
    for file in FileDescriptorSet::decode(set).unwrap().file {
        let package = file.package().to_owned();
        file.message_type.iter().for_each(|message| add_message(&mut surface, &package, message));
        file.enum_type.iter().for_each(|values| add_enum(&mut surface, &package, values));
        for service in &file.service {
            for call in &service.method {
                let streams = (call.client_streaming(), call.server_streaming());
                let what = format!("{} -> {} {streams:?}", call.input_type(), call.output_type());
                surface.insert(format!("{package}.{}/{}", service.name(), call.name()), what);
            }
        }
    }
    surface
}

fn add_message(surface: &mut Surface, scope: &str, message: &DescriptorProto) {
    let name = format!("{scope}.{}", message.name());
    for field in &message.field {
        let oneof = field.oneof_index.map(|index| message.oneof_decl[index as usize].name());
        let what =
            format!("= {} {:?} {:?} {} {oneof:?}", field.number(), field.r#type(), field.label(), field.type_name());
        surface.insert(format!("{name}.{}", field.name()), what);
    }
    message.nested_type.iter().for_each(|nested| add_message(surface, &name, nested));
    message.enum_type.iter().for_each(|values| add_enum(surface, &name, values));
}

fn add_enum(surface: &mut Surface, scope: &str, values: &EnumDescriptorProto) {
    for value in &values.value {
        surface.insert(format!("{scope}.{}.{}", values.name(), value.name()), format!("= {}", value.number()));
    }
}

#[test]
fn v1_keeps_every_promise_it_has_made() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/proto/kinetoscope.v1.binpb");
    let now = surface(proto::FILE_DESCRIPTOR_SET);
    if std::env::var_os("UPDATE_DESCRIPTORS").is_some() {
        std::fs::write(path, proto::FILE_DESCRIPTOR_SET).unwrap();
    }
    let promised = surface(&std::fs::read(path).unwrap());
    for (name, what) in &promised {
        assert_eq!(now.get(name), Some(what), "{name} changed or went away: that breaks clients of v1");
    }
    let new: Vec<_> = now.keys().filter(|name| !promised.contains_key(*name)).collect();
    assert!(new.is_empty(), "new in v1: {new:?}; to promise them, run this test with UPDATE_DESCRIPTORS=1");
}
