//! A classification for other tools: subtitles, and rows of a table.

use std::fmt::Write;
use std::time::Duration;

use crate::classify::Classification;
use crate::classify::scores::LabelScore;

/// WebVTT: a cue a segment. Segments without a label have none.
pub(super) fn vtt(classification: &Classification) -> String {
    let mut text = "WEBVTT\n".to_owned();
    let segments = classification.segments.iter().filter(|segment| !segment.labels.is_empty());
    for (index, segment) in segments.enumerate() {
        let (start, end) = (vtt_time(segment.start), vtt_time(segment.end));
        let _ = write!(text, "\n{}\n{start} --> {end}\n", index + 1);
        for LabelScore { label, score, .. } in &segment.labels {
            let _ = writeln!(text, "{} {:.1}%", escaped(label), 100.0 * score);
        }
    }
    text
}

fn vtt_time(time: Duration) -> String {
    let millis = (time.as_secs_f64() * 1000.0).round() as u64;
    let (seconds, minutes, hours) = (millis / 1000 % 60, millis / 60_000 % 60, millis / 3_600_000);
    format!("{hours:02}:{minutes:02}:{seconds:02}.{:03}", millis % 1000)
}

/// Text of a cue, in one line.
fn escaped(label: &str) -> String {
    label.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace(['\n', '\r'], " ")
}

/// A row a label of a segment, the best first.
pub(super) fn csv(classification: &Classification) -> Vec<u8> {
    const INTO_MEMORY: &str = "memory takes all rows";
    let mut rows = csv::Writer::from_writer(Vec::new());
    rows.write_record(["start_seconds", "end_seconds", "rank", "index", "label", "score"]).expect(INTO_MEMORY);
    for segment in &classification.segments {
        let (start, end) = (segment.start.as_secs_f64(), segment.end.as_secs_f64());
        for (rank, LabelScore { index, label, score }) in segment.labels.iter().enumerate() {
            let row = [
                format!("{start:.3}"),
                format!("{end:.3}"),
                (rank + 1).to_string(),
                index.to_string(),
                label.clone(),
                format!("{score:.6}"),
            ];
            rows.write_record(row).expect(INTO_MEMORY);
        }
    }
    rows.into_inner().expect(INTO_MEMORY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classify::scores::Segment;

    fn classification() -> Classification {
        let label = |label: &str, score| LabelScore { index: 3, label: label.to_owned(), score };
        let segment = |start, end, labels| Segment {
            start: Duration::from_millis(start),
            end: Duration::from_millis(end),
            labels,
            clips: 1,
        };
        let segments = vec![
            segment(0, 640, vec![label("pan, \"left\"", 0.75), label("a <b> & c", 0.25)]),
            segment(640, 3_723_004, Vec::new()),
            segment(3_723_004, 3_800_000, vec![label("zoom", 1.0)]),
        ];
        Classification { segments, ..Classification::default() }
    }

    #[test]
    fn subtitles_have_a_cue_a_segment() {
        assert_eq!(
            vtt(&classification()),
            "WEBVTT\n\n1\n00:00:00.000 --> 00:00:00.640\npan, \"left\" 75.0%\na &lt;b&gt; &amp; c 25.0%\n\n\
             2\n01:02:03.004 --> 01:03:20.000\nzoom 100.0%\n"
        );
    }

    #[test]
    fn tables_have_a_row_a_label() {
        assert_eq!(
            String::from_utf8(csv(&classification())).unwrap(),
            "start_seconds,end_seconds,rank,index,label,score\n0.000,0.640,1,3,\"pan, \"\"left\"\"\",0.750000\n\
             0.000,0.640,2,3,a <b> & c,0.250000\n3723.004,3800.000,1,3,zoom,1.000000\n"
        );
    }
}
