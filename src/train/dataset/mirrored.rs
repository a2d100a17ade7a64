//! Classes that a mirrored or turned video would be of: their names differ by a direction alone.

use std::collections::BTreeMap;

/// Two classes that differ by a direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirrored {
    /// One.
    pub one: String,
    /// The other.
    pub other: String,
}

/// A word and its opposite, and the same in other languages or cases. Words of the first list are of one side, those of the
/// second of the other.
type Opposites = (&'static [&'static str], &'static [&'static str]);

const OPPOSITES: [Opposites; 4] = [
    // To the sides.
    (
        &[
            "left",
            "lefthand",
            "lefthanded",
            "leftward",
            "leftwards",
            "l",
            "lt",
            "west",
            "links",
            "linke",
            "linken",
            "linker",
            "linkes",
            "gauche",
            "izquierda",
            "izquierdo",
            "izq",
            "sinistra",
            "sinistro",
            "esquerda",
            "esquerdo",
            "vänster",
            "vanster",
            "venstre",
            "vasen",
            "vasemmalle",
            "lewo",
            "lewa",
            "lewy",
            "lewą",
            "vlevo",
            "doleva",
            "levo",
            "balra",
            "bal",
            "sol",
            "sola",
            "kiri",
            "trái",
            "stanga",
            "stânga",
            "hidari",
            "zuo",
            "лево",
            "влево",
            "налево",
            "левый",
            "левая",
            "ліво",
            "вліво",
            "ліворуч",
            "αριστερα",
            "αριστερά",
            "左",
            "왼",
            "좌",
            "يسار",
            "שמאל",
            "बाएं",
            "बाएँ",
            "बायें",
            "ซ้าย",
        ],
        &[
            "right",
            "righthand",
            "righthanded",
            "rightward",
            "rightwards",
            "r",
            "rt",
            "east",
            "rechts",
            "rechte",
            "rechten",
            "rechter",
            "rechtes",
            "droite",
            "derecha",
            "derecho",
            "destra",
            "destro",
            "direita",
            "direito",
            "höger",
            "hoger",
            "høyre",
            "højre",
            "oikea",
            "oikealle",
            "prawo",
            "prawa",
            "prawy",
            "prawą",
            "vpravo",
            "doprava",
            "pravo",
            "jobbra",
            "jobb",
            "sağ",
            "sağa",
            "sag",
            "saga",
            "kanan",
            "phải",
            "dreapta",
            "migi",
            "you",
            "право",
            "вправо",
            "направо",
            "правый",
            "правая",
            "праворуч",
            "δεξια",
            "δεξιά",
            "右",
            "오른",
            "우",
            "يمين",
            "ימין",
            "दाएं",
            "दाएँ",
            "दायें",
            "ขวา",
        ],
    ),
    // Around.
    (
        &[
            "clockwise",
            "cw",
            "imuhrzeigersinn",
            "uhrzeigersinn",
            "horaire",
            "horario",
            "horário",
            "orario",
            "почасовой",
            "顺时针",
            "順時針",
            "時計回り",
            "시계방향",
        ],
        &[
            "counterclockwise",
            "anticlockwise",
            "ccw",
            "acw",
            "gegenuhrzeigersinn",
            "antihoraire",
            "antihorario",
            "antihorário",
            "antiorario",
            "противчасовой",
            "逆时针",
            "逆時針",
            "反時計回り",
            "반시계방향",
        ],
    ),
    // Up and down.
    (
        &[
            "up",
            "upward",
            "upwards",
            "oben",
            "hoch",
            "rauf",
            "haut",
            "arriba",
            "su",
            "cima",
            "upp",
            "opp",
            "вверх",
            "yukarı",
            "yukari",
            "górę",
            "góra",
            "上",
            "위",
        ],
        &[
            "down",
            "downward",
            "downwards",
            "unten",
            "runter",
            "bas",
            "abajo",
            "giù",
            "giu",
            "baixo",
            "ner",
            "ned",
            "вниз",
            "aşağı",
            "asagi",
            "dół",
            "下",
            "아래",
        ],
    ),
    // Forth and back.
    (
        &[
            "forward",
            "forwards",
            "fwd",
            "front",
            "ahead",
            "vorwärts",
            "vorwaerts",
            "vor",
            "vorne",
            "avant",
            "adelante",
            "avanti",
            "frente",
            "framåt",
            "вперед",
            "вперёд",
            "ileri",
            "前",
            "앞",
        ],
        &[
            "backward",
            "backwards",
            "bwd",
            "back",
            "behind",
            "rückwärts",
            "rueckwaerts",
            "zurück",
            "zurueck",
            "hinten",
            "arrière",
            "arriere",
            "atrás",
            "atras",
            "indietro",
            "trás",
            "bakåt",
            "назад",
            "geri",
            "后",
            "後",
            "뒤",
        ],
    ),
];

