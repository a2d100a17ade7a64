//! From text to characters in the order in which they are drawn, from left to right: lines of Arabic, Hebrew and other scripts
//! that run from right to left are turned around, and Arabic letters take the shapes by which they join.

use unicode_bidi::{BidiInfo, Level};
use unicode_width::UnicodeWidthChar;

/// A character as it is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) character: char,
    /// Whether it stands on the one before it, as accents do.
    pub(super) is_mark: bool,
}

/// The characters of one line.
pub(super) fn in_visual_order(text: &str) -> Vec<Placed> {
    let placed = |character: char| Placed { character, is_mark: is_mark(character) };
    if text.is_ascii() {
        return text.chars().map(placed).collect();
    }
    // What breaks lines or is no character at all has no place in one line.
    let joined: String = joined(text).into_iter().filter(|character| !is_invisible(*character)).collect();
    let info = BidiInfo::new(&joined, Some(Level::ltr()));
    let Some(paragraph) = info.paragraphs.first() else { return Vec::new() };
    let (levels, runs) = info.visual_runs(paragraph, paragraph.range.clone());
    let mut characters = Vec::new();
    for run in runs {
        let begin = characters.len();
        characters.extend(joined[run.clone()].chars().map(placed));
        if levels[run.start].is_rtl() {
            characters[begin..].reverse();
            marks_after_their_base(&mut characters[begin..]);
        }
    }
    characters
}

/// After turning a run around, marks stand before what they belong to: they change places.
fn marks_after_their_base(run: &mut [Placed]) {
    let mut begin = 0;
    while begin < run.len() {
        let marks = run[begin..].iter().take_while(|placed| placed.is_mark).count();
        let end = (begin + marks + 1).min(run.len());
        run[begin..end].reverse();
        begin = end;
    }
}

fn is_mark(character: char) -> bool {
    !character.is_ascii() && character.width() == Some(0) && !is_invisible(character)
}

/// Marks of direction, joiners, variants of emoji, line ends and the like.
fn is_invisible(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}')
}

/// How an Arabic letter joins: its shapes in Unicode's presentation forms are alone and final, or alone, final, initial and
/// medial, one after the other.
#[derive(Clone, Copy)]
struct Shapes {
    first: u32,
    count: u32,
}

/// Letters in the order of Unicode, the first of their shapes, and how many there are.
#[rustfmt::skip]
const SHAPES: [(u32, u32, u32); 43] = [
    (0x621, 0xFE80, 1), (0x622, 0xFE81, 2), (0x623, 0xFE83, 2), (0x624, 0xFE85, 2), (0x625, 0xFE87, 2),
    (0x626, 0xFE89, 4), (0x627, 0xFE8D, 2), (0x628, 0xFE8F, 4), (0x629, 0xFE93, 2), (0x62A, 0xFE95, 4),
    (0x62B, 0xFE99, 4), (0x62C, 0xFE9D, 4), (0x62D, 0xFEA1, 4), (0x62E, 0xFEA5, 4), (0x62F, 0xFEA9, 2),
    (0x630, 0xFEAB, 2), (0x631, 0xFEAD, 2), (0x632, 0xFEAF, 2), (0x633, 0xFEB1, 4), (0x634, 0xFEB5, 4),
    (0x635, 0xFEB9, 4), (0x636, 0xFEBD, 4), (0x637, 0xFEC1, 4), (0x638, 0xFEC5, 4), (0x639, 0xFEC9, 4),
    (0x63A, 0xFECD, 4), (0x641, 0xFED1, 4), (0x642, 0xFED5, 4), (0x643, 0xFED9, 4), (0x644, 0xFEDD, 4),
    (0x645, 0xFEE1, 4), (0x646, 0xFEE5, 4), (0x647, 0xFEE9, 4), (0x648, 0xFEED, 2), (0x649, 0xFEEF, 2),
    (0x64A, 0xFEF1, 4), (0x679, 0xFB66, 4), (0x67E, 0xFB56, 4), (0x686, 0xFB7A, 4), (0x698, 0xFB8A, 2),
    (0x6A9, 0xFB8E, 4), (0x6AF, 0xFB92, 4), (0x6CC, 0xFBFC, 4),
];
impl Shapes {
    fn of(character: char) -> Option<Self> {
        let place = SHAPES.binary_search_by_key(&u32::from(character), |shapes| shapes.0).ok()?;
        let (_, first, count) = SHAPES[place];
        Some(Self { first, count })
    }

