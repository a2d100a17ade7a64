//! Names of videos in what is printed. A name is bytes, and need not be text.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// A name on one line, such that no two names look the same: a backslash is `\\`; bytes that are no UTF-8, and control
/// characters, are `\xNN` each.
pub(super) fn escaped(name: &OsStr) -> Cow<'_, str> {
    if let Some(text) = name.to_str().filter(|text| !text.contains(|c: char| c == '\\' || c.is_control())) {
        return Cow::Borrowed(text);
    }
    let mut text = String::new();
    let escape = |text: &mut String, bytes: &[u8]| bytes.iter().for_each(|byte| *text += &format!("\\x{byte:02x}"));
    for chunk in name.as_bytes().utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                c if c.is_control() => escape(&mut text, c.encode_utf8(&mut [0; 4]).as_bytes()),
                c => text.push(c),
            }
        }
        escape(&mut text, chunk.invalid());
    }
    Cow::Owned(text)
}

/// The name that [`escaped`] made `text` of; `None` if it did not.
pub(super) fn unescaped(text: &str) -> Option<OsString> {
    let mut name = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'\\' {
            name.push(byte);
        } else if let Some(after) = rest.strip_prefix(b"\\") {
            name.push(b'\\');
            rest = after;
        } else {
            let (digits, after) = rest.strip_prefix(b"x")?.split_at_checked(2)?;
            let [high, low] = [digits[0], digits[1]].map(|digit| char::from(digit).to_digit(16));
            name.push((high? * 16 + low?) as u8);
            rest = after;
        }
    }
    Some(OsString::from_vec(name))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_that_are_plain_text_stay_as_they_are() {
        for name in ["a b.mp4", "Straße/été.mp4", "100%.mp4"] {
            assert_eq!(escaped(OsStr::new(name)), name);
        }
        let name = OsString::from_vec(b"a\xff\\x\nb\x1b.mp4".to_vec());
        assert_eq!(escaped(&name), r"a\xff\\x\x0ab\x1b.mp4");
    }

    proptest! {
        #[test]
        fn every_name_comes_back(name in proptest::collection::vec(any::<u8>(), 0..40)) {
            let name = OsString::from_vec(name);
            prop_assert_eq!(unescaped(&escaped(&name)), Some(name));
        }
    }

    #[test]
    fn what_is_no_escaped_name_is_none() {
        for text in ["\\", "\\x", "\\xf", "\\xzz", "\\n", "\\x+1"] {
            assert_eq!(unescaped(text), None, "{text}");
        }
    }
}