/// Phrases, as the one word that they are in [`OPPOSITES`].
const PHRASES: [(&str, &str); 7] = [
    ("counter clockwise", "counterclockwise"),
    ("anti clockwise", "anticlockwise"),
    ("contra clockwise", "counterclockwise"),
    ("gegen den uhrzeigersinn", "gegenuhrzeigersinn"),
    ("im uhrzeigersinn", "imuhrzeigersinn"),
    ("против часовой", "противчасовой"),
    ("по часовой", "почасовой"),
];

/// The pairs of `classes` whose names are the same but for a direction, wherever in the name and in whatever order of words.
pub fn mirrored_classes(classes: &[String]) -> Vec<Mirrored> {
    let mut groups: BTreeMap<Vec<String>, Vec<(Vec<Direction>, &String)>> = BTreeMap::new();
    for class in classes {
        let (rest, directions) = take_apart(class);
        if !directions.is_empty() {
            groups.entry(rest).or_default().push((directions, class));
        }
    }
    let mut pairs = Vec::new();
    for group in groups.values() {
        for (i, (directions, one)) in group.iter().enumerate() {
            let others = group[i + 1..].iter().filter(|(others, _)| opposed(directions, others));
            pairs.extend(others.map(|(_, other)| Mirrored { one: (*one).clone(), other: (*other).clone() }));
        }
    }
    pairs
}

/// Which of [`OPPOSITES`], and whether it is of the second list.
type Direction = (usize, bool);

/// Whether two names have directions of the same kinds, and one at least is the opposite.
fn opposed(directions: &[Direction], others: &[Direction]) -> bool {
    let kinds = |directions: &[Direction]| {
        let mut kinds: Vec<usize> = directions.iter().map(|(kind, _)| *kind).collect();
        kinds.sort_unstable();
        kinds
    };
    kinds(directions) == kinds(others) && directions != others
}

/// The words of a name that are no directions, in an order of their own, and the directions as they stand there: from left to
/// right is not from right to left.
fn take_apart(name: &str) -> (Vec<String>, Vec<Direction>) {
    let mut plain = words_of(name).join(" ");
    for (phrase, word) in PHRASES {
        plain = plain.replace(phrase, word);
    }
    let (mut rest, mut directions) = (Vec::new(), Vec::new());
    for word in plain.split(' ').filter(|word| !word.is_empty()) {
        take_apart_word(word, &mut rest, &mut directions);
    }
    rest.sort();
    (rest, directions)
}

/// Words in small letters: divided where there are no letters, and where a capital follows a small letter.
fn words_of(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut after_small = false;
    for c in name.chars() {
        // Marks of vowels are no letters, but parts of a word.
        let is_part = c.is_alphanumeric() || (!c.is_ascii() && !c.is_whitespace() && !c.is_ascii_punctuation());
        if !is_part || (after_small && c.is_uppercase()) {
            words.push(String::new());
        }
        if is_part {
            words.last_mut().expect("there is one").extend(c.to_lowercase());
        }
        after_small = c.is_lowercase();
    }
    words.retain(|word| !word.is_empty());
    words
}

/// A word may be a direction, or have one at its start or end (`leftturn`), or, in scripts without blanks, anywhere.
fn take_apart_word(word: &str, rest: &mut Vec<String>, directions: &mut Vec<Direction>) {
    // Shorter ones are parts of other words too often.
    const SHORTEST_PART: usize = 4;
    let sides = OPPOSITES.iter().enumerate().flat_map(|(kind, (ones, others))| {
        let side = move |words: &'static [&'static str], second| words.iter().map(move |word| (*word, (kind, second)));
        side(ones, false).chain(side(others, true))
    });
    let sides: Vec<(&str, Direction)> = sides.collect();
    if let Some((_, direction)) = sides.iter().find(|(known, _)| *known == word) {
        directions.push(*direction);
        return;
    }
    let place = |known: &str| {
        let in_blanks =
            known.chars().all(|c| c.is_alphabetic() && (c.is_ascii() || ('\u{c0}'..'\u{530}').contains(&c)));
        match in_blanks {
            true if known.chars().count() < SHORTEST_PART => None,
            true if word.starts_with(known) => Some(0),
            true if word.ends_with(known) => Some(word.len() - known.len()),
            true => None,
            false => word.find(known),
        }
    };
    let longest = sides.iter().filter_map(|(known, direction)| Some((known.len(), place(known)?, *direction)));
    match longest.max_by_key(|(length, ..)| *length) {
        Some((length, at, direction)) => {
            directions.push(direction);
            for part in [&word[..at], &word[at + length..]] {
                if !part.is_empty() {
                    take_apart_word(part, rest, directions);
                }
            }
        }
        None => rest.push(word.to_owned()),
    }
}