    fn joins_next(self) -> bool {
        self.count == 4
    }

    fn joins_previous(self) -> bool {
        self.count >= 2
    }
}

/// The text with Arabic letters as they look beside those before and after them.
fn joined(text: &str) -> Vec<char> {
    const LAM: char = '\u{644}';
    // Lam and alef are written as one: the shape alone, the final one follows.
    let lam_alef = |alef: char| match alef {
        '\u{622}' => Some(0xFEF5),
        '\u{623}' => Some(0xFEF7),
        '\u{625}' => Some(0xFEF9),
        '\u{627}' => Some(0xFEFB),
        _ => None,
    };
    let characters: Vec<char> = text.chars().collect();
    let neighbour = |mut places: Box<dyn Iterator<Item = usize>>| {
        places.find(|&place| !is_mark(characters[place])).map(|place| characters[place])
    };
    let mut shaped = Vec::with_capacity(characters.len());
    let mut place = 0;
    while place < characters.len() {
        let character = characters[place];
        let Some(shapes) = Shapes::of(character) else {
            shaped.push(character);
            place += 1;
            continue;
        };
        let joins = |other: Option<char>, how: fn(Shapes) -> bool| {
            other.is_some_and(|other| other == '\u{640}' || Shapes::of(other).is_some_and(how))
        };
        let before = joins(neighbour(Box::new((0..place).rev())), Shapes::joins_next) && shapes.joins_previous();
        if let (LAM, Some(ligature)) = (character, characters.get(place + 1).and_then(|&next| lam_alef(next))) {
            shaped.extend(char::from_u32(ligature + u32::from(before)));
            place += 2;
            continue;
        }
        let after =
            joins(neighbour(Box::new(place + 1..characters.len())), Shapes::joins_previous) && shapes.joins_next();
        let shape = u32::from(before) + 2 * u32::from(after);
        shaped.push(char::from_u32(shapes.first + shape).unwrap_or(character));
        place += 1;
    }
    shaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(text: &str) -> String {
        in_visual_order(text).iter().map(|placed| placed.character).collect()
    }

    #[test]
    fn text_from_left_to_right_stays_as_it_is() {
        for text in ["bowling", "прыжок", "走る", "달리기", "दौड़ना"] {
            assert_eq!(drawn(text), text);
        }
    }

    #[test]
    fn text_from_right_to_left_is_turned_around_but_for_its_numbers() {
        assert_eq!(drawn("שלום"), "םולש");
        assert_eq!(drawn("true: שלום 12"), "true: 12 םולש");
    }

    #[test]
    fn arabic_letters_join() {
        // beh initial, yeh medial, teh final: "bayt", a house; from left to right the other way round.
        assert_eq!(drawn("بيت"), "\u{fe96}\u{fef4}\u{fe91}");
        // Lam and alef become one; alef joins nothing after it.
        assert_eq!(drawn("لا"), "\u{fefb}");
        assert_eq!(drawn("دار"), "\u{fead}\u{fe8d}\u{fea9}");
    }

    #[test]
    fn marks_follow_what_they_stand_on_and_invisible_characters_are_left_out() {
        let marked = in_visual_order("e\u{301}");
        assert_eq!((marked[0].is_mark, marked[1].is_mark), (false, true));
        // Hebrew with a point: the point still follows its letter.
        let pointed = in_visual_order("ש\u{5b8}ל");
        let marks: Vec<bool> = pointed.iter().map(|placed| placed.is_mark).collect();
        assert_eq!((pointed[0].character, marks), ('ל', vec![false, false, true]));
        assert_eq!(drawn("a\u{200b}b\n\u{feff}c"), "abc");
    }
}
