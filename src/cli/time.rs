//! Times in videos, as people write and read them.

use std::time::Duration;

/// `1:23:45.5` and `2:03` as players show them, `90` seconds, or `1h 2m 3s 500ms`.
pub(super) fn parse(text: &str) -> Result<Duration, String> {
    let expected = || format!("expected a time such as 1:23:45, 90 or 1m30s, got {text:?}");
    let seconds = |text: &str| {
        let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        text.parse::<f64>().ok().filter(|_| plain).and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
    };
    let Some((above, last)) = text.rsplit_once(':') else {
        return seconds(text).or_else(|| humantime::parse_duration(text).ok()).ok_or_else(expected);
    };
    let mut minutes = 0u64;
    let parts: Vec<&str> = above.split(':').collect();
    for (place, part) in parts.iter().enumerate() {
        let number: u64 = part.parse().map_err(|_| expected())?;
        if parts.len() > 2 || (place > 0 && number > 59) {
            return Err(expected());
        }
        minutes = minutes.checked_mul(60).and_then(|minutes| minutes.checked_add(number)).ok_or_else(expected)?;
    }
    let last = seconds(last).filter(|last| last.as_secs() < 60).ok_or_else(expected)?;
    let minutes = minutes.checked_mul(60).map(Duration::from_secs).ok_or_else(expected)?;
    minutes.checked_add(last).ok_or_else(expected)
}

/// How the times of one video are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// `12.34`
    Seconds,
    /// `2:03.45`
    Minutes,
    /// `1:23:45.67`
    Hours,
}

impl Form {
    /// For a video whose last time is this.
    pub(super) fn of(last: f64) -> Self {
        match hundredths(last) {
            0..6_000 => Self::Seconds,
            6_000..360_000 => Self::Minutes,
            _ => Self::Hours,
        }
    }

    pub(super) fn time(self, seconds: f64) -> String {
        let all = hundredths(seconds);
        let (minutes, rest) = (all / 6_000, all % 6_000);
        let rest = format!("{:02}.{:02}", rest / 100, rest % 100);
        match self {
            Self::Seconds => format!("{:.2}", all as f64 / 100.0),
            Self::Minutes => format!("{minutes}:{rest}"),
            Self::Hours => format!("{}:{:02}:{rest}", minutes / 60, minutes % 60),
        }
    }
}

/// How long something lasts: `12.34 s`, from a minute on `2:03` or `1:23:45`.
pub(super) fn length(seconds: f64) -> String {
    if Form::of(seconds) == Form::Seconds {
        return format!("{} s", Form::Seconds.time(seconds));
    }
    let seconds = seconds.round().max(0.0) as u64;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

/// Negative times are none, and no video is longer than the largest number.
fn hundredths(seconds: f64) -> u64 {
    (seconds * 100.0).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_players_show_them_and_in_words() {
        for (text, seconds) in [
            ("90", 90.0),
            ("1.5", 1.5),
            ("0:05", 5.0),
            ("2:03.25", 123.25),
            ("1:23:45", 5025.0),
            ("100:00", 6000.0),
            ("1m 30s", 90.0),
            ("250ms", 0.25),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_secs_f64(seconds)), "{text}");
        }
        for text in
            ["", ":", "1:", "1:60", "1:60:00", "1:2:3:4", "-1", "1e3", "inf", "NaN", "1.2.3", "99999999999999999999:00"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_videos_times_all_have_the_form_of_the_last() {
        assert_eq!((Form::of(59.99), Form::of(59.999), Form::of(3600.0)), (Form::Seconds, Form::Minutes, Form::Hours));
        assert_eq!(Form::Seconds.time(1.96), "1.96");
        assert_eq!(Form::Minutes.time(1.96), "0:01.96");
        assert_eq!(Form::Hours.time(5025.5), "1:23:45.50");
    }

    #[test]
    fn lengths_carry_their_rounding_over() {
        let lengths = [1.6, 59.996, 119.6, 3599.7, 5025.4].map(length);
        assert_eq!(lengths, ["1.60 s", "1:00", "2:00", "1:00:00", "1:23:45"]);
    }
}
