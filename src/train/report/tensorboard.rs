//! TensorBoard event files: scalars, pictures and texts as TFRecords of `tensorflow.Event` messages.
//!
//! A record is its length (u64, little-endian), the length's checksum, the message and the message's checksum; both are
//! masked CRC-32C (`tensorflow/core/lib/io/record_writer.h`). The messages here declare the fields that these need,
//! with the numbers of `tensorflow/core/util/event.proto` and `framework/summary.proto`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

use super::canvas::Canvas;
use super::{ReportError, at};

/// Names are found by this part (TensorBoard's `io_wrapper.IsTensorFlowEventsFile`).
const FILE_NAME_PART: &str = "tfevents";

/// One line of charts: a folder with an event file.
#[derive(Debug)]
pub(super) struct Run {
    path: PathBuf,
    file: File,
}

#[derive(Clone, PartialEq, Message)]
struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    /// Only in a file's first event.
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
    #[prost(message, optional, tag = "4")]
    image: Option<Image>,
    #[prost(message, optional, tag = "8")]
    tensor: Option<TensorProto>,
    #[prost(message, optional, tag = "9")]
    metadata: Option<SummaryMetadata>,
}

#[derive(Clone, PartialEq, Message)]
struct Image {
    #[prost(int32, tag = "1")]
    height: i32,
    #[prost(int32, tag = "2")]
    width: i32,
    /// Channels: 4 are RGBA.
    #[prost(int32, tag = "3")]
    colorspace: i32,
    /// A PNG file.
    #[prost(bytes = "vec", tag = "4")]
    encoded_image_string: Vec<u8>,
}

/// `tensorflow/core/framework/tensor.proto`, as far as a string needs it.
#[derive(Clone, PartialEq, Message)]
struct TensorProto {
    #[prost(int32, tag = "1")]
    dtype: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<Shape>,
    #[prost(bytes = "vec", repeated, tag = "8")]
    string_val: Vec<Vec<u8>>,
}

/// Without dimensions: that of a scalar.
#[derive(Clone, PartialEq, Message)]
struct Shape {}

#[derive(Clone, PartialEq, Message)]
struct SummaryMetadata {
    #[prost(message, optional, tag = "1")]
    plugin_data: Option<PluginData>,
}

#[derive(Clone, PartialEq, Message)]
struct PluginData {
    #[prost(string, tag = "1")]
    plugin_name: String,
}

impl Run {
    /// The run in `folder`, which is made if it isn't there. What an earlier process wrote is kept if `keep` says so.
    /// Files that somebody else made are left alone.
    pub(super) fn open(folder: &Path, keep: bool) -> io::Result<Self> {
        const NAME: &str = "events.out.tfevents.kinetoscope";
        debug_assert!(NAME.contains(FILE_NAME_PART));
        fs::create_dir_all(folder)?;
        let path = folder.join(NAME);
        let kept = if keep { read(&path)?.into_iter().map(|event| event.record).collect() } else { Vec::new() };
        let mut run = Self { file: replace(&path, &kept)?, path };
        if kept.is_empty() {
            run.write(Event { file_version: Some("brain.Event:2".to_owned()), ..Event::now(0) })?;
        }
        Ok(run)
    }

    /// Adds a point to the line of each tag. It is in the file when this returns.
    pub(super) fn scalars(&mut self, step: u64, values: &[(&str, f64)]) -> Result<(), ReportError> {
        let values = values.iter();
        let value = values.map(|(tag, value)| Value { simple_value: Some(*value as f32), ..Value::of(tag) }).collect();
        self.write(Event { summary: Some(Summary { value }), ..Event::now(step) }).map_err(at(&self.path))
    }

    /// Shows a text in Markdown, in the place of an earlier one with the tag.
    pub(super) fn text(&mut self, tag: &str, text: &str) -> Result<(), ReportError> {
        const STRING: i32 = 7;
        self.forget_from(0, tag)?;
        let tensor = TensorProto { dtype: STRING, shape: Some(Shape {}), string_val: vec![text.as_bytes().to_vec()] };
        let plugin_data = Some(PluginData { plugin_name: "text".to_owned() });
        let metadata = Some(SummaryMetadata { plugin_data });
        self.value(0, Value { tensor: Some(tensor), metadata, ..Value::of(tag) })
    }

    /// Adds a picture to the row of its tag.
    pub(super) fn picture(&mut self, step: u64, tag: &str, picture: &Canvas) -> Result<(), ReportError> {
        let (width, height) = picture.size();
        let image = Image {
            height: i32::try_from(height).unwrap_or(i32::MAX),
            width: i32::try_from(width).unwrap_or(i32::MAX),
            colorspace: 4,
            encoded_image_string: picture.png().map_err(at(&self.path))?,
        };
        self.value(step, Value { image: Some(image), ..Value::of(tag) })
    }

    fn value(&mut self, step: u64, value: Value) -> Result<(), ReportError> {
        let summary = Some(Summary { value: vec![value] });
        self.write(Event { summary, ..Event::now(step) }).map_err(at(&self.path))
    }

