//! Words of callers in our own: cut, so that what they send can't fill trailers and logs.

use std::borrow::Cow;
use std::fmt;

/// Characters of a quote.
const LONGEST: usize = 100;

/// The beginning of a text, with an ellipsis if that is not all of it.
pub(crate) fn cut(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
        None => Cow::Borrowed(text),
    }
}

/// What [`Debug`](fmt::Debug) says of a value, cut: of a text, it in quotes.
#[derive(Debug)]
pub(crate) struct Quoted(String);

impl Quoted {
    pub(crate) fn text(text: &str) -> Self {
        // Characters that are escaped would make it longer again.
        Self(cut(&format!("{:?}", cut(text))).into_owned())
    }

    /// The first items of a list.
    pub(crate) fn list<T: fmt::Debug>(items: &[T]) -> Self {
        Self(cut(&format!("{:?}", &items[..items.len().min(LONGEST)])).into_owned())
    }
}

impl fmt::Display for Quoted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_long_is_cut_between_characters() {
        assert_eq!(cut("as it is"), "as it is");
        assert_eq!(cut(&"ä".repeat(LONGEST)), "ä".repeat(LONGEST));
        assert_eq!(cut(&"ä".repeat(1 << 20)), format!("{}…", "ä".repeat(LONGEST)));
        assert_eq!(Quoted::text("a \"name\"").to_string(), r#""a \"name\"""#);
        for hostile in ["\u{1}", "\u{10FFFF}", "\"", "\n"] {
            assert!(Quoted::text(&hostile.repeat(1 << 20)).to_string().chars().count() <= LONGEST + 1);
        }
        assert_eq!(Quoted::list(&[1, -1]).to_string(), "[1, -1]");
        assert!(Quoted::list(&vec![1; 1 << 20]).to_string().chars().count() <= LONGEST + 1);
    }
}