    /// Removes the points at `step` and later from the lines whose tags begin with `prefix`.
    pub(super) fn forget_from(&mut self, step: u64, prefix: &str) -> Result<(), ReportError> {
        let step = i64::try_from(step).unwrap_or(i64::MAX);
        let keeps = |event: &Event| {
            let mut tags = event.summary.iter().flat_map(|summary| &summary.value);
            event.step < step || !tags.any(|value| value.tag.starts_with(prefix))
        };
        let events = read(&self.path).map_err(at(&self.path))?;
        let all = events.len();
        let kept: Vec<_> = events.into_iter().filter(|read| keeps(&read.event)).map(|read| read.record).collect();
        if kept.len() < all {
            self.file = replace(&self.path, &kept).map_err(at(&self.path))?;
        }
        Ok(())
    }

    fn write(&mut self, event: Event) -> io::Result<()> {
        self.file.write_all(&frame(&event.encode_to_vec()))
    }
}

impl Value {
    fn of(tag: &str) -> Self {
        Self { tag: tag.to_owned(), ..Self::default() }
    }
}

impl Event {
    fn now(step: u64) -> Self {
        let wall_time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        Self { wall_time, step: i64::try_from(step).unwrap_or(i64::MAX), ..Self::default() }
    }
}

/// A message as a record.
fn frame(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    let checksum = |bytes: &[u8]| masked_crc(bytes).to_le_bytes();
    [&length[..], &checksum(&length), message, &checksum(message)].concat()
}

/// Checksums of data that holds checksums are weak, so TensorFlow turns and shifts them.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

struct ReadEvent {
    event: Event,
    /// The event as it stands in the file: with fields that this module doesn't know.
    record: Vec<u8>,
}

/// The whole events of a file; a last one that was cut off when its writer was killed is left out. None without a file.
fn read(path: &Path) -> io::Result<Vec<ReadEvent>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut events = Vec::new();
    let mut rest = bytes.as_slice();
    while let Some((event, len)) = first_event(rest) {
        let (record, after) = rest.split_at(len);
        events.push(ReadEvent { event, record: record.to_vec() });
        rest = after;
    }
    Ok(events)
}

/// The event at the beginning and the bytes that its record takes; `None` if there is no whole one.
fn first_event(bytes: &[u8]) -> Option<(Event, usize)> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    let (length_crc, rest) = rest.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*length_crc) != masked_crc(length) {
        return None;
    }
    let message = rest.get(..usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    let message_crc = rest[message.len()..].first_chunk::<4>()?;
    if u32::from_le_bytes(*message_crc) != masked_crc(message) {
        return None;
    }
    Some((Event::decode(message).ok()?, 8 + 4 + message.len() + 4))
}

/// Makes the file hold these records, at once, and opens it to write more.
fn replace(path: &Path, records: &[Vec<u8>]) -> io::Result<File> {
    crate::replacement::write_whole(path, &records.concat())?;
    File::options().append(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(path: &Path) -> Vec<(i64, String, f32)> {
        let points = read(path).unwrap().into_iter().flat_map(|read| {
            let values = read.event.summary.unwrap_or_default().value;
            values.into_iter().map(move |value| (read.event.step, value.tag, value.simple_value.unwrap_or(f32::NAN)))
        });
        points.collect()
    }

    #[test]
    fn records_are_those_of_tensorboards_own_writer() {
        // `RecordWriter` of the Python package tensorboard 2.21 with the same event.
        let golden = "1a00000000000000129bd82d\
                      09000000000000f83f10032a0d0a0b0a046c6f7373150000003f80655ee3";
        let value = Value { simple_value: Some(0.5), ..Value::of("loss") };
        let summary = Some(Summary { value: vec![value] });
        let record = frame(&Event { wall_time: 1.5, step: 3, summary, file_version: None }.encode_to_vec());
        assert_eq!(record.iter().map(|byte| format!("{byte:02x}")).collect::<String>(), golden);
    }

    #[test]
    fn a_file_begins_with_its_version_and_goes_on_with_scalars() {
        let folder = tempfile::tempdir().unwrap();
        let mut run = Run::open(folder.path(), false).unwrap();
        run.scalars(3, &[("step/loss", 0.5), ("step/learning_rate", 0.1)]).unwrap();
        let events = read(&run.path).unwrap();
        assert_eq!(events[0].event.file_version.as_deref(), Some("brain.Event:2"));
        assert_eq!(points(&run.path), [(3, "step/loss".to_owned(), 0.5), (3, "step/learning_rate".to_owned(), 0.1)]);
    }

    #[test]
    fn later_points_are_forgotten_line_by_line_and_a_torn_record_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let mut run = Run::open(folder.path(), false).unwrap();
        for step in 0..4 {
            run.scalars(step, &[("step/loss", step as f64)]).unwrap();
            run.scalars(step, &[("epoch/loss", step as f64)]).unwrap();
        }
        let whole = fs::read(&run.path).unwrap();
        fs::write(&run.path, &whole[..whole.len() - 3]).unwrap();

        let mut run = Run::open(folder.path(), true).unwrap();
        run.forget_from(2, "step/").unwrap();
        run.scalars(2, &[("step/loss", 20.0)]).unwrap();
        let line = |prefix: &str| {
            let points = points(&run.path).into_iter().filter(|point| point.1.starts_with(prefix));
            points.map(|(step, _, value)| (step, value)).collect::<Vec<_>>()
        };
        assert_eq!(line("step/"), [(0, 0.0), (1, 1.0), (2, 20.0)]);
        assert_eq!(line("epoch/"), [(0, 0.0), (1, 1.0), (2, 2.0)]);
    }
}
